"""What masks are asked for: points with labels, boxes and masks of objects, as a promptable graph takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

INSIDE, NO_POINT, CORNERS, NOTHING = 1, -1, (2, 3), -11
LABELS = (1, 0, -1, -10)  # what a caller may say of a point: inside, outside, no point, padding
NAMES = ("input_points", "input_labels", "input_boxes", "input_masks")


@dataclass(frozen=True, slots=True)
class MaskPrompts:
    """The prompts of P objects on one picture: points (P, N, 2), in its pixels, with labels (P, N), masks (P, ...)."""

    points: NDArray[np.float64]
    labels: NDArray[np.int64]
    masks: NDArray[np.float32] | None

    def __len__(self) -> int:
        return len(self.points)

    @classmethod
    def read(cls, given: Mapping[str, Any], size: tuple[int, int], low: tuple[int, int]) -> MaskPrompts | None:
        """From what a caller gave by `NAMES` for a picture of this size; None where nothing was. Raises InputError.

        Points are [[x, y], …] of one object or a list of those, boxes [x1, y1, x2, y2] likewise, masks logits of size
        `low`. Points alone are closed by one that is none, as the model was trained; a box follows the points.
        """
        (points, labels, boxes, masks), (height, width) = (given.get(name) for name in NAMES), size
        if all(value is None for value in (points, labels, boxes, masks)):
            return None
        if points is None and labels is not None:
            raise InputError("input_labels came without input_points; give a point for each label")
        placed = _points(points, height, width)
        marked = _labels(labels, placed)
        corners = _boxes(boxes, height, width)
        low_masks = _masks(masks, low)
        counts = {
            name: len(found)
            for name, found in (("input_points", placed), ("input_boxes", corners), ("input_masks", low_masks))
            if found is not None
        }
        if len(set(counts.values())) != 1:
            each = ", ".join(f"{name} of {count}" for name, count in counts.items())
            raise InputError(f"the prompts are of different numbers of objects: {each}; give as many of each")
        (count,) = set(counts.values())
        if not count:
            raise InputError(f"{next(iter(counts))} is empty; give the prompts of one object, or leave it out")
        rows = []
        for n in range(count):
            own = [] if placed is None else [*zip(placed[n], marked[n], strict=True)]
            if corners is not None:
                own += zip(corners[n].reshape(2, 2), CORNERS, strict=True)
            rows.append(own)
        return cls(*_together(rows, closed=corners is None and placed is not None), low_masks)


def _together(
    rows: Sequence[Sequence[tuple[NDArray[Any], int]]], *, closed: bool
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Points with labels of each object as two arrays; the shorter rows are filled with nothing.

    The model closes a row by itself, but for one in which something is left out: those get their end here.
    """
    longest = max(1, *(len(row) for row in rows))
    closed = closed and any(len(row) != longest for row in rows)
    longest += 2 * closed  # the end, and something that is left out in every row
    points = np.zeros((len(rows), longest, 2))
    labels = np.full((len(rows), longest), NOTHING, np.int64)
    for n, row in enumerate(rows):
        for m, (point, label) in enumerate(row):
            points[n, m], labels[n, m] = point, label
        if closed:
            labels[n, len(row)] = NO_POINT
    return points, labels


def _numbers(name: str, given: Any, form: str) -> NDArray[np.float64]:
    try:
        found = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        found = np.full(1, np.nan)
    if not np.isfinite(found).all():
        raise InputError(f"{name}={given!r:.80} is not {form}")
    return found


def _listed(name: str, given: Any, depth: int, form: str) -> list[Any]:
    """The prompts of each object: given with as many levels of lists as `depth`, or one more."""
    levels, inner = 0, given
    while isinstance(inner, list | tuple | np.ndarray) or hasattr(inner, "tolist"):
        inner = inner.tolist() if hasattr(inner, "tolist") else inner
        if not isinstance(inner, list | tuple):
            break
        levels += 1
        if not len(inner):
            break
        inner = inner[0]
    if levels == depth + 1 or (levels and not len(given)):
        return list(given)
    if levels != depth:
        raise InputError(f"{name}={given!r:.80} is not {form}, or a list of those, one for each object")
    return [given]


def _points(given: Any, height: int, width: int) -> list[NDArray[np.float64]] | None:
    """(N, 2) of each object."""
    if given is None:
        return None
    form = "points [[x, y], …] of an object"
    found = []
    for one in _listed("input_points", given, 2, form):
        points = _numbers("input_points", one, form)
        if points.ndim != 2 or points.shape[1] != 2:
            raise InputError(f"input_points: {one!r:.80} is not {form}")
        for x, y in points:
            if not (0 <= x <= width and 0 <= y <= height):
                raise InputError(
                    f"input_points: ({x:g}, {y:g}) is outside the picture of {width} x {height}; give pixels of the "
                    "picture as it was loaded"
                )
        found.append(points)
    return found


def _labels(given: Any, points: list[NDArray[np.float64]] | None) -> list[list[int]]:
    """The labels of each object's points; all inside where none were given."""
    if points is None:
        return []
    if given is None:
        return [[INSIDE] * len(one) for one in points]
    form = "labels [1, 0, …] of an object's points"
    found = _listed("input_labels", given, 1, form)
    counts = [len(one) for one in found], [len(one) for one in points]
    if counts[0] != counts[1]:
        raise InputError(f"input_labels={given!r:.80} does not fit input_points; give a label for each point")
    labels = [[int(label) if label in LABELS else None for label in one] for one in found]
    for one in found:
        for label in one:
            if label not in LABELS:
                raise InputError(f"input_labels: {label!r:.40} is none of 1 (inside), 0 (outside), -1 (no point), -10")
    return [[label for label in one if label is not None] for one in labels]


def _boxes(given: Any, height: int, width: int) -> NDArray[np.float64] | None:
    """(P, 4)."""
    if given is None:
        return None
    form = "a box [x1, y1, x2, y2]"
    found = []
    for one in _listed("input_boxes", given, 1, form):
        box = _numbers("input_boxes", one, form)
        if box.shape != (4,):
            raise InputError(f"input_boxes: {one!r:.80} is not {form}")
        left, top, right, bottom = box
        if left > right or top > bottom or right < 0 or bottom < 0 or left > width or top > height:
            raise InputError(
                f"input_boxes: {one!r:.80} is no box on the picture of {width} x {height}; give [x1, y1, x2, y2] in "
                "pixels, the upper left corner first"
            )
        found.append(box)
    return np.array(found).reshape(-1, 4)


def _masks(given: Any, low: tuple[int, int]) -> NDArray[np.float32] | None:
    """(P, *low)."""
    if given is None:
        return None
    masks = np.asarray(given)
    masks = masks[None] if masks.ndim == 2 else masks
    if masks.ndim != 3 or masks.shape[1:] != low or masks.dtype.kind not in "fiu" or not np.isfinite(masks).all():
        raise InputError(
            f"input_masks of shape {masks.shape} and dtype {masks.dtype} are no logits of {low[0]} x {low[1]}, one for "
            "each object; give low_res_masks of an answer with output_low_res_masks=True"
        )
    return masks.astype(np.float32)
