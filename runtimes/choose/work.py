"""What an item of a workload needs at least, and what share of the machine's limits a candidate reaches.

Decoding reads all weights for one token, so bandwidth limits it; prompts, batches and pictures multiply matrices, and
the peak of the dtype that is multiplied limits them. The nearer limit counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from isoform.quality import plain_dtype
from isoform.runtimes.choose.probe import UNITS, Machine
from isoform.runtimes.choose.records import Candidate, Measurement, Timing

WIDTHS: Mapping[str, float] = {
    "f64": 8,
    "f32": 4,
    "f16": 2,
    "bf16": 2,
    "int8": 1,
    "int8w": 1,
    "int4w": 0.5625,
    "q8_0": 1.0625,
    "q4_0": 0.5625,
    "q4w": 0.625,
    "q4_k_m": 0.61,
}
"""Dtype of a form -> bytes of a weight with its share of the scales, where no file says it."""

WEIGHTS_ONLY = ("int8w", "int4w")
"""Torch's forms whose weights are widened to bf16 and multiplied in it."""

READING = "bandwidth"
TOKENS = "tokens"


@dataclass(frozen=True, slots=True)
class Share:
    """How much of a limit is reached: 0.61 of "bandwidth", or of the peak of a unit ("int8")."""

    value: float
    limit: str

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "limit": self.limit}


def unit_of(candidate: Candidate, workload: str = "") -> str:
    """The dtype of the products that a candidate computes; the one of its prefill form where that reads the prompt.

    Quantized forms count as int8: their kernels quantize the activations, or could.
    """
    handed = candidate.prefill if workload.startswith("prefill") else ""
    dtype = plain_dtype(handed.rpartition(" ")[2] or candidate.dtype)
    if dtype in WEIGHTS_ONLY:
        return "bf16"
    if dtype == "f64":
        return "f32"
    return (candidate.precision or dtype) if dtype in UNITS and dtype != "int8" else "int8"


def share_of(candidate: Candidate, workload: str, timing: Timing, machine: Machine) -> Share | None:
    """The share of the nearer limit; None where what an item needs is not known, or its unit has no peak."""
    found = []
    if timing.bytes:
        found.append(Share(timing.rate * timing.bytes / machine.bandwidth, READING))
    unit = unit_of(candidate, workload)
    if timing.operations and (peak := machine.peak(unit)):
        found.append(Share(timing.rate * timing.operations / peak, unit))
    return max(found, key=lambda share: share.value, default=None)


def bound(candidate: Candidate, workload: str, timing: Timing, machine: Machine) -> float | None:
    """The rate at which the nearer limit is reached."""
    share = share_of(candidate, workload, timing, machine)
    return timing.rate / share.value if share and share.value else None


# ------------------------------------------------------------------ what an item needs
@dataclass(frozen=True, slots=True)
class Weights:
    """What a model that decodes holds: its `parameters`, of which `table` are the embeddings.

    A head that is `tied` multiplies that table; another one has as many parameters of its own.
    """

    parameters: int
    table: int
    tied: bool

    def bytes_read(self, dtype: str, files: int | None = None) -> float | None:
        """Bytes of weights that a decode step reads: all but a table that is only looked up.

        `files`: the bytes of the form's files, where they are there. None where neither they nor the dtype tell.
        """
        width = WIDTHS.get(plain_dtype(dtype))
        if width is None:
            if files is None:
                return None
            width = files / self.parameters
        whole = self.parameters * width if files is None else float(files)
        return whole if self.tied else max(whole - self.table * width, 0.0)

    def operations(self, length: int = 1) -> float:
        """Operations per token of a prompt of so many tokens, of which the last one has logits.

        A product and a sum are two. Products with weights count, attention does not.
        """
        body = self.parameters - self.table * (1 if self.tied else 2)
        return 2.0 * body + 2.0 * self.table / length


def operations_of(run: Callable[[], tuple[float, object]]) -> float:
    """Operations per item of a pass that torch computes, counted while it runs; `run` gives the number of items first.

    Products, convolutions and attention count.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    kernels = (  # torch's own counter knows those of GPUs
        (torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", _attention),
        (torch.ops.mkldnn, "_linear_pointwise", _product),
    )
    known = {getattr(space, name): count for space, name, count in kernels if hasattr(space, name)}
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        items, _ = run()
    return counter.get_total_flops() / items if items else 0.0


def _attention(query: Sequence[int], key: Sequence[int], *_: object, **__: object) -> int:
    """The operations of fused attention, by the shapes of queries (B, H, T, D) and keys (B, H, S, D)."""
    rows, heads, length, width = query
    return 4 * rows * heads * length * key[2] * width


def _product(x: Sequence[int], weight: Sequence[int], *_: object, **__: object) -> int:
    """The operations of a product, by the shapes of its rows (…, K) and weights (N, K)."""
    return 2 * prod(x) * weight[0]


def with_counts(measurement: Measurement, passes: Mapping[str, Callable[[], tuple[float, object]]]) -> Measurement:
    """A measurement of a torch candidate whose timings say the operations of an item, counted over a pass of each
    workload; not of tokens, whose operations follow from the weights."""
    timings = {
        name: timing
        if timing.unit == TOKENS or name not in passes
        else replace(timing, operations=operations_of(passes[name]))
        for name, timing in measurement.timings.items()
    }
    return replace(measurement, timings=timings)


def with_work(
    measurements: Iterable[Measurement],
    weights: Weights | None = None,
    files: Callable[[Candidate], int | None] = lambda candidate: None,
) -> tuple[Measurement, ...]:
    """Measurements whose timings say what an item needs.

    Operations belong to the model: those that were counted on one candidate hold for all. For tokens they follow from
    the `weights`, and so do the bytes of a step, which its rows share; `files` gives the bytes of a candidate's form,
    which a step reads as they are where no weights are known.
    """
    found = list(measurements)
    counted = {name: timing.operations for one in found for name, timing in one.timings.items() if timing.operations}

    def worked(candidate: Candidate, workload: str, timing: Timing) -> Timing:
        read, operations = timing.bytes, timing.operations or counted.get(workload, 0.0)
        if timing.unit == TOKENS:
            rows, length = _shape(workload)
            size = files(candidate)
            step = size if weights is None else weights.bytes_read(candidate.dtype, size)
            operations = operations if weights is None else weights.operations(length)
            read = step / rows if step and rows else read
        return replace(timing, bytes=read, operations=operations)

    return tuple(
        replace(one, timings={name: worked(one.candidate, name, timing) for name, timing in one.timings.items()})
        for one in found
    )


def _shape(workload: str) -> tuple[int, int]:
    """Rows that a step decodes, and tokens of a prompt: (0, 128) for "prefill 128", (8, 1) for "batch 8"."""
    kind, _, size = workload.partition(" ")
    count = int(size) if size.isdecimal() else 1
    return (0, count) if kind == "prefill" else (count, 1)
