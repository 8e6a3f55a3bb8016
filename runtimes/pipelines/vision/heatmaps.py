"""Keypoints from heatmaps: the highest place of each, refined between its cells, and back into the picture.

The refinement is DARK (Zhang et al. 2019, https://arxiv.org/abs/1910.06278), unbiased as Huang et al. 2020 have it
(https://arxiv.org/abs/1911.07524). Values are those of transformers' `post_process_pose_estimation`, which blurs with
SciPy; here is the same arithmetic in NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.runtimes.preprocess.image.person_crops import UNIT, Crop

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIGMA = 0.8  # cells, of the blur
LOWEST, HIGHEST = 0.001, 50  # what a blurred map is cut to before its logarithm is taken


def keypoints(
    heatmaps: NDArray[np.float32], crops: Sequence[Crop], kernel: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Heatmaps (N, K, rows, columns) of N persons -> places (N, K, 2), x and y in the picture, and scores (N, K).

    `kernel`: cells along an edge of the blur. A map without a value above 0 has no place: its cell is (-1, -1), and
    what is refined there depends on the map before it, as in transformers.
    """
    rows, columns = heatmaps.shape[2:]
    cells, scores = _highest(heatmaps)
    places = _refined(cells, heatmaps, kernel)
    for place, crop in zip(places, crops, strict=True):
        size = crop.scale * UNIT
        step = size / np.array([columns - 1, rows - 1], np.float32)
        place[:] = place * step + crop.center - size * 0.5
    return places, scores


def mirrored_back(heatmaps: NDArray[np.float32], pairs: Sequence[tuple[int, int]]) -> NDArray[np.float32]:
    """Heatmaps (..., K, rows, columns) of a mirrored picture as those of the picture: left and right are exchanged.

    `pairs` are the keypoints that have a counterpart on the other side.
    """
    order = np.arange(heatmaps.shape[-3])
    for left, right in pairs:
        order[left], order[right] = right, left
    return heatmaps[..., order, :, ::-1]


def _highest(heatmaps: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The cell (x, y) of the largest value of each map, and that value."""
    flat = heatmaps.reshape(*heatmaps.shape[:2], -1)
    best, scores = flat.argmax(2), flat.max(2)
    cells = np.stack((best % heatmaps.shape[3], best // heatmaps.shape[3]), -1).astype(np.float32)
    cells[scores <= 0] = -1
    return cells, scores


def _refined(cells: NDArray[np.float32], heatmaps: NDArray[np.float32], kernel: int) -> NDArray[np.float32]:
    """One Newton step on the logarithm of the blurred maps, from each cell (N, K, 2)."""
    width = heatmaps.shape[3] + 2
    smooth = np.log(np.clip(_blurred(heatmaps, (kernel - 1) // 2), LOWEST, HIGHEST))
    padded = np.pad(smooth, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    flat, each = padded.ravel(), padded.shape[2] * width
    maps = np.arange(cells.shape[0] * cells.shape[1]).reshape(cells.shape[:2]) * each
    at = (cells[..., 0] + 1 + (cells[..., 1] + 1) * width).astype(np.int64) + maps

    def value(down: int, across: int) -> Any:
        return flat[at + down * width + across]

    here, left, right, above, below = value(0, 0), value(0, -1), value(0, 1), value(-1, 0), value(1, 0)
    slope = np.stack((0.5 * (right - left), 0.5 * (below - above)), -1)
    twice = right - 2 * here + left
    mixed = 0.5 * (value(1, 1) - right - below + here + here - left - above + value(-1, -1))
    twice_down = below - 2 * here + above
    curve = np.stack((twice, mixed, mixed, twice_down), -1).reshape(*twice.shape, 2, 2)
    curve = curve + np.finfo(np.float32).eps * np.eye(2)
    try:
        inverse = np.linalg.inv(curve)
    except np.linalg.LinAlgError:  # one of them is flat along a line, which is followed nowhere
        inverse = np.linalg.pinv(curve)
    return (cells - (inverse @ slope[..., None])[..., 0]).astype(np.float32)


def _blurred(heatmaps: NDArray[np.float32], radius: int) -> NDArray[np.float32]:
    """A Gaussian blur of so many cells to each side, the maps mirrored at their edges: rows first, then columns.

    Sums are in float64 and from the outside in, each direction rounded to float32.
    """
    weights = np.exp(-0.5 / SIGMA**2 * np.arange(-radius, radius + 1) ** 2)
    weights /= weights.sum()
    for axis in (2, 3):
        room = [(radius, radius) if n == axis else (0, 0) for n in range(4)]
        wide = np.moveaxis(np.pad(heatmaps.astype(np.float64), room, mode="symmetric"), axis, 0)
        count = heatmaps.shape[axis]
        total = wide[radius : radius + count] * weights[radius]
        for n in range(radius):
            total += (wide[n : n + count] + wide[2 * radius - n : 2 * radius - n + count]) * weights[n]
        heatmaps = np.moveaxis(total, 0, axis).astype(np.float32)
    return heatmaps
