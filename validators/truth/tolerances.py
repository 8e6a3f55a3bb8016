"""Every limit of the validators: a name, a unit, a value and a reason.

Graph limits are not numbers but multiples of torch's own error: the reference runs in the artifact's dtype and in
float64 on the same rows, and a backend may be off by `value` times what torch is off by. Figures in the reasons were
measured on the 26 tiny checkpoints of the tests (2 to 6 layers), three seeds each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

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
    """While this lasts, the tolerances of these names, which `budgets.known` lists, have these values."""
    token = _chosen.set(dict(values))
    try:
        yield
    finally:
        _chosen.reset(token)


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

QUANTIZED = Tolerance(
    "deployment.quantized",
    "times what torch loses with the same weights, and activations quantized in the same way",
    1.25,
    "the imitation rounds as llama.cpp does but sums in another order, so that single values round the other way: "
    "llama.cpp was measured at 0.96 to 1.05 times its divergence, over sixteen types and five models",
)
QUANTIZED_ANSWERS = Tolerance(
    "deployment.answers",
    "times the root of how many answers torch loses with the same weights, beyond those",
    2.0,
    "what is lost are single boxes, masks or cells, and their number spreads as its root: of 140 boxes of a detector "
    "with random weights 37 were lost where torch lost 30",
)
IMPORTANCE = Tolerance(
    "weights.importance",
    "times the root mean square error of ggml's quantizer with even weights, for each tensor",
    2.0,
    "an importance matrix makes the columns that matter exact at the cost of the others; the matrix itself is not at "
    "hand, so the bytes cannot be compared",
)
