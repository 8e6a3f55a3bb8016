"""When each token was said: the path through the attention of heads that follow the sound.

The decoder's cross-attention is normalized over the tokens and smoothed over time, the heads are averaged, and dynamic
time warping finds the way through. Arithmetic follows transformers' `_extract_token_timestamps`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def token_times(
    weights: NDArray[np.float32], width: int, precision: float, positions: int | None = None
) -> NDArray[np.float64]:
    """The second at which each token begins. Shapes: weights (heads, T, S) -> (T,).

    `width` is that of the median filter, `precision` the seconds of a position; only the first `positions` are sound.
    """
    if not weights.shape[1]:
        return np.zeros(0)
    if positions is not None:
        weights = weights[..., :positions][..., :positions]  # twice, which matters where it is negative
    with np.errstate(divide="ignore", invalid="ignore"):  # heads that give every token the same weight
        even = (weights - weights.mean(-2, keepdims=True)) / weights.std(-2, keepdims=True)
    strength: NDArray[np.float64] = median_filter(even, width).mean(0).astype(np.float64)
    rows, columns = warp(np.negative(strength))
    jumps = np.concatenate(([True], np.diff(rows) > 0))
    times: NDArray[np.float64] = columns[jumps].astype(np.float64)
    times *= precision
    return times


def median_filter(values: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """The median of `width` (odd) neighbours along the last axis, mirrored at both ends."""
    half = width // 2
    if values.shape[-1] <= half:
        return values
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(half, half)], mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, width, -1)
    out: NDArray[np.float32] = np.sort(windows, -1)[..., half]
    return out


def warp(costs: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Dynamic time warping: the rows and columns of the cheapest monotonic path from the first to the last cell.

    Sums are float32, and a tie takes the step along the row, as in transformers. Shapes: costs (T, S) -> (P,), (P,).
    """
    height, length = costs.shape
    if not length:
        return np.arange(height), np.full(height, -1)
    # Diagonals depend only on the two before them: diagonal d holds the cells (i, d - i), i and j from 1.
    trace = np.full((height + 1, length + 1), 2, np.int8)
    trace[:, 0], trace[0, :] = 1, 2
    before, last = np.full(height + 1, np.inf, np.float32), np.full(height + 1, np.inf, np.float32)
    before[0] = 0  # the cell (0, 0)
    flipped = costs[:, ::-1]
    for d in range(2, height + length + 1):
        start, stop = max(1, d - length), min(height, d - 1) + 1
        over, down, along = before[start - 1 : stop - 1], last[start - 1 : stop - 1], last[start:stop]
        step = np.where((over < down) & (over < along), 0, np.where((down < over) & (down < along), 1, 2))
        best = np.choose(step, (over, down, along))
        # i rises and j falls along the diagonal: a main diagonal of the mirrored costs.
        cell = np.diagonal(flipped, length - d + 1)[: stop - start]
        now = np.full(height + 1, np.inf, np.float32)
        now[start:stop] = cell + best
        i = np.arange(start, stop)
        trace[i, d - i] = step
        before, last = last, now
    rows, columns = [], []
    i, j = height, length
    while i > 0 or j > 0:
        rows.append(i - 1)
        columns.append(j - 1)
        step_taken = trace[i, j]
        if step_taken != 2:
            i -= 1
        if step_taken != 1:
            j -= 1
    return np.array(rows[::-1]), np.array(columns[::-1])
