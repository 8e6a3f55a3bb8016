"""Sub-blocks side by side: element i of the sub-block in lane j lies at i * LANES + j.

ggml searches the scale of one sub-block after another, and within one every sum waits for the sum before it. Here
LANES sub-blocks go through the search together, each with ggml's own operations in ggml's own order, and the loop over
lanes is what LLVM vectorises: the same float32 results, several at a time. The loops have one shape throughout: eight
elements of every lane, unrolled, so that the running sums stay in registers.

What a lane carries from step to step lies in one flat array, `state`, at the offsets below.
"""

from __future__ import annotations

import numpy as np
from numpy import float32, int32
from numpy.typing import NDArray

from isoform.exporters.gguf.quantize.compiled import inlined, kernel

LANES = 64
EIGHT = 8 * LANES
"""Eight elements of every lane."""

(
    LOW,  # the smallest value, later the minimum of the best fit, never above 0
    HIGH,  # the largest value
    SUM_W,
    SUM_X,
    SUM_L,
    SUM_LL,
    SUM_XL,
    FACTOR,  # the value of one level, inverted: of the candidate
    TRY_SCALE,
    TRY_LOW,
    FIT,  # above 0 where the candidate's equations have a solution
    ERROR,
    BEST,  # the error of the best candidate, or what it explains
    SCALE,  # of the best candidate
    WON_FACTOR,  # factor and minimum that gave the best candidate its levels
    WON_LOW,
    PEAK,  # the value of largest magnitude
    SIZE,  # its magnitude
    VARIANCE,  # mean square of the values around, where importances weigh in
    STEP,  # the scale as it is stored
    BELOW,  # the minimum as it is stored
) = (index * LANES for index in range(21))
STATE = 21 * LANES

ZERO = float32(0)
ONE = float32(1)


@kernel
def all_finite(bits: NDArray[np.int32]) -> bool:
    """Whether no float32 of these bits is infinite or NaN."""
    largest = int32(0)
    for index in range(len(bits)):
        largest = max(largest, int32(bits[index] & int32(0x7FFFFFFF)))
    return largest < int32(0x7F800000)


@kernel
def whole(batch: NDArray[np.float32], padded: NDArray[np.float32]) -> NDArray[np.float32]:
    """The batch itself, or, where it is the last and short, a copy in `padded` that ends in zeros."""
    if len(batch) == len(padded):
        return batch
    padded[: len(batch)] = batch
    padded[len(batch) :] = ZERO
    return padded


@kernel
def spread(batch: NDArray[np.float32], lanes: NDArray[np.float32], n: int) -> None:
    """LANES sub-blocks of `n` elements (16 or 32), one after another, side by side."""
    if n == 16:
        for lane in range(LANES):
            for i in range(16):
                lanes[i * LANES + lane] = batch[lane * 16 + i]
    else:
        for lane in range(LANES):
            for i in range(32):
                lanes[i * LANES + lane] = batch[lane * 32 + i]


@kernel
def take_columns(importance: NDArray[np.float32], start: int, into: NDArray[np.float32]) -> None:
    """The importances under the elements from `start` on, where every row has as many as there are columns."""
    done, column = 0, start % len(importance)
    while done < len(into):
        count = min(len(into) - done, len(importance) - column)
        into[done : done + count] = importance[column : column + count]
        done, column = done + count, 0


@inlined
def fill(state: NDArray[np.float32], offset: int, value: float32) -> None:
    for lane in range(LANES):
        state[offset + lane] = value


@kernel
def weigh(x: NDArray[np.float32], weights: NDArray[np.float32], state: NDArray[np.float32], n: int) -> None:
    """Turn the importances in `weights` into ggml's weights: importance * sqrt(VARIANCE + x * x)."""
    for start in range(0, n * LANES, EIGHT):
        xs, ws = x[start : start + EIGHT], weights[start : start + EIGHT]
        for lane in range(LANES):
            variance = state[VARIANCE + lane]
            for i in range(8):
                value = xs[i * LANES + lane]
                ws[i * LANES + lane] = ws[i * LANES + lane] * np.sqrt(variance + value * value)


@kernel
def sum_squares(x: NDArray[np.float32], length: int, sums: NDArray[np.float32]) -> None:
    """sums[i]: of the squares of the i-th run of `length` elements, added one by one; eight runs go together."""
    together = np.empty(8, np.float32)
    for first in range(0, len(sums), 8):
        part = x[first * length :]
        count = min(8, len(sums) - first)
        together[:] = ZERO
        if count == 8:
            for i in range(length):
                for run in range(8):
                    value = part[run * length + i]
                    together[run] += value * value
        else:
            for run in range(count):
                total = ZERO
                for i in range(length):
                    value = part[run * length + i]
                    total += value * value
                together[run] = total
        sums[first : first + count] = together[:count]
