"""select_keypoints: the places of a picture that are told apart from what is around them, with their descriptors.

DeTone et al. 2018, https://arxiv.org/abs/1712.07629. In float32, with the arithmetic of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

INPUTS = ("scores", "descriptors")
OUTPUTS = ("keypoints", "scores", "descriptors", "mask")

CELL = 8  # pixels to a cell of descriptors, in each direction
LEAST = 1e-12  # the length of a descriptor that is not made 1
ROUNDS = 2  # how often places that a suppressed one had hidden are looked for


def run(
    inputs: Mapping[str, NDArray[Any]], *, threshold: float, most: int, radius: int, border: int
) -> dict[str, NDArray[Any]]:
    """Places whose score is over `threshold` and the highest within `radius`; the `most` highest, or all (-1).

    They are at least `border` pixels from the upper and the left edge, as transformers does it. In the order of rows,
    or, where `most` left some out, the highest first. Pictures with fewer places than others are padded at the end.

    Shapes: scores (..., 64, rows, columns) of the pixels of each cell, descriptors (..., C, rows, columns) of cells ->
    keypoints (..., N, 2) of x and y in pixels, scores (..., N), descriptors (..., N, C), mask (..., N).
    """
    import numpy as np

    scores: NDArray[np.float32] = np.asarray(inputs["scores"], np.float32)
    maps: NDArray[np.float32] = np.asarray(inputs["descriptors"], np.float32)
    leading, channels, rows, columns = scores.shape[:-3], *maps.shape[-3:]
    found = [
        _of_one(pixels(one), cells, threshold, most, radius, border)
        for one, cells in zip(
            scores.reshape(-1, CELL * CELL, rows, columns), maps.reshape(-1, channels, rows, columns), strict=True
        )
    ]
    count = max((len(kept) for _, kept, _ in found), default=0)
    keypoints = np.zeros((len(found), count, 2), np.float32)
    values = np.zeros((len(found), count), np.float32)
    descriptors = np.zeros((len(found), count, channels), np.float32)
    mask = np.zeros((len(found), count), np.int64)
    for n, (places, kept, described) in enumerate(found):
        keypoints[n, : len(kept)], values[n, : len(kept)], descriptors[n, : len(kept)] = places, kept, described
        mask[n, : len(kept)] = 1
    made: dict[str, NDArray[Any]] = dict(zip(OUTPUTS, (keypoints, values, descriptors, mask), strict=True))
    return {name: array.reshape(*leading, *array.shape[1:]) for name, array in made.items()}


def _of_one(
    scores: NDArray[np.float32], maps: NDArray[np.float32], threshold: float, most: int, radius: int, border: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Of one picture: keypoints (N, 2), scores (N,), descriptors (N, C)."""
    import numpy as np

    kept = suppressed(scores, radius)
    rows, columns = np.nonzero(kept > threshold)
    inside = (rows >= border) & (columns >= border)
    rows, columns = rows[inside], columns[inside]
    values = kept[rows, columns]
    if 0 <= most < len(values):
        order = np.argsort(-values, kind="stable")[:most]
        rows, columns, values = rows[order], columns[order], values[order]
    places = np.stack((columns, rows), -1).astype(np.float32)
    return places, values, sampled(maps, places)


def pixels(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores of the pixels of cells, (64, rows, columns) -> (H, W)."""
    import numpy as np

    _, rows, columns = scores.shape
    apart = scores.reshape(CELL, CELL, rows, columns).transpose(2, 0, 3, 1)
    return np.ascontiguousarray(apart.reshape(rows * CELL, columns * CELL))


def suppressed(scores: NDArray[np.float32], radius: int) -> NDArray[np.float32]:
    """Scores (H, W), those that are not the highest within `radius` 0.

    What only a suppressed place had hidden counts again, in `ROUNDS` rounds.
    """
    import numpy as np

    highest = scores == _highest(scores, radius)
    for _ in range(ROUNDS):
        hidden = _highest(highest, radius)
        others = np.where(hidden, np.float32(0), scores)
        highest |= (others == _highest(others, radius)) & ~hidden
    return np.where(highest, scores, np.float32(0))


def _highest(x: NDArray[Any], radius: int) -> NDArray[Any]:
    """The maximum within `radius` in each direction, (H, W) -> (H, W), of one axis after the other.

    Each doubling of a window is one maximum, so a window of 9 costs 4 instead of 8.
    """
    import numpy as np

    width = 2 * radius + 1
    for axis in (1, 0):
        size = x.shape[axis]
        room = [(radius, radius) if n == axis else (0, 0) for n in (0, 1)]
        lowest: Any = False if x.dtype == bool else -np.inf
        x = np.pad(x, room, constant_values=lowest)
        reach = 1
        while reach < width:
            step = min(reach, width - reach)
            length = x.shape[axis] - step
            x = np.maximum(_part(x, axis, 0, length), _part(x, axis, step, step + length))
            reach += step
        assert x.shape[axis] == size
    return x


def _part(x: NDArray[Any], axis: int, start: int, stop: int) -> NDArray[Any]:
    return x[:, start:stop] if axis else x[start:stop]


def sampled(maps: NDArray[np.float32], places: NDArray[np.float32]) -> NDArray[np.float32]:
    """Descriptors between the centres of cells, of length 1: maps (C, H, W), places (N, 2) in pixels -> (N, C)."""
    import numpy as np

    channels, height, width = maps.shape
    one, two, half = np.float32(1), np.float32(2), np.float32(CELL / 2)
    sizes = np.array([width, height], np.float32)
    at = (places - half + np.float32(0.5)) / (sizes * CELL - half - np.float32(0.5)) * two - one
    at = (at + one) / two * (sizes - one)
    corner = np.floor(at)
    part = at - corner
    first = corner.astype(np.int64)
    cells = np.ascontiguousarray(maps.reshape(channels, -1).T)
    total = np.zeros((len(places), channels), np.float32)
    for down in (0, 1):
        for right in (0, 1):
            x, y = first[:, 0] + right, first[:, 1] + down
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            weight = (part[:, 0] if right else one - part[:, 0]) * (part[:, 1] if down else one - part[:, 1])
            weight = np.where(inside, weight, np.float32(0))
            cell = np.where(inside, y * width + x, 0)
            total += weight[:, None] * cells[cell]
    lengths = np.sqrt((total * total).sum(-1, keepdims=True))
    return total / np.maximum(lengths, np.float32(LEAST))
