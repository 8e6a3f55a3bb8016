"""What a lower precision may cost, by the metric of a task: a limit with its reason for each.

A check allows a quantized file more where torch, quantized in the same way, loses more as well; `prove` allows nothing
more. Figures in the reasons were measured on real models by `python -m benchmarks.quality`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from isoform.errors import InputError
from isoform.validators.truth import tolerances
from isoform.validators.truth.tolerances import Tolerance

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
    """What a lower precision may always cost; in a check more only where torch, quantized in the same way, loses more.

    That exception stays because a budget is a figure for other models: where the weights themselves cost more, the file
    is still what its type says, and the result's note names the budget that it is over. A budget that the user has
    chosen is a gate without exception.

    `kl` and `top1` are measured on a text, `greedy` along the reference's own continuations of it, `nmse` on hidden
    states, `outputs` on what a head makes of them where that is no text, `cosine` on the vectors that stand for a row,
    `labels` and `scores` on classifiers of texts, pictures and sound, `words` on transcripts, and `heard` in the place
    of `kl` along them. The last seven are measured on the answers of a task (`task_losses`).
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
    heard: Tolerance
    masks: Tolerance
    boxes: Tolerance
    endpoints: Tolerance
    keypoints: Tolerance
    depth: Tolerance
    cells: Tolerance
    spans: Tolerance


UNITS = {
    "kl": "nats, mean over positions",
    "top1": "share of positions where the reference prefers another token by 0.1 in probability or more",
    "greedy": "share of the reference's greedy tokens that it prefers by 0.1 or more, and the form does not choose",
    "nmse": "squared error over squared size of the outputs",
    "outputs": "squared error over squared size of what a head gives",
    "cosine": "cosine distance of the vectors that stand for a row, mean over rows",
    "labels": "share of answers where the reference prefers another label by 0.1 in probability or more",
    "scores": "difference of a label's probability, the largest",
    "words": "word errors per word of the reference's transcript, but for those that begin with a near tie",
    "heard": "nats, mean over the tokens of what is heard in a sound",
    "masks": "1 less the mean intersection over union of masks, or of the labels of a picture",
    "boxes": "share of the likeliest boxes of either side that no box of the same label overlaps by half on the other",
    "endpoints": "pixels of the heat map between the places of a keypoint, mean over keypoints",
    "keypoints": "share of the reference's keypoints, or of its matches, that the form does not have",
    "depth": "share of pixels whose depth is off by more than a factor of 1.25",
    "cells": "share of a table's cells that are chosen otherwise, by 0.1 in probability or more",
    "spans": "share of answers that begin or end elsewhere, where the reference prefers its own by 0.1 or more",
}
"""Metric -> what its value counts."""


def _limits(name: str, values: Mapping[str, tuple[float, str]]) -> Budget:
    """A budget of this name; each metric has a limit and the reason for it."""
    return Budget(**{metric: Tolerance(f"{name}.{metric}", UNITS[metric], *values[metric]) for metric in UNITS})


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
    twice = f"{turned}; twice that, for few tokens are counted and a chosen token is likelier than one of a text"
    return _limits(
        name,
        {
            "kl": (kl, source),
            "top1": (choice, turned),
            "greedy": (2 * choice, twice),
            "nmse": (nmse, squared),
            "outputs": (
                4 * nmse,
                "a head adds states up, and what they share may cancel: random models were at up to twice nmse's limit",
            ),
            "cosine": (
                nmse / 2,
                "an error at right angles to a vector has half its squared share as distance, a mean over slots less",
            ),
            "labels": (choice, f"{turned}; a label is chosen as a token is"),
            "scores": (
                round(min(1.0, (2 * kl) ** 0.5), 4),
                "at most the root of half the divergence (Pinsker), of which a row may have four times the mean",
            ),
            "words": (2 * choice, "as greedy: a word is a token or two that were chosen"),
            "heard": (
                4 * kl,
                "a sound leaves less to chance than a text does: 0.0066 nats turned no word of 72, nor a clear choice",
            ),
            **_of_tasks(choice, nmse),
        },
    )


def _of_tasks(choice: float, nmse: float) -> dict[str, tuple[float, str]]:
    """The limits of what a task shows, from the share of clear choices that may turn and the error of states."""
    edges = round(min(0.5, 2 * nmse**0.5), 4)
    as_choice = f"as labels: {choice:g} of the clear choices may turn"
    return {
        "masks": (edges, "what is off by a share of its size moves an edge by that share of its slope, on both sides"),
        "boxes": (2 * choice, f"{as_choice}, and a box is a label and a place"),
        "endpoints": (round(10 * choice, 4), f"{as_choice}, and a keypoint that turns is some ten pixels away"),
        "keypoints": (2 * choice, f"{as_choice}, and a keypoint is chosen among its neighbours and among all"),
        "depth": (choice, f"{as_choice}: a factor of 1.25 is a clear difference"),
        "cells": (2 * choice, f"{as_choice}, and a cell is chosen with its column"),
        "spans": (2 * choice, f"{as_choice}, and a span has two ends"),
    }


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
        SMALLER * (PUBLISHED["q8_0"] + BFLOAT16),
        "q8_0's and bf16's together, as 8-bit weights may meet 16-bit activations: a model of 135M loses 0.0056",
        2 * ROW_BYTES_NMSE,
        f"{ROW_BYTES_NMSE:g} was measured on an encoder of 6 layers, whose similarities it moves by 0.007 and whose "
        "order of 19,900 pairs of sentences it keeps to a rank correlation of 0.998; no more than twice that",
    ),
    "small": _limits(
        "small",
        {
            "kl": (0.6, "4 bits cost a model of 135M 0.31 (q4_0) and 0.42 (q4w); what is broken costs several nats"),
            "top1": (0.4, "q4w turned 0.25 of a text on that model; with more than half as much again it is another"),
            "greedy": (0.5, "q4w turned 0.36 of few tokens"),
            "nmse": (0.12, "q4_0 costs a sentence encoder 0.057; twice as much is a tenth of the size"),
            "outputs": (0.3, "more than nmse, as for the other budgets"),
            "cosine": (0.06, "half of nmse, as for the other budgets"),
            "labels": (0.1, "labels are few and far apart, tokens many and close"),
            "scores": (0.5, "as labels, in the worst row"),
            "words": (0.4, "q4w turned a third of the words that a model of 39M hears in a made-up voice"),
            "heard": (0.6, "as kl"),
            "masks": (0.3, "4 bits move edges: with a third of each mask elsewhere it is another picture"),
            "boxes": (0.3, "one of four may be missing; as greedy, for boxes are chosen among hundreds"),
            "endpoints": (2.0, "pixels of the heat map: a twentieth of a person"),
            "keypoints": (0.4, "as top1: keypoints are chosen among thousands of pixels"),
            "depth": (0.1, "as labels"),
            "cells": (0.2, "as labels, with the column"),
            "spans": (0.2, "as labels, with two ends"),
        },
    ),
}
"""What a session may cost that `prove` looks at, by dtype or quality: floats in the settings that they ship with, all
that has 8 bits (activations with one scale per row as well), and all that has fewer."""

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


def proof_budget_of(dtype: str, quality: str = "") -> Budget | None:
    """The budget of a session, which nothing that was measured may widen: of its dtype, or wider for a lower `quality`.

    In "high" a float32 form that is not exact (llama.cpp keeps a half-precision cache) is as good as bf16.
    """
    from isoform.quality import plain_dtype, quality_of

    plain = plain_dtype(dtype)
    if plain not in PRECISIONS and plain not in ("f32", "f64") and budget_of(plain) is None:
        return None
    match quality or quality_of(plain):
        case "small":
            return PRECISIONS["small"]
        case "exact":
            return None
    return PRECISIONS.get(plain, PRECISIONS["bf16" if plain in ("f32", "f64") else "int8"])


def known() -> dict[str, Tolerance]:
    """Every tolerance by its name."""
    single = [value for value in vars(tolerances).values() if isinstance(value, Tolerance)]
    every = (*BUDGETS.values(), *PRECISIONS.values())
    budgets = [getattr(budget, field.name) for budget in every for field in fields(budget)]
    return {tolerance.name: tolerance for tolerance in (*single, *budgets)}
