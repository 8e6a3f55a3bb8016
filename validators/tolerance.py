"""Every limit of the validators: a name, a unit, a value and a reason.

Graph limits are not numbers but multiples of torch's own error: the reference runs in the artifact's dtype and in
float64 on the same rows, and a backend may be off by `value` times what torch is off by. Figures in the reasons were
measured on the 26 tiny checkpoints of the tests (2 to 6 layers), three seeds each.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tolerance:
    """A limit: what it is called, what its value counts, and why it is that."""

    name: str
    unit: str
    value: float
    reason: str


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
    "times the error of the reference with the backend's known deviation",
    2.0,
    "the same deviation in torch gives 0.93 to 1.12 of the backend's largest error and 0.98 to 1.01 of its mean one",
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


QUANTIZED = Tolerance(
    "deployment.quantized",
    "times what torch loses with weights and activations quantized in the same way",
    2.0,
    "the imitation rounds as llama.cpp does but sums in another order, so that single values round the other way",
)


@dataclass(frozen=True, slots=True)
class Budget:
    """What a quantization may always cost; more only where torch, quantized in the same way, loses more as well."""

    kl: Tolerance
    top1: Tolerance
    nmse: Tolerance


BUDGETS: dict[str, Budget] = {
    "q8_0": Budget(
        Tolerance(
            "q8_0.kl",
            "nats, mean over positions",
            0.005,
            "llama.cpp publishes 0.00136 for an 8B model (tools/perplexity/README.md); smaller models lose more",
        ),
        Tolerance(
            "q8_0.top1",
            "share of positions where the reference prefers another token by 0.1 in probability or more",
            0.01,
            "a closer choice is a near tie, which rounding may turn; a clear one should stand",
        ),
        Tolerance(
            "q8_0.nmse",
            "squared error over squared size of the outputs",
            1e-4,
            "8-bit rounding of normally distributed values is 0.0054 of their size, 3e-5 squared",
        ),
    ),
}
"""Quantization -> its budget; an artifact of a dtype that has none is not shown to be the same."""
