"""Binary masks: logits enlarged to a picture, how steady they are, the boxes around them, run lengths, overlaps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Size = tuple[int, int]  # height and width


def _bilinear(old: int, new: int) -> NDArray[np.float32]:
    """Linear interpolation of `old` values to `new` ones, between pixel centres, as a matrix (new, old).

    The weights are those of torch's `interpolate(align_corners=False)`, in float32.
    """
    scale = np.float32(old) / np.float32(new)
    at = np.maximum(scale * (np.arange(new, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), np.float32(0))
    first = np.minimum(at.astype(np.int64), old - 1)
    second = np.minimum(first + 1, old - 1)
    share = np.clip(at - first.astype(np.float32), 0, 1).astype(np.float32)
    matrix = np.zeros((new, old), np.float32)
    rows = np.arange(new)
    np.add.at(matrix, (rows, first), np.float32(1) - share)
    np.add.at(matrix, (rows, second), share)
    return matrix


@lru_cache(maxsize=64)
def _along(low: int, padded: int, used: int, size: int) -> NDArray[np.float32]:
    """Both interpolations of `Enlarging` along one axis, (size, low)."""
    first = _bilinear(low, padded)[:used].astype(np.float64)
    matrix: NDArray[np.float32] = (_bilinear(used, size) @ first).astype(np.float32)
    return matrix


@dataclass(frozen=True)
class Enlarging:
    """Mask logits over a padded picture to those over the picture itself.

    Both are bilinear: to the `padded` size, of which `used` is kept, and from there to the picture's `size`. Each axis
    is one product with a matrix.
    """

    low: Size
    padded: Size
    used: Size
    size: Size

    def __call__(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, *low) -> (N, *size)."""
        down, across = (_along(*sizes) for sizes in zip(self.low, self.padded, self.used, self.size, strict=True))
        enlarged: NDArray[Any] = (down @ logits) @ across.T
        return enlarged


def stability(logits: NDArray[np.float32], threshold: float, offset: float) -> NDArray[np.float32]:
    """The area above a higher threshold as a part of that above a lower one: (N, H, W) -> (N,); NaN where none is."""
    inner, outer = (
        np.array([np.count_nonzero(mask > limit) for mask in logits], np.float32)
        for limit in (threshold + offset, threshold - offset)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        share: NDArray[np.float32] = inner / outer
    return share


def box_around(mask: NDArray[np.bool_]) -> list[int]:
    """x and y of the first and last pixels of a mask (H, W); zeros for an empty one."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return [0, 0, 0, 0]
    return [int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])]


@dataclass(frozen=True, slots=True)
class RunLengths:
    """A mask of this size, column by column: how many pixels are outside, then inside, then outside, …"""

    size: Size
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, mask: NDArray[np.bool_]) -> RunLengths:
        flat = np.ravel(mask, order="F")
        edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        bounds = np.concatenate(([0], edges, [len(flat)]))
        counts = np.diff(bounds)
        return cls((mask.shape[0], mask.shape[1]), np.concatenate(([0], counts)) if flat[0] else counts)

    def mask(self) -> NDArray[np.bool_]:
        """(H, W)."""
        inside = np.arange(len(self.counts)) % 2 == 1
        return np.repeat(inside, self.counts).reshape(self.size, order="F")

    def plain(self) -> dict[str, Any]:
        """{"size": [height, width], "counts": [...]}, as pycocotools has it before it is packed."""
        return {"size": list(self.size), "counts": self.counts.tolist()}


def distinct(boxes: NDArray[Any], scores: NDArray[np.float32], most: float) -> list[int]:
    """Boxes (N, 4) that no better one overlaps by more than `most` of their union, the best first."""
    left, top, right, bottom = np.asarray(boxes, np.float32).reshape(-1, 4).T
    areas = (right - left) * (bottom - top)
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(int(best))
        width = np.minimum(right[best], right[rest]) - np.maximum(left[best], left[rest])
        height = np.minimum(bottom[best], bottom[rest]) - np.maximum(top[best], top[rest])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        with np.errstate(invalid="ignore"):  # two boxes without area: neither hides the other
            overlap = shared / (areas[best] + areas[rest] - shared)
        order = rest[~(overlap.astype(np.float64) > most)]
    return kept
