"""A value of an array and the values around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

AROUND = 2  # values on either side that are shown
Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Around:
    """A value of an array and its surroundings; see `Departure`."""

    index: tuple[int, ...]
    want: float
    got: float
    neighbours: tuple[tuple[float, float], ...]
    ranges: tuple[Range, Range]


def around(got: NDArray[Any], want: NDArray[Any], place: int) -> Around:
    """What is at a flat position, and next to it along the last axis."""
    import numpy as np

    index = tuple(int(n) for n in np.unravel_index(place, want.shape)) if want.shape else ()
    mine, theirs = (x[index[:-1]].reshape(-1) if index else x.reshape(-1) for x in (got, want))
    at = index[-1] if index else 0
    span = range(max(0, at - AROUND), min(len(theirs), at + AROUND + 1))
    neighbours = tuple((float(theirs[n]), float(mine[n])) for n in span)
    return Around(index, float(theirs[at]), float(mine[at]), neighbours, (_ends(want), _ends(got)))


def _ends(x: NDArray[Any]) -> Range:
    import numpy as np

    real = x[~np.isnan(x)]
    return (float(real.min()), float(real.max())) if real.size else (float("nan"), float("nan"))
