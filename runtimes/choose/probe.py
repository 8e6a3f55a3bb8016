"""What this machine can do at most: bytes read per second, and operations of matrix products per dtype.

Everything is measured with torch's own kernels and nothing is looked up by the name of a processor. A unit without a
kernel here has no figure, and `missing` says why.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time
from typing import TYPE_CHECKING, Any

from isoform.formats import FLOATS
from isoform.runtimes.devices import cpus
from isoform.whole import whole_file

if TYPE_CHECKING:
    from torch import Tensor

UNITS = ("f32", "bf16", "f16", "int8")
"""The dtypes of matrix products that are measured; int8 is bytes times bytes, summed in 32 bits."""

READ = 256 * 2**20
"""Bytes that are read in one go: larger than the caches of nearly all processors."""

SHAPES = ((128, 512, 512), (256, 1024, 1024), (256, 2048, 2048))
"""Rows, columns and outputs of the products, of which the fastest counts."""

LONG, SHORT = 0.05, 0.005
"""Seconds: a shape that would take a kernel longer is left out, and one that takes less is repeated."""

ROUNDS, SECONDS = 5, 1.2
"""At most so many rounds, and none is begun after so many seconds; two at least."""

NOISY = 1.25
"""More `noise` than this says that something else uses the machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The limits of a machine as the probe measured them.

    `bandwidth` is in bytes per second, `peaks` in operations per second (a product and a sum are two) by unit.
    `missing`: unit -> why it has no peak. `noise`: the fastest round's rate over the median one's, of the limit where
    they differ most, or the probe's time over that in which it could run, where that is more.
    """

    processor: str
    cores: int
    threads: int
    bandwidth: float
    peaks: Mapping[str, float]
    noise: float
    missing: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    date: str = ""

    @property
    def noisy(self) -> bool:
        return self.noise > NOISY

    def peak(self, unit: str) -> float | None:
        """The most operations per second for numbers of this dtype, which may be converted to float32 first."""
        found = [self.peaks[name] for name in (unit, "f32") if name in self.peaks]
        return max(found, default=None)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Machine:
        """Raises KeyError, TypeError or ValueError for what describes no machine."""
        found = cls(
            processor=str(data["processor"]),
            cores=int(data["cores"]),
            threads=int(data["threads"]),
            bandwidth=float(data["bandwidth"]),
            peaks={str(unit): float(peak) for unit, peak in dict(data["peaks"]).items()},
            noise=float(data["noise"]),
            missing={str(unit): str(reason) for unit, reason in dict(data["missing"]).items()},
            versions={str(name): str(number) for name, number in dict(data["versions"]).items()},
            date=str(data["date"]),
        )
        if not all(isfinite(value) and value > 0 for value in (found.bandwidth, found.noise, *found.peaks.values())):
            raise ValueError("a limit that is not a positive number")
        return found


@dataclass(frozen=True, slots=True)
class Contest:
    """One way to reach a limit: `run` handles `amount` bytes or operations in about `seconds`."""

    unit: str
    amount: float
    run: Callable[[], object]
    seconds: float

    @property
    def rate(self) -> float:
        return self.amount / self.seconds


def probe(threads: int | None = None, *, processor: str = "") -> Machine:
    """Measure this machine with so many threads, all that this process may use by default, in about two seconds.

    Afterwards torch uses as many threads as before.
    """
    import torch

    count, before = threads or cpus(), torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with torch.inference_mode():
            contests, missing = [*_readers()], {}
            for unit in UNITS:
                found, reason = _products(unit)
                contests += found
                if not found:
                    missing[unit] = reason
            rates, waited = _rounds(contests)
    finally:
        torch.set_num_threads(before)
    best: dict[str, list[float]] = {}
    for contest, found_rates in zip(contests, rates, strict=True):
        if max(found_rates) > max(best.get(contest.unit, (0.0,))):
            best[contest.unit] = found_rates
    return Machine(
        processor=processor,
        cores=os.cpu_count() or 1,
        threads=count,
        bandwidth=max(best["read"]),
        peaks={unit: max(best[unit]) for unit in UNITS if unit in best},
        noise=max(waited, *(max(rounds) / median(rounds) for rounds in best.values())),
        missing=missing,
        versions=versions(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def versions() -> dict[str, str]:
    """Of what the probe measures with."""
    found = {}
    for package in ("isoform", "torch"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _rounds(contests: list[Contest]) -> tuple[list[list[float]], float]:
    """The rate of each contest by round, and how many times longer they took than this thread ran.

    Contests take turns, so that a disturbance meets all of them. A machine that is always busy shows in the second.
    """
    rates: list[list[float]] = [[] for _ in contests]
    start, ran = perf_counter(), thread_time()
    for done in range(ROUNDS):
        if done >= 2 and perf_counter() - start > SECONDS:
            break
        for contest, found in zip(contests, rates, strict=True):
            times = max(1, round(SHORT / contest.seconds))
            begun = perf_counter()
            for _ in range(times):
                contest.run()
            found.append(times * contest.amount / max(perf_counter() - begun, 1e-9))
    return rates, max(1.0, (perf_counter() - start) / max(thread_time() - ran, 1e-9))


def _timed(run: Callable[[], object]) -> float:
    """Seconds of the second call: the first one prepares what a kernel keeps."""
    run()
    start = perf_counter()
    run()
    return max(perf_counter() - start, 1e-9)


# ------------------------------------------------------------------ reading
def _readers() -> Iterator[Contest]:
    """A sum over a buffer, and a product with one row, which is how weights are read."""
    import torch

    size = READ
    while True:
        try:
            buffer = torch.ones(size // 4)
            break
        except RuntimeError:  # no memory for it
            if size < 2**20:
                raise
            size //= 2
    matrix, row = buffer.view(-1, 1024), torch.ones(1024)
    yield Contest("read", size, buffer.sum, _timed(buffer.sum))
    yield Contest("read", size, lambda: matrix @ row, _timed(lambda: matrix @ row))


# ------------------------------------------------------------------ products
def _products(unit: str) -> tuple[list[Contest], str]:
    """The two fastest ways to multiply matrices of a dtype; without any, the reason."""
    found, reasons = [], []
    for kernel in KERNELS[unit]:
        previous: Contest | None = None
        for rows, columns, outputs in SHAPES:
            amount = 2.0 * rows * columns * outputs
            if previous is not None and amount / previous.rate > LONG:
                break
            try:
                run = kernel(unit, rows, columns, outputs)
                previous = Contest(unit, amount, run, _timed(run))
            except (AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
                reasons.append(" ".join(str(error).split())[:120])
                break
            found.append(previous)
    return sorted(found, key=lambda contest: contest.rate)[-2:], reasons[0] if reasons else ""


def _linear(unit: str, rows: int, columns: int, outputs: int) -> Callable[[], object]:
    import torch

    x, weight = _floats(unit, rows, columns), _floats(unit, outputs, columns)
    return lambda: torch.nn.functional.linear(x, weight)


def _prepacked(unit: str, rows: int, columns: int, outputs: int) -> Callable[[], object]:
    """oneDNN's product with weights in the order that its kernel likes."""
    import torch

    operators = torch.ops.mkldnn
    x = _floats(unit, rows, columns)
    weight = operators._reorder_linear_weight(_floats(unit, outputs, columns), rows)
    return lambda: operators._linear_pointwise(x, weight, None, "none", [], "")


def _bytes(unit: str, rows: int, columns: int, outputs: int) -> Callable[[], object]:
    """oneDNN's product of unsigned activations and signed weights."""
    import torch

    operators = torch.ops.onednn
    x = torch.full((rows, columns), 129, dtype=torch.uint8)
    weight = operators.qlinear_prepack(torch.ones((outputs, columns), dtype=torch.int8), None)
    scales, zeros = torch.ones(outputs), torch.zeros(outputs, dtype=torch.int64)
    given: tuple[Any, ...] = (x, 1.0, 128, weight, scales, zeros, None, 1.0, 0, torch.float32, "none", [], "")
    return lambda: operators.qlinear_pointwise(*given)


def _signed(unit: str, rows: int, columns: int, outputs: int) -> Callable[[], object]:
    import torch

    x, weight = (torch.ones((size, columns), dtype=torch.int8) for size in (rows, outputs))
    return lambda: torch._int_mm(x, weight.t())


def _floats(unit: str, *shape: int) -> Tensor:
    import torch

    return torch.ones(shape, dtype=getattr(torch, FLOATS[unit]))


KERNELS: Mapping[str, tuple[Callable[[str, int, int, int], Callable[[], object]], ...]] = {
    "f32": (_linear,),
    "bf16": (_prepacked, _linear),
    "f16": (_prepacked, _linear),
    "int8": (_bytes, _signed),
}
"""Unit -> what multiplies its matrices: each gives a product of a shape, or raises where torch has no such kernel."""


# ------------------------------------------------------------------ kept
def cached_probe(
    folder: Path | None, threads: int | None = None, *, processor: str = "", again: bool = False
) -> Machine:
    """The machine as it was measured before, kept in `folder` by processor, cores, threads and versions.

    Without a folder, or where it cannot be written, it is measured each time. A noisy measurement is not kept.
    """
    count = threads or cpus()
    facts = (processor, os.cpu_count(), count, sorted(versions().items()), _capped())
    path = folder and folder / f"machine-{sha256(repr(facts).encode()).hexdigest()[:16]}.json"
    if path and not again:
        with suppress(OSError, ValueError, KeyError, TypeError):
            return Machine.from_json(json.loads(path.read_text(encoding="utf-8")))
    found = probe(count, processor=processor)
    if path and not found.noisy:
        with suppress(OSError), whole_file(path) as part:
            part.write_text(json.dumps(found.to_json(), indent=2) + "\n", encoding="utf-8")
    return found


def _capped() -> list[str]:
    """What tells torch to use fewer instructions than there are."""
    return [f"{name}={os.environ.get(name, '')}" for name in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")]
