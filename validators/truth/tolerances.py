"""Every limit of the validators: a name, a unit, a value and a reason.

Graph limits are not numbers but multiples of torch's own error: the reference runs in the artifact's dtype and in
float64 on the same rows, and a backend may be off by `value` times what torch is off by. Figures in the reasons were
measured on the 26 tiny checkpoints of the tests (2 to 6 layers), three seeds each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields

from isoform.errors import InputError

_chosen: ContextVar[Mapping[str, float]] = ContextVar("tolerances")


@dataclass(frozen=True, slots=True)
class Tolerance:
    """A limit: what it is called, what its value counts, what it is, and why it is that."""

    name: str
    unit: str
    default: float
    reason: str

    @property
    def value(self) -> float:
        """The default, or what the user has chosen instead (`chosen`)."""
        return _chosen.get({}).get(self.name, self.default)

    @property
    def is_chosen(self) -> bool:
        """Whether the user has set it: then nothing that was measured may widen it."""
        return self.name in _chosen.get({})


@contextmanager
def chosen(values: Mapping[str, float]) -> Iterator[None]:
    """While this lasts, the tolerances of these names have these values. The names are looked up in `known` before."""
    token = _chosen.set(dict(values))
    try:
        yield
    finally:
        _chosen.reset(token)


def known() -> dict[str, Tolerance]:
    """Every tolerance by its name."""
    single = [value for value in globals().values() if isinstance(value, Tolerance)]
    budgets = [getattr(budget, field.name) for budget in BUDGETS.values() for field in fields(budget)]
    return {tolerance.name: tolerance for tolerance in (*single, *budgets)}


GRAPH_MAX = Tolerance(
    "graph.max_abs",
    "times torch's own largest error in the artifact's dtype",
    10.0,
    "the largest of many rounding errors varies with the order of summation: ONNX Runtime was measured at up to 2.5, "
    "TorchScript 2.0, llama.cpp 2.5",
)
GRAPH_RMS = Tolerance(
    "graph.rms",
    "times torch's own root mean square error in the artifact's dtype",
    4.0,
    "a mean varies less than a maximum, and sees a small error that is everywhere: ONNX Runtime was measured at up to "
    "1.9, llama.cpp 2.4; a wrong epsilon of a norm starts at 4.1",
)
DEVIATION = Tolerance(
    "graph.deviation",
    "times the error of the reference on its worst row with the backend's known deviation",
    2.0,
    "llama.cpp's error was 0.93 to 1.12 of the imitation's with up to 6 layers; with 18 layers single rows were at 0.6 "
    "to 2.5, since roundings fall apart, but the worst row at 0.5 (largest) and 0.7 (mean)",
)
FLOOR_MAX = Tolerance(
    "graph.floor.max_abs",
    "units in the last place of the largest output",
    4.0,
    "torch may be exact by luck on a short row; no backend owes more than a few roundings of the result",
)
FLOOR_RMS = Tolerance(
    "graph.floor.rms", "units in the last place of the outputs' root mean square", 2.0, "as graph.floor.max_abs"
)

COMPARE = Tolerance(
    "compare.ulps",
    "units in the last place of the outputs, of the coarser of two artifacts",
    256.0,
    "without a checkpoint torch's own error cannot be measured; eight bits are lost over some ten layers",
)
BASELINE_GROWTH = Tolerance(
    "baseline.growth",
    "times the stored value",
    2.0,
    "another machine or build sums in another order, and moves the largest of many rounding errors by less than that",
)
BASELINE_FLOOR = Tolerance(
    "baseline.floor",
    "of the limit, below which growth does not count",
    0.5,
    "an error that is far from its limit may be rounding alone, exact by luck when it was stored",
)


# ------------------------------------------------------------------ quantized artifacts
QUANTIZED = Tolerance(
    "deployment.quantized",
    "times what torch loses with the same weights, and activations quantized in the same way",
    1.25,
    "the imitation rounds as llama.cpp does but sums in another order, so that single values round the other way: "
    "llama.cpp was measured at 0.96 to 1.05 times its divergence, over sixteen types and five models",
)
IMPORTANCE = Tolerance(
    "weights.importance",
    "times the root mean square error of ggml's quantizer with even weights, for each tensor",
    2.0,
    "an importance matrix makes the columns that matter exact at the cost of the others; the matrix itself is not at "
    "hand, so the bytes cannot be compared",
)

PUBLISHED = {
    "q8_0": 0.001355,
    "q6_k": 0.005452,
    "q5_k_m": 0.010762,
    "q5_k_s": 0.016595,
    "q5_1": 0.018045,
    "q5_0": 0.022239,
    "q4_k_m": 0.031273,
    "q4_k_s": 0.043136,
    "q4_1": 0.071683,
    "q4_0": 0.071940,
    "q3_k_l": 0.087176,
    "q3_k_m": 0.101913,
    "q3_k_s": 0.228217,
    "q2_k": 0.445132,
    "iq4_nl": 0.035742,
    "iq4_xs": 0.036334,
    "iq3_m": 0.102534,
    "iq3_s": 0.111278,
    "iq3_xs": 0.138693,
    "iq3_xxs": 0.183625,
    "iq2_m": 0.325989,
    "q2_k_s": 0.403360,
    "iq2_s": 0.439197,
    "iq2_xs": 0.546290,
    "iq2_xxs": 0.812022,
    "iq1_m": 1.393084,
    "iq1_s": 2.254554,
}
"""Mean Kullback-Leibler divergence in nats of each mix from half precision, as llama.cpp publishes it for a model of 8B
(tools/perplexity/README.md; the iq mixes and q2_k_s with an importance matrix, the others without)."""

ROUNDING = {
    "Q8_0": 0.0054,
    "Q6_K": 0.0178,
    "Q5_K": 0.0361,
    "Q5_1": 0.0379,
    "Q5_0": 0.0427,
    "Q4_K": 0.0713,
    "IQ4_NL": 0.0761,
    "IQ4_XS": 0.0767,
    "Q4_1": 0.0782,
    "Q4_0": 0.0859,
    "MXFP4": 0.114,
    "Q3_K": 0.151,
    "IQ3_S": 0.166,
    "IQ3_XXS": 0.213,
    "IQ2_S": 0.265,
    "Q2_K": 0.297,
    "IQ2_XS": 0.300,
    "IQ2_XXS": 0.344,
    "IQ1_M": 0.583,
    "IQ1_S": 0.486,
}
"""ggml's type -> its error on normally distributed values, root mean square over root mean square, measured."""

SMALLER = 4.0  # 8 bits cost a model of 270M twice the figure for 8B, and other models may be worse off


@dataclass(frozen=True, slots=True)
class Budget:
    """What a quantization may always cost; more only where torch, quantized in the same way, loses more as well.

    That exception stays because a budget is a figure for other models: where the weights themselves cost more, the file
    is still what its type says, and the result's note names the budget that it is over. A budget that the user has
    chosen is a gate without exception.

    `kl` and `top1` are measured on a text, `greedy` along the reference's own continuations of it, `nmse` on hidden
    states.
    """

    kl: Tolerance
    top1: Tolerance
    greedy: Tolerance
    nmse: Tolerance


def _budget(mix: str, base: str) -> Budget:
    """`base` is ggml's type of most tensors."""
    if base in ("TQ1_0", "TQ2_0"):  # exact on the models that they are made for; what is left are the activations
        figure, source, rounding = (
            PUBLISHED["q8_0"],
            "as q8_0: it is for models whose weights have three values",
            0.0054,
        )
    elif mix in PUBLISHED:
        figure, rounding = PUBLISHED[mix], ROUNDING[base]
        source = f"llama.cpp publishes {figure} for an 8B model; smaller models lose up to {SMALLER:g} times that"
    else:
        rounding = ROUNDING[base]
        figure = round(PUBLISHED["q4_0"] * (rounding / ROUNDING["Q4_0"]) ** 2, 4)
        source = f"q4_0's figure times the ratio of the squared rounding errors; times {SMALLER:g} for smaller models"
    kl = SMALLER * figure
    choice = round(0.14 * kl**0.5, 4)
    turned = (
        "a closer choice is a near tie, which rounding may turn; a clear one should mostly stand. How many turn grows "
        "with the square root of the divergence, and is 1 % for q8_0"
    )
    return Budget(
        Tolerance(f"{mix}.kl", "nats, mean over positions", kl, source),
        Tolerance(
            f"{mix}.top1",
            "share of positions where the reference prefers another token by 0.1 in probability or more",
            choice,
            turned,
        ),
        Tolerance(
            f"{mix}.greedy",
            "share of the reference's greedy tokens that it prefers by 0.1 or more, and the artifact would not choose",
            2 * choice,
            f"{turned}; twice that, for few tokens are counted and a chosen token is likelier than one of a text",
        ),
        Tolerance(
            f"{mix}.nmse",
            "squared error over squared size of the outputs",
            4 * rounding**2,
            f"rounding of normally distributed values is {rounding} of their size; squared, and the layers add up",
        ),
    )


_BASES = {
    **dict.fromkeys(("q2_k", "q2_k_s"), "Q2_K"),
    **dict.fromkeys(("q3_k_s", "q3_k_m", "q3_k_l"), "Q3_K"),
    **dict.fromkeys(("q4_k_s", "q4_k_m"), "Q4_K"),
    **dict.fromkeys(("q5_k_s", "q5_k_m"), "Q5_K"),
    **dict.fromkeys(("iq2_s", "iq2_xs"), "IQ2_XS"),
    **dict.fromkeys(("iq3_xs", "iq3_s", "iq3_m"), "IQ3_S"),
    **dict.fromkeys(("mxfp4", "mxfp4_moe"), "MXFP4"),
    "iq2_m": "IQ2_S",
}
_SAME = ("q8_0", "q6_k", "q5_0", "q5_1", "q4_0", "q4_1", "iq4_nl", "iq4_xs", "iq3_xxs", "iq2_xxs", "iq1_m", "iq1_s")
BUDGETS = {
    mix: _budget(mix, base) for mix, base in (_BASES | {mix: mix.upper() for mix in (*_SAME, "tq1_0", "tq2_0")}).items()
}
"""Quantization -> its budget; an artifact of a dtype that has none is not shown to be the same."""


def budget_of(dtype: str) -> Budget | None:
    """The budget of a GGUF mix, or of an ONNX type: that of ggml's type with as many bits and a scale per 32 values."""
    from isoform.exporters.onnx.types import onnx_type

    if dtype in BUDGETS:
        return BUDGETS[dtype]
    try:
        kind = onnx_type(dtype)
    except InputError:
        return None
    bits = 8 if kind.int8 else kind.bits
    return BUDGETS[f"q{bits}_0"] if bits else None
