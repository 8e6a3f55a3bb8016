"""Maps of another size, between the values of the old one, with the arithmetic of torch's interpolate on a CPU.

For what transformers resizes by torch and not by Pillow. Edges are between pixels (`align_corners` is off). Only
`smoothed` smooths when a map shrinks (`antialias`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SMALL = 128
"""Rows and columns together up to which torch computes as for few channels."""
STRIPE = 2**21  # values of a result of many channels at a time
ROWS = 64  # rows of the result at a time: all of them would need eight times the memory of the result


def bilinear(x: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Each value from the four nearest: float32 (C, H, W) -> (C, height, width), bit for bit.

    torch adds the four products in this order, each with one rounding (a fused multiply-add), which a float64 holds. Of
    more than three channels, and unless the result is small, it goes along rows first and then along columns.
    """
    if x.shape[1:] == (height, width):
        return x
    if len(x) > 3 and height + width > SMALL:
        return np.concatenate(list(bilinear_rows(x, height, width)), 1)
    above, below, far = _pairs(x.shape[1], height)
    left, right, away = _pairs(x.shape[2], width)
    near, close = np.float32(1) - far, np.float32(1) - away
    result = np.empty((x.shape[0], height, width), np.float32)
    for start in range(0, height, ROWS):
        rows = slice(start, start + ROWS)
        one, other = x[:, above[rows]], x[:, below[rows]]
        upper, lower = near[rows, None], far[rows, None]
        y = np.take(one, right, 2) * (upper * away)
        y = _added(np.take(one, left, 2), upper * close, y)
        y = _added(np.take(other, left, 2), lower * close, y)
        result[:, rows] = _added(np.take(other, right, 2), lower * away, y)
    return result


def bilinear_rows(x: NDArray[np.float32], height: int, width: int) -> Iterator[NDArray[np.float32]]:
    """The result of `bilinear` for many channels, some rows of it at a time, so that little of it is in memory."""
    above, below, far = _pairs(x.shape[1], height)
    left, right, away = _pairs(x.shape[2], width)
    wide = _added(np.take(x, left, 2), np.float32(1) - away, np.take(x, right, 2) * away)
    near = np.float32(1) - far
    step = max(1, STRIPE // max(1, len(x) * width))
    for start in range(0, height, step):
        rows = slice(start, start + step)
        yield _added(wide[:, above[rows]], near[rows, None], wide[:, below[rows]] * far[rows, None])


def smoothed(x: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """torch's `antialias`: each value from all that a triangle covers, float32 (C, H, W) -> (C, height, width).

    Bit for bit where no side shrinks to less than half; beyond, to a rounding or two. A value of a map that grows has a
    triangle of one old value to each side, one of a map that shrinks a wider one.
    """
    if x.shape[1:] == (height, width):
        return x
    result = np.empty((len(x), height, width), np.float32)
    step = max(1, STRIPE // (height * width))
    for start in range(0, len(x), step):
        part = x[start : start + step]
        for axis, size in ((2, width), (1, height)):
            if part.shape[axis] != size:
                part = _covered(part, axis, size)
        result[start : start + step] = part
    return result


def _covered(x: NDArray[np.float32], axis: int, size: int) -> NDArray[np.float32]:
    old, one = x.shape[axis], np.float32(1)
    scale = np.float32(old) / np.float32(size)
    reach, narrowed = (scale, one / scale) if scale >= 1 else (one, one)
    centre = scale * (np.arange(size, dtype=np.float32) + np.float32(0.5))
    first = np.maximum((centre - reach + np.float32(0.5)).astype(np.intp), 0)
    last = np.minimum((centre + reach + np.float32(0.5)).astype(np.intp), old)
    weights, total = [], np.zeros(size, np.float32)
    for n in range(int((last - first).max())):
        apart = np.abs(((first + n).astype(np.float32) - centre + np.float32(0.5)) * narrowed)
        weight = np.where((apart < 1) & (first + n < last), one - apart, np.float32(0))
        weights.append(weight)
        total = total + weight
    y: NDArray[np.float32] | None = None
    for n, weight in enumerate(weights):
        share = weight / total
        values, share = np.take(x, np.minimum(first + n, old - 1), axis), share if axis == 2 else share[:, None]
        y = values * share if y is None else _added(values, share, y)
    assert y is not None
    return y


def bicubic(x: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Each value from the sixteen nearest: float32 (C, H, W) -> (C, height, width), to a rounding or two.

    Keys 1981, https://doi.org/10.1109/TASSP.1981.1163711, with a = -0.75, and the border repeated.
    """
    result = x
    for axis, size in ((1, height), (2, width)):
        if result.shape[axis] != size:
            result = _cubic(result, axis, size)
    return result


def _pairs(old: int, new: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Of each new place the old ones on both sides, and how far it is from the first of them, in float32."""
    places = np.arange(new, dtype=np.float32) + np.float32(0.5)
    # One rounding: a fused multiply-add.
    found = (places.astype(np.float64) * np.float64(np.float32(old) / np.float32(new)) - 0.5).astype(np.float32)
    found = np.maximum(found, np.float32(0))
    first = np.minimum(found.astype(np.intp), old - 1)
    return first, np.minimum(first + 1, old - 1), np.clip(found - first.astype(np.float32), 0, 1)


def _added(x: NDArray[np.float32], weight: NDArray[np.floating[Any]], y: NDArray[np.float32]) -> NDArray[np.float32]:
    """x * weight + y, rounded once."""
    wide = np.multiply(x, weight, dtype=np.float64)
    wide += y
    return wide.astype(np.float32)


def _cubic(x: NDArray[np.float32], axis: int, size: int) -> NDArray[np.float32]:
    old = x.shape[axis]
    places = (np.arange(size) + 0.5) * (old / size) - 0.5
    first = np.floor(places)
    away = places - first
    y: NDArray[np.float32] | None = None
    for n in range(-1, 3):
        weight = _kernel(np.abs(away - n)).astype(np.float32)
        values = np.take(x, np.clip(first.astype(np.intp) + n, 0, old - 1), axis)
        values = values * (weight[:, None] if axis == 1 else weight)
        y = values if y is None else y + values
    assert y is not None
    return y


def _kernel(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cubic convolution kernel with a = -0.75 at distances from 0 to 2."""
    near = (1.25 * x - 2.25) * x * x + 1
    far = ((-0.75 * x + 3.75) * x - 6) * x + 3
    return np.where(x <= 1, near, far)
