"""What a check will cost, said before it runs, and which cases to keep when there is too little time for all.

Costs follow from the number of parameters and tokens, and from how fast this machine multiplies (measured in a
fraction of a second). They are rough, so a clock watches as well, and what it leaves out is listed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from time import perf_counter
from typing import TYPE_CHECKING

from isoform.formats import FLOATS, checked_on
from isoform.quality import plain_dtype

if TYPE_CHECKING:
    from isoform.manifest import Artifact
    from isoform.reference.model import Model
    from isoform.validators.cases.case import Case

START = 4.0  # seconds to import torch and the backends
BASE = 600_000_000  # bytes of them
DISK = 5e8  # bytes per second: read, converted and compared or hashed


@dataclass(frozen=True, slots=True)
class Speed:
    """Bytes of weights that one token's products read per second, and floating point operations per second."""

    bytes: float
    operations: float


@dataclass(frozen=True, slots=True)
class Plan:
    """`cases` and `left_out` in their own order, `passages` of text at most, and what they will cost."""

    cases: tuple[Case, ...]
    left_out: tuple[Case, ...]
    passages: int
    seconds: float
    bytes: int

    def __str__(self) -> str:
        return f"about {spoken(self.seconds)}, up to {self.bytes / 1e9:.1f} GB of memory"


class Clock:
    """Says when the time is up; never when `seconds` is None."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds, self.start = seconds, perf_counter()

    @property
    def spent(self) -> float:
        return perf_counter() - self.start

    @property
    def up(self) -> bool:
        return self.seconds is not None and self.spent >= self.seconds

    @property
    def planned(self) -> str:
        """Why a case is not even begun."""
        return f"left out: the budget of {spoken(self.seconds or 0)} holds fewer cases"

    @property
    def reason(self) -> str:
        return f"left out: the budget of {spoken(self.seconds or 0)} was spent"


def spoken(seconds: float) -> str:
    """A time as people say it: 45 s, 10 min, 1 h 30 min."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def machine_speed() -> Speed:
    """Measured with a matrix of 64 MB: larger than the caches, as weights are."""
    import torch

    weight = torch.ones((4096, 4096))
    one, many = torch.ones((1, 4096)), torch.ones((32, 4096))
    with torch.inference_mode():
        return Speed(
            weight.nbytes / _seconds(lambda: torch.nn.functional.linear(one, weight)),
            2 * weight.numel() * len(many) / _seconds(lambda: torch.nn.functional.linear(many, weight)),
        )


def _seconds(run: Callable[[], object]) -> float:
    """The best of three."""
    found = []
    for _ in range(3):
        start = perf_counter()
        run()
        found.append(perf_counter() - start)
    return max(min(found), 1e-6)


def make_plan(
    model: Model,
    artifacts: Sequence[Artifact],
    cases: Sequence[Case],
    passages: int,
    seconds: float | None = None,
    speed: Speed | None = None,
) -> Plan:
    """All cases, or of the most telling ones as many as fit into `seconds`, but at least one."""
    rate = speed or machine_speed()
    ranked = sorted(cases, key=telling, reverse=True)
    count = len(ranked)
    while True:
        kept = set(ranked[:count])
        rows = max(1, round(passages * count / max(1, len(ranked))))
        cost = estimate(model, artifacts, ranked[:count], rows, rate)
        if seconds is None or cost <= seconds or count <= 1:
            break
        count -= 1
    return Plan(
        tuple(case for case in cases if case in kept),
        tuple(case for case in cases if case not in kept),
        rows,
        cost,
        memory(model, artifacts),
    )


def in_all(plans: Sequence[Plan]) -> Plan:
    """The plans of a model's parts, which run one after the other, as one."""
    return Plan(
        tuple(case for plan in plans for case in plan.cases),
        tuple(case for plan in plans for case in plan.left_out),
        sum(plan.passages for plan in plans),
        sum(plan.seconds for plan in plans),
        max((plan.bytes for plan in plans), default=0),
    )


def telling(case: Case) -> int:
    """How much a case can find: a cache and padding on the left first, a single short row last."""
    mixed = len({len(row) for row in case.rows}) > 1
    left = mixed and case.side == "left"
    long = max(map(len, case.rows)) > 1
    return 32 * (left and bool(case.chunks)) + 16 * left + 8 * case.natural + 4 * bool(case.chunks) + 2 * mixed + long


def estimate(model: Model, artifacts: Sequence[Artifact], cases: Sequence[Case], passages: int, speed: Speed) -> float:
    """Seconds, for these cases and so many passages of 128 tokens."""
    parameters = count_parameters(model)

    def forward(tokens: float, width: int = 4) -> float:
        return max(parameters * width / speed.bytes, width / 4 * 2 * parameters * tokens / speed.operations)

    load = 4 * parameters / DISK
    rows = {row for case in cases for row in case.rows}
    alone, exact = (sum(forward(len(row), width) for row in rows) for width in (4, 8))
    batched = sum(
        sum(forward(len(case.rows) * chunk) for chunk in case.chunks or (max(map(len, case.rows)),)) for case in cases
    )
    text = passages * forward(128) + (16 * forward(4) + 4 * forward(48) if model.signature.states else 0)
    total = START + 2 * load + exact
    total += sum(load + 2 * alone for _ in {plain_dtype(a.dtype) for a in artifacts} & FLOATS.keys())
    quantized = [artifact for artifact in artifacts if plain_dtype(artifact.dtype) not in FLOATS]
    total += (load + text) if quantized else 0
    for artifact in artifacts:
        total += 4 * sum(file.size for file in artifact.files) / DISK
        runs = len(checked_on(artifact.format, artifact.dtype))
        total += runs * (2 * load + 3 * text if artifact in quantized else batched)
    return total


def memory(model: Model, artifacts: Sequence[Artifact]) -> int:
    """Peak bytes: the reference in float64, or the largest form in a backend that copies it, and its file."""
    largest = max((sum(file.size for file in artifact.files) for artifact in artifacts), default=0)
    return BASE + max(8 * count_parameters(model), 2 * largest) + largest


def count_parameters(model: Model) -> int:
    """Of all weights."""
    return sum(prod(weight.shape) for weight in model.weights.values())
