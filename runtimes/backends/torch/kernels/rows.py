"""Kernels over the rows of bf16 activations."""

from __future__ import annotations

import numpy as np
from numpy import float32

from isoform.compiled import reordering_kernel
from isoform.runtimes.backends.torch.kernels.memory import bytes_at, exponential, floats_at, halves_at, rounded, widened

EPSILON = 2.0**-7  # of bf16


@reordering_kernel
def bytes_of_rows(x: int, stride: int, rows: int, columns: int, zero: int, numbers: int, scales: int) -> None:
    """`rounding.byte_rows`: x (rows, columns) with `stride` between rows -> uint8, and a bf16 scale for each row."""
    made = halves_at(scales, rows)
    share = float32((1.0 + EPSILON) / (zero - 1))
    middle = float32(zero + 0.5)
    for n in range(rows):
        source = halves_at(x + 2 * n * stride, columns)
        target = bytes_at(numbers + n * columns, columns)
        peak = np.uint16(0)
        for i in range(columns):
            peak = max(peak, np.uint16(source[i] & np.uint16(0x7FFF)))
        bits = rounded(max(widened(peak) * share, float32(1e-30)) if peak <= 0x7F80 else widened(peak))
        made[n] = bits
        factor = float32(1.0) / widened(bits)
        for i in range(columns):
            target[i] = np.uint8(np.int32(widened(source[i]) * factor + middle))


@reordering_kernel
def digits_of_rows(x: int, stride: int, rows: int, columns: int, zero: int, highs: int, lows: int, scales: int) -> None:
    """`rounding.double_rows`: x (rows, columns) -> two digits of uint8, and a float32 scale for each row."""
    made = floats_at(scales, rows)
    base = float32(2 * zero - 1)
    for n in range(rows):
        source = halves_at(x + 2 * n * stride, columns)
        high = bytes_at(highs + n * columns, columns)
        low = bytes_at(lows + n * columns, columns)
        peak = np.uint16(0)
        for i in range(columns):
            peak = max(peak, np.uint16(source[i] & np.uint16(0x7FFF)))
        scale = max(widened(peak) / (float32(zero - 1) * (base + float32(1.0))), float32(1e-30))
        made[n] = scale if peak <= 0x7F80 else widened(peak)
        factor = float32(1.0) / scale
        for i in range(columns):
            number = np.floor(widened(source[i]) * factor + float32(0.5))
            digit = np.floor(number / base + float32(0.5))
            high[i] = np.uint8(np.int32(digit) + np.int32(zero))
            low[i] = np.uint8(np.int32(number - digit * base) + np.int32(zero))


@reordering_kernel
def gated_rows(x: int, stride: int, rows: int, columns: int, line: float, cube: float, out: int) -> None:
    """g / (1 + exp(-line g - cube g^3)) * u, for g and u the halves of x: (rows, 2 * columns) -> (rows, columns)."""
    a, b = float32(line), float32(cube)
    for n in range(rows):
        gate, up = halves_at(x + 2 * n * stride, columns), halves_at(x + 2 * (n * stride + columns), columns)
        target = halves_at(out + 2 * n * columns, columns)
        for i in range(columns):
            value = widened(gate[i])
            power = value * (a + b * value * value)
            target[i] = rounded(value / (float32(1.0) + exponential(-power)) * widened(up[i]))


@reordering_kernel
def norm_of_rows(x: int, stride: int, rows: int, columns: int, weight: int, epsilon: float, out: int) -> None:
    """`ops.rms_norm`: x (rows, columns) with `stride` between rows, all of it bf16."""
    by = halves_at(weight, columns)
    for n in range(rows):
        source = halves_at(x + 2 * n * stride, columns)
        target = halves_at(out + 2 * n * columns, columns)
        total = float32(0.0)
        for i in range(columns):
            value = widened(source[i])
            total += value * value
        factor = float32(1.0) / np.sqrt(total / float32(columns) + float32(epsilon))
        for i in range(columns):
            target[i] = rounded(widened(source[i]) * factor * widened(by[i]))


@reordering_kernel
def rotated_rows(
    x: int, stride: int, rows: int, heads: int, pairs: int, cos: int, sin: int, every: int, out: int
) -> None:
    """`ops.rotary` of heads with two halves of `pairs` channels; cos and sin (rows or one of `every`, pairs)."""
    for n in range(rows):
        source = halves_at(x + 2 * n * stride, heads * 2 * pairs)
        target = halves_at(out + 2 * n * heads * 2 * pairs, heads * 2 * pairs)
        c, s = halves_at(cos + 2 * (n % every) * pairs, pairs), halves_at(sin + 2 * (n % every) * pairs, pairs)
        for head in range(heads):
            first = head * 2 * pairs
            second = first + pairs
            for i in range(pairs):
                a, b = widened(source[first + i]), widened(source[second + i])
                target[first + i] = rounded(a * widened(c[i]) - b * widened(s[i]))
                target[second + i] = rounded(b * widened(c[i]) + a * widened(s[i]))
