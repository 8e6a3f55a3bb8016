"""Where a stored weight differs: the worst value of a tensor, and what is around it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from isoform.validators.bisection.around import Around, around
from isoform.validators.report.departure import Departure
from isoform.validators.report.layers import layer_of
from isoform.validators.report.subject import Subject

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHOWN = 3  # tensors of a file; the number of all that differ is a result


def weight_departure(
    name: str, pieces: Iterable[tuple[int, NDArray[Any], NDArray[Any]]], backend: str, dtype: str
) -> Departure | None:
    """pieces: first row, and rows as they are held and as they should be, in float32. None when all are alike."""
    import numpy as np

    worst: Departure | None = None
    for start, got, want in pieces:
        with np.errstate(invalid="ignore", over="ignore"):
            gap = np.abs(got.astype(np.float64) - want)
        gap = np.where(np.isnan(gap), np.inf, gap)
        top = float(gap.max(initial=0.0))
        if top and (worst is None or top > worst.error):
            seen = around(got, want, int(gap.argmax()))
            index = (seen.index[0] + start, *seen.index[1:]) if seen.index else ()
            worst = _departure(name, backend, dtype, "max_abs", top, replace(seen, index=index))
    return worst


def missing_departure(name: str, backend: str, dtype: str) -> Departure:
    """A tensor that is not there, or of another shape."""
    none = float("nan")
    return _departure(name, backend, dtype, "missing", float("inf"), Around((), none, none, (), ((none, none),) * 2))


def _departure(name: str, backend: str, dtype: str, metric: str, error: float, seen: Around) -> Departure:
    module, _, leaf = name.rpartition(".")
    return Departure(
        **Subject(backend, "weights", dtype, "weights", "weights").fields(),
        module=module,
        side=leaf,
        layer=layer_of(module),
        metric=metric,
        error=error,
        limit=0.0,
        row=0,
        index=seen.index,
        want=seen.want,
        got=seen.got,
        neighbours=seen.neighbours,
        ranges=seen.ranges,
        agreed="",
    )
