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
    every = (*BUDGETS.values(), *PRECISIONS.values())
    budgets = [getattr(budget, field.name) for budget in every for field in fields(budget)]
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


BFLOAT16 = 1e-3
"""Nats that a model of 135M loses in bf16, with weights, activations and logits of 8 significant bits: measured (f16
has 3 bits more and loses 1.7e-5, the 64th part)."""
BFLOAT16_NMSE = 1.5e-4
"""The squared error over the squared size of the states of a sentence encoder of 6 layers in bf16: measured."""
ROW_BYTES_NMSE = 5.2e-3
"""The same with weights and activations in bytes that have one scale per row: measured."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a lower precision may always cost. A check allows a quantized file more only where torch, quantized in the
    same way, loses more as well; `prove` never does.

    That exception stays because a budget is a figure for other models: where the weights themselves cost more, the file
    is still what its type says, and the result's note names the budget that it is over. A budget that the user has
    chosen is a gate without exception.

    `kl` and `top1` are measured on a text, `greedy` along the reference's own continuations of it, `nmse` on hidden
    states, `outputs` on what a head makes of them where that is no text, `cosine` on the vectors that stand for a row,
    `labels` and `scores` on classifiers of texts, pictures and sound, `words` on transcripts.
    """

    kl: Tolerance
    top1: Tolerance
    greedy: Tolerance
    nmse: Tolerance
    outputs: Tolerance
    cosine: Tolerance
    labels: Tolerance
    scores: Tolerance
    words: Tolerance


def _of_ggml(mix: str, base: str) -> Budget:
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
    squared = f"rounding of normally distributed values is {rounding} of their size; squared, and the layers add up"
    return _budget(mix, SMALLER * figure, source, 4 * rounding**2, squared)


def _budget(name: str, kl: float, source: str, nmse: float, squared: str) -> Budget:
    """The budget of a divergence and an error of hidden states, with the reasons for both; the rest follows."""
    choice = round(0.14 * kl**0.5, 4)
    turned = (
        "a closer choice is a near tie, which rounding may turn; a clear one should mostly stand. How many turn grows "
        "with the square root of the divergence, and is 1 % for q8_0"
    )
    return Budget(
        Tolerance(f"{name}.kl", "nats, mean over positions", kl, source),
        Tolerance(
            f"{name}.top1",
            "share of positions where the reference prefers another token by 0.1 in probability or more",
            choice,
            turned,
        ),
        Tolerance(
            f"{name}.greedy",
            "share of the reference's greedy tokens that it prefers by 0.1 or more, and the artifact would not choose",
            2 * choice,
            f"{turned}; twice that, for few tokens are counted and a chosen token is likelier than one of a text",
        ),
        Tolerance(f"{name}.nmse", "squared error over squared size of the outputs", nmse, squared),
        Tolerance(
            f"{name}.outputs",
            "squared error over squared size of what a head gives",
            4 * nmse,
            "a head adds the states up, and what they have in common may cancel: labels of random models were at up to "
            "twice the states' limit",
        ),
        Tolerance(
            f"{name}.cosine",
            "cosine distance of the vectors that stand for a row, mean over rows",
            nmse / 2,
            "an error at right angles to a vector has half its squared share as cosine distance, and a mean over many "
            "slots loses less",
        ),
        Tolerance(
            f"{name}.labels",
            "share of answers where the reference prefers another label by 0.1 in probability or more",
            choice,
            f"{turned}; a label is chosen as a token is",
        ),
        Tolerance(
            f"{name}.scores",
            "difference of a label's probability, the largest",
            round(min(1.0, (2 * kl) ** 0.5), 4),
            "no probability differs by more than the root of half the divergence (Pinsker), of which a row may have "
            "four times the mean",
        ),
        Tolerance(
            f"{name}.words",
            "word errors per word of the reference's transcript, but for those that begin with a near tie",
            2 * choice,
            "as greedy: a word is a token or two that were chosen",
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
    mix: _of_ggml(mix, base)
    for mix, base in (_BASES | {mix: mix.upper() for mix in (*_SAME, "tq1_0", "tq2_0")}).items()
}
"""Quantization -> its budget; an artifact of a dtype that has none is not shown to be the same."""

PRECISIONS = {
    "bf16": _budget(
        "bf16",
        SMALLER * BFLOAT16,
        f"{BFLOAT16:g} was measured on a model of 135M; {SMALLER:g} times that for larger logits, which are rounded to "
        "8 bits as well",
        SMALLER * BFLOAT16_NMSE,
        f"{BFLOAT16_NMSE:g} was measured on an encoder of 6 layers, each of which rounds its activations; others are "
        f"{SMALLER:g} times as deep",
    ),
    "f16": _budget(
        "f16",
        SMALLER * BFLOAT16 / 64,
        "bf16's, with 3 bits more: the error is an eighth, and the divergence grows with its square",
        SMALLER * BFLOAT16_NMSE / 64,
        "bf16's, with 3 bits more",
    ),
    "int8": _budget(
        "int8",
        SMALLER * PUBLISHED["q8_0"],
        "as q8_0: whatever has 8 bits is called high quality, and users know what q8_0 costs",
        2 * ROW_BYTES_NMSE,
        f"{ROW_BYTES_NMSE:g} was measured on an encoder of 6 layers, whose similarities it moves by 0.007 and whose "
        "order of 19,900 pairs of sentences it keeps to a rank correlation of 0.998; no more than twice that",
    ),
}
"""What a session may cost that `prove` looks at, where that is not the budget of the weights' type: floats in the
settings that they ship with, and all that has 8 bits, activations with one scale per row as well."""

_WEIGHTS = {"int8w": "q8_0", "int4w": "q4_0"}
"""Weight-only dtype of the torch backend -> ggml's type with as many bits."""


def budget_of(dtype: str) -> Budget | None:
    """The budget of quantized weights: of a GGUF mix, a weight-only dtype of the torch backend, or an ONNX type.

    An ONNX type has that of ggml's type with as many bits and a scale per 32 values.
    """
    from isoform.exporters.onnx.types import onnx_type
    from isoform.quality import plain_dtype

    plain = plain_dtype(dtype)
    if (found := BUDGETS.get(_WEIGHTS.get(plain, plain))) is not None:
        return found
    try:
        kind = onnx_type(plain)
    except InputError:
        return None
    bits = 8 if kind.int8 else kind.bits
    return BUDGETS[f"q{bits}_0"] if bits else None


def proof_budget_of(dtype: str) -> Budget | None:
    """The budget of a session, which nothing that was measured may widen."""
    from isoform.quality import plain_dtype

    plain = plain_dtype(dtype)
    found = PRECISIONS.get(plain) or budget_of(plain)
    return PRECISIONS["int8"] if found is BUDGETS["q8_0"] else found
