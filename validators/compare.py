"""Comparing two arrays, and nothing else: numbers out, no verdict.

A value that is not finite, on either side, is never equal to anything; neither are arrays of another shape or dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Difference:
    """How far `got` is from `want`. With a `problem` or a value that is not finite the numbers are infinite.

    `size` counts the values compared: nothing compared (0) is not agreement. `max_rel` is relative to each wanted
    value, `nmse` is the squared error over the squared size of what is wanted, `scale` the largest wanted value.
    """

    problem: str
    size: int
    nonfinite: int
    max_abs: float
    max_rel: float
    rms: float
    nmse: float
    scale: float


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
        return Difference(problem, 0, 0, inf, inf, inf, inf, 0.0)
    a, b = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    nonfinite = int(finite.size - np.count_nonzero(finite))
    scale = float(np.abs(b[finite]).max(initial=0.0))
    if nonfinite:
        return Difference("", a.size, nonfinite, inf, inf, inf, inf, scale)
    with np.errstate(over="ignore"):
        gap = np.abs(a - b)
    max_abs = float(gap.max(initial=0.0))
    wrong = gap > 0
    with np.errstate(over="ignore", divide="ignore"):
        max_rel = float((gap[wrong] / np.abs(b[wrong])).max(initial=0.0))
    rms, size = _root_mean_square(gap), _root_mean_square(b)
    if rms == 0:
        nmse = 0.0
    else:
        with np.errstate(over="ignore"):
            nmse = float(np.square(np.float64(rms) / size)) if size else inf
    return Difference("", a.size, 0, max_abs, max_rel, rms, nmse, scale)


def _root_mean_square(x: NDArray[np.float64]) -> float:
    """Scaled by the largest value, so that no square over- or underflows."""
    import numpy as np

    top = float(x.max(initial=0.0)) if x.size else 0.0
    top = max(top, -float(x.min(initial=0.0))) if x.size else 0.0
    if top == 0 or not np.isfinite(top):
        return top
    return top * float(np.sqrt(np.mean(np.square(x / top))))


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
