"""What the charts of a report show: a sample of a case's values, its errors by size, its divergence by position.

Nothing here decides anything; the numbers that are judged are in the results.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any

from isoform.validators.report.subject import Subject

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOWEST, HIGHEST, PER_DECADE = -12, 4, 2
"""The histogram's bins: errors of 1e-12 up to 1e4, two bins for a factor of ten; others go to the ends."""
BINS = (HIGHEST - LOWEST) * PER_DECADE
POINTS, POSITIONS = 64, 16  # at most so many values and positions of a case are kept
LOOKED_AT = 2**18  # values of one array that enter the histogram, evenly spread


@dataclass(frozen=True, slots=True)
class Evidence(Subject):
    """One case on one backend: seconds it ran, and of its first output the errors, values and divergence.

    `exact` counts the sampled values without an error, `counts` the others by size; `points` are (wanted, got), `kl`
    (position, nats) for logits. Empty when nothing could be compared.
    """

    port: str
    seconds: float
    exact: int = 0
    counts: tuple[int, ...] = ()
    points: tuple[tuple[float, float], ...] = ()
    kl: tuple[tuple[int, float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            **self.subject_json(),
            "port": self.port,
            "seconds": round(self.seconds, 4),
            "exact": self.exact,
            "counts": list(self.counts),
            "points": [list(point) for point in self.points],
            "kl": [list(pair) for pair in self.kl],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Evidence:
        return cls(
            **cls.read_subject(data),
            port=data["port"],
            seconds=data["seconds"],
            exact=data["exact"],
            counts=tuple(data["counts"]),
            points=tuple((want, got) for want, got in data["points"]),
            kl=tuple((int(place), nats) for place, nats in data["kl"]),
        )


@dataclass
class Sampler:
    """Gathers evidence from array after array of one output."""

    exact: int = 0
    counts: list[int] = field(default_factory=lambda: [0] * BINS)
    points: list[tuple[float, float]] = field(default_factory=list)
    kl: list[tuple[int, float]] = field(default_factory=list)

    def add(self, got: NDArray[Any], want: NDArray[Any]) -> None:
        """Two arrays of one shape; values that are not finite are left out."""
        import numpy as np

        if got.shape != want.shape or not got.size:
            return
        step = -(-got.size // LOOKED_AT)
        mine, theirs = (x.reshape(-1)[::step].astype(np.float64) for x in (got, want))
        finite = np.isfinite(mine) & np.isfinite(theirs)
        mine, theirs = mine[finite], theirs[finite]
        gaps = np.abs(mine - theirs)
        wrong = gaps[gaps > 0]
        self.exact += int(gaps.size - wrong.size)
        places = np.minimum(np.maximum((np.log10(wrong) - LOWEST) * PER_DECADE, 0), BINS - 1).astype(np.int64)
        for place, count in zip(*np.unique(places, return_counts=True), strict=True):
            self.counts[int(place)] += int(count)
        if mine.size:
            chosen = np.unique(np.linspace(0, mine.size - 1, POINTS).astype(np.int64))
            self.points += [(_short(theirs[n]), _short(mine[n])) for n in chosen]

    def add_kl(self, got: NDArray[Any], want: NDArray[Any]) -> None:
        """Logits (T, V) of one row."""
        import numpy as np

        from isoform.validators.truth.distances import kl_divergence

        if got.shape != want.shape or not got.size:
            return
        chosen = np.unique(np.linspace(0, len(got) - 1, POSITIONS).astype(np.int64))
        nats = kl_divergence(np.asarray(got)[chosen], np.asarray(want)[chosen])
        self.kl += [(int(n), max(0.0, _short(x))) for n, x in zip(chosen, nats, strict=True) if isfinite(x)]

    def evidence(self, subject: Subject, port: str, seconds: float) -> Evidence:
        step = -(-len(self.points) // POINTS) or 1
        return Evidence(
            **subject.fields(),
            port=port,
            seconds=seconds,
            exact=self.exact,
            counts=tuple(self.counts) if any(self.counts) or self.exact else (),
            points=tuple(self.points[::step]),
            kl=tuple(self.kl[: 4 * POSITIONS]),
        )


def _short(value: float) -> float:
    """Six digits are enough for a chart."""
    return float(f"{value:.6g}")
