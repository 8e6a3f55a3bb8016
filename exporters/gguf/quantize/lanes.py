"""Sub-blocks side by side: element i of the sub-block in lane j of its group lies at i * LANES + j.

ggml searches the scale of one sub-block after another, and within one every sum waits for the sum before it. Here
LANES sub-blocks go through the search together, each with ggml's own operations in ggml's own order, and the loop over
lanes is what LLVM vectorises: the same float32 results, several at a time. The loops have one shape throughout: eight
elements of every lane, unrolled, so that running sums stay in registers, on slices whose indices count from 0, so that
LLVM sees that none is negative.

What the lanes of a group carry from step to step lies in one flat array, `state`, at the offsets below.
"""

from __future__ import annotations

import numpy as np
from numpy import float32, int32
from numpy.typing import NDArray

from isoform.compiled import inlined, kernel

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]
Bytes = NDArray[np.uint8]

SUPER = 256  # the elements of a super-block
LANES = 64
EIGHT = 8 * LANES  # eight elements of every lane
CHUNK = 2 * LANES * SUPER  # elements that go through a type's kernels together: they and their weights fit in a cache

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
def all_finite(bits: Integers) -> bool:
    """Whether no float32 of these bits is infinite or NaN."""
    largest = int32(0)
    for index in range(len(bits)):
        largest = max(largest, int32(bits[index] & int32(0x7FFFFFFF)))
    return bool(largest < int32(0x7F800000))


@kernel
def spread(x: Floats, lanes: Floats, n: int) -> None:
    """Sub-blocks of `n` elements (16 or 32), one after another, side by side; lanes that get none hold zeros."""
    length = n * LANES
    for first in range(0, len(x), length):
        part, into = x[first : first + length], lanes[first : first + length]
        if len(part) < length:
            for index in range(length):
                into[index] = ZERO
            for lane in range(len(part) // n):
                for i in range(n):
                    into[i * LANES + lane] = part[lane * n + i]
        elif n == 16:
            for lane in range(LANES):
                for i in range(16):
                    into[i * LANES + lane] = part[lane * 16 + i]
        else:
            for lane in range(LANES):
                for i in range(32):
                    into[i * LANES + lane] = part[lane * 32 + i]


@kernel
def take_columns(importance: Floats, start: int, into: Floats) -> None:
    """The importances under the elements from `start` on, where every row has as many as there are columns."""
    column = start % len(importance)
    for index in range(len(into)):
        into[index] = importance[column]
        column = column + 1 if column + 1 < len(importance) else 0


@kernel
def sum_squares(x: Floats, length: int, sums: Floats) -> None:
    """sums[i]: of the squares of the i-th run of `length` elements, added one by one; four runs go together."""
    last = len(x) // length - 1
    for first in range(0, last + 1, 4):
        second, third, fourth = min(first + 1, last), min(first + 2, last), min(first + 3, last)
        first_run, second_run = x[first * length :], x[second * length :]
        third_run, fourth_run = x[third * length :], x[fourth * length :]
        first_sum, second_sum, third_sum, fourth_sum = ZERO, ZERO, ZERO, ZERO
        for i in range(length):
            first_sum += first_run[i] * first_run[i]
            second_sum += second_run[i] * second_run[i]
            third_sum += third_run[i] * third_run[i]
            fourth_sum += fourth_run[i] * fourth_run[i]
        sums[first], sums[second], sums[third], sums[fourth] = first_sum, second_sum, third_sum, fourth_sum


@kernel
def weigh(x: Floats, weights: Floats, variances: Floats, run: int, n: int) -> None:
    """Turn importances into ggml's weights: times the root of (a variance, plus the value's square).

    The i-th variance is that of the i-th run of `run` sub-blocks of `n` elements.
    """
    around = np.empty(LANES, np.float32)
    for group in range(len(x) // (n * LANES)):
        for lane in range(LANES):
            around[lane] = variances[min((group * LANES + lane) // run, len(variances) - 1)]
        for start in range(group * n * LANES, (group + 1) * n * LANES, EIGHT):
            xs, ws = x[start : start + EIGHT], weights[start : start + EIGHT]
            for lane in range(LANES):
                variance = around[lane]
                for i in range(8):
                    value = xs[i * LANES + lane]
                    ws[i * LANES + lane] = ws[i * LANES + lane] * np.sqrt(variance + value * value)


@inlined
def fill(state: Floats, offset: int, value: float32) -> None:
    for lane in range(LANES):
        state[offset + lane] = value
