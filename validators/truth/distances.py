"""Distances between two arrays, as numbers without a verdict.

A value that is not finite, on either side, is never equal to anything; neither are arrays of another shape or dtype.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Difference:
    """How far `got` is from `want`. With a `problem` or a value that is not finite the numbers are infinite.

    `size` counts the values compared: nothing compared (0) is not agreement. `nmse` is the squared error over the
    squared size of what is wanted; `scale` is its largest value and `size_rms` its root mean square.
    """

    problem: str
    size: int
    nonfinite: int
    max_abs: float
    rms: float
    nmse: float
    scale: float
    size_rms: float


def difference(got: NDArray[Any], want: NDArray[Any], dtype: Any = None) -> Difference:
    """Compare element by element, in float64; with `dtype`, `got` must have it."""
    import numpy as np

    inf = float("inf")
    problem = ""
    if got.shape != want.shape:
        problem = f"shape {got.shape}, not {want.shape}"
    elif dtype is not None and got.dtype != np.dtype(dtype):
        problem = f"dtype {got.dtype}, not {np.dtype(dtype)}"
    if problem:
        return Difference(problem, 0, 0, inf, inf, inf, 0.0, 0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        gap = np.subtract(got, want, dtype=np.float64)
    scale, wide = _largest(want), _largest(gap)
    if not (np.isfinite(scale) and np.isfinite(wide)):
        finite = np.isfinite(got) & np.isfinite(want)
        if wrong := int(finite.size - np.count_nonzero(finite)):
            return Difference("", got.size, wrong, inf, inf, inf, _largest(np.where(finite, want, 0)), 0.0)
    rms, size_rms = _root_mean_square(gap, wide), _root_mean_square(want, scale)
    if rms == 0 or size_rms == 0:
        nmse = 0.0 if rms == 0 else inf
    else:
        with np.errstate(over="ignore"):
            nmse = float(np.square(np.float64(rms) / size_rms))
    return Difference("", got.size, 0, wide, rms, nmse, scale, size_rms)


def largest_relative(got: NDArray[Any], want: NDArray[Any]) -> float:
    """The largest error relative to the value that is wanted there; infinite where that is 0 and `got` is not."""
    import numpy as np

    gap = np.abs(np.subtract(got, want, dtype=np.float64))
    wrong = gap > 0
    with np.errstate(over="ignore", divide="ignore"):
        return float((gap[wrong] / np.abs(want[wrong], dtype=np.float64)).max(initial=0.0))


def _largest(x: NDArray[Any]) -> float:
    """The largest absolute value; NaN where there is one."""
    return max(abs(float(x.max())), abs(float(x.min()))) if x.size else 0.0


def _root_mean_square(x: NDArray[Any], top: float) -> float:
    """`top` is the largest absolute value: scaled by it, no square over- or underflows."""
    import numpy as np

    if top == 0 or not np.isfinite(top):
        return top
    flat = x.reshape(-1).astype(np.float64, copy=False)
    if not 1e-100 < top < 1e100:
        flat = flat / top
        return top * float(np.sqrt(np.dot(flat, flat) / flat.size))
    return float(np.sqrt(np.dot(flat, flat) / flat.size))


def choices(got: NDArray[Any], want: NDArray[Any], tie: float) -> tuple[int, int]:
    """How often the largest entry of the last axis is another one: (clearly another, a near tie).

    It is a near tie when `want` puts the two no further apart than `tie`.
    """
    import numpy as np

    if want.size == 0:
        return 0, 0
    mine, theirs = got.argmax(-1)[..., None], want.argmax(-1)[..., None]
    gap = np.take_along_axis(want, theirs, -1) - np.take_along_axis(want, mine, -1)
    other = mine != theirs
    return int(np.count_nonzero(other & (gap > tie))), int(np.count_nonzero(other & (gap <= tie)))


def matched(got: NDArray[Any], want: NDArray[Any]) -> NDArray[Any]:
    """The rows of `got` (N, V) in the order of those of `want` that they are closest to: both are sets.

    Each row is taken once; rows of `want` with the largest values choose first.
    """
    import numpy as np

    order = np.zeros(len(want), np.int64)
    free = np.ones(len(got), bool)
    for n in want.max(-1).argsort()[::-1]:
        apart = np.abs(got.astype(np.float64) - want[n]).sum(-1)
        order[n] = np.where(free, apart, np.inf).argmin()
        free[order[n]] = False
    return got[order]


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Log-probabilities over the last axis, in float64."""
    import numpy as np

    x = logits.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def kl_divergence(got: NDArray[Any], want: NDArray[Any]) -> NDArray[np.float64]:
    """Kullback-Leibler divergence of `got`'s distribution from `want`'s, in nats: logits (..., V) -> (...)."""
    import numpy as np

    p, q = log_softmax(want), log_softmax(got)
    return (np.exp(p) * (p - q)).sum(-1)


def log_probabilities(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Of labels: log-softmax over the last axis; of a single label, the logarithm of its sigmoid."""
    import numpy as np

    return -np.logaddexp(0, -logits.astype(np.float64)) if logits.shape[-1] == 1 else log_softmax(logits)


def cosine_distance(got: NDArray[Any], want: NDArray[Any]) -> float:
    """1 less the cosine of the angle between two vectors; from a vector of zeros it is 0 to another and 1 elsewhere."""
    import numpy as np

    mine, theirs = (np.asarray(x, np.float64).reshape(-1) for x in (got, want))
    sizes = [float(np.linalg.norm(x)) for x in (mine, theirs)]
    if min(sizes) == 0:
        return float(max(sizes) > 0)
    gap = mine / sizes[0] - theirs / sizes[1]
    return float(np.dot(gap, gap)) / 2


def edit_distance(got: Sequence[Any], want: Sequence[Any]) -> int:
    """How many entries must be put in, left out or replaced to make `got` of `want` (Levenshtein)."""
    before = list(range(len(got) + 1))
    for n, wanted in enumerate(want, 1):
        row = [n]
        for m, found in enumerate(got, 1):
            row.append(min(before[m] + 1, row[-1] + 1, before[m - 1] + (found != wanted)))
        before = row
    return before[-1]


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return re.findall(r"\w+(?:['’]\w+)*", text.lower())


def word_error_rate(got: str, want: str) -> float:
    """Words put in, left out or replaced, per word of `want`; case and punctuation do not count."""
    mine, theirs = words_of(got), words_of(want)
    return edit_distance(mine, theirs) / len(theirs) if theirs else float(bool(mine))
