"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: blocks of 32 with a float16 scale; and MXFP4, whose scale is a power of two.

Without importances they follow quantize_row_*_ref of ggml-quants.c, with them quantize_row_*_impl. The layouts are
those of block_q4_0 and so on in ggml-common.h.
"""

from __future__ import annotations

import math

import numpy as np
from numpy import float32, int32

from isoform.compiled import inlined, kernel
from isoform.exporters.gguf.quantize.lanes import (
    CHUNK,
    LANES,
    LOW,
    ONE,
    SCALE,
    SIZE,
    STATE,
    WON_FACTOR,
    WON_LOW,
    ZERO,
    Bytes,
    Floats,
    Integers,
    all_finite,
    spread,
    sum_squares,
    take_columns,
    weigh,
)
from isoform.exporters.gguf.quantize.packing import put_half
from isoform.exporters.gguf.quantize.rounding import away_from_zero, clamp, cut, nearest
from isoform.exporters.gguf.quantize.scales import SMALLEST, search_affine, search_symmetric, won_level

SIGN = int32(-0x80000000)
MAGNITUDE = int32(0x7FFFFFFF)


def q4_0(x: Floats, out: Bytes, importance: Floats | None) -> bool:
    return _symmetric(x, x.view(np.int32), out, 18, 8) if importance is None else _weighted(x, out, importance, 18, 8)


def q5_0(x: Floats, out: Bytes, importance: Floats | None) -> bool:
    return _symmetric(x, x.view(np.int32), out, 22, 16) if importance is None else _weighted(x, out, importance, 22, 16)


def q4_1(x: Floats, out: Bytes, importance: Floats | None) -> bool:
    return _affine(x, x.view(np.int32), out, 20, 15) if importance is None else _weighted(x, out, importance, 20, 15)


def q5_1(x: Floats, out: Bytes, importance: Floats | None) -> bool:
    return _affine(x, x.view(np.int32), out, 24, 31) if importance is None else _weighted(x, out, importance, 24, 31)


def q8_0(x: Floats, out: Bytes, importance: Floats | None) -> bool:
    return _bytes(x, x.view(np.int32), out)


def mxfp4(x: Floats, out: Bytes, importance: Floats | None) -> bool:
    return _powers(x, x.view(np.int32), out)


def _weighted(x: Floats, out: Bytes, importance: Floats, nbytes: int, top: int) -> bool:
    """With importances: the search of the K types over blocks of 32, weighed against the mean square of the row."""
    lanes, weights, columns = (np.empty(CHUNK, np.float32) for _ in range(3))
    states = np.zeros(CHUNK // (32 * LANES) * STATE, np.float32)
    if not all_finite(x.view(np.int32)):
        return False
    width = len(importance)
    squares = np.empty(len(x) // width, np.float32)
    sum_squares(x, width, squares)
    variances = np.repeat(squares / float32(width), width // 32)
    for start in range(0, len(x), CHUNK):
        part = x[start : start + CHUNK]
        used = -(-len(part) // (32 * LANES)) * 32 * LANES
        spread(part, lanes[:used], 32)
        take_columns(importance, start, columns[: len(part)])
        spread(columns[: len(part)], weights[:used], 32)
        weigh(lanes[:used], weights, variances[start // 32 :], 1, 32)
        into = out[start // 32 * nbytes :]
        if top % 2:
            search_affine(lanes[:used], weights, states, 32, int32(top), float32(-0.9), float32(0.05), 36, False, True)
            _store_affine(part, states, into, nbytes, int32(top))
        else:
            search_symmetric(lanes[:used], weights, states, 32, int32(top), True)
            _store_symmetric(part, states, into, nbytes, int32(top))
    return True


@kernel
def _store_affine(x: Floats, states: Floats, out: Bytes, nbytes: int, top: int32) -> None:
    levels = np.empty(32, np.uint8)
    for block in range(len(x) // 32):
        packed, xs = out[block * nbytes :], x[block * 32 :]
        state = states[block // LANES * STATE + block % LANES :]
        put_half(state[SCALE], packed)
        put_half(state[LOW], packed[2:])
        for i in range(32):
            levels[i] = won_level(xs[i], state[WON_FACTOR], state[WON_LOW], top, True)
        _pack(levels, packed[4:], bool(top > 15))


@kernel
def _store_symmetric(x: Floats, states: Floats, out: Bytes, nbytes: int, top: int32) -> None:
    levels = np.empty(32, np.uint8)
    for block in range(len(x) // 32):
        packed, xs = out[block * nbytes :], x[block * 32 :]
        state = states[block // LANES * STATE + block % LANES :]
        put_half(state[SCALE], packed)
        zero = state[SIZE] < SMALLEST
        for i in range(32):
            level = clamp(nearest(state[WON_FACTOR] * xs[i]), int32(-top), int32(top - 1))
            levels[i] = 0 if zero else level + top
        _pack(levels, packed[2:], bool(top > 8))


@inlined
def _pack(levels: Bytes, packed: Bytes, fifth: bool) -> None:
    """The fifth bits, one after another, where there are any; then the low four, elements 16 to 31 above."""
    start = 0
    if fifth:
        start = 4
        for j in range(4):
            byte = 0
            for i in range(8):
                byte |= (levels[8 * j + i] >> 4) << i
            packed[j] = byte
    for i in range(16):
        packed[start + i] = levels[i] & 15 | (levels[i + 16] & 15) << 4


@inlined
def _size(bits: Integers) -> int32:
    """The bits of the largest magnitude of a block; as whole numbers they are in the same order."""
    size = int32(0)
    for i in range(32):
        size = max(size, int32(bits[i] & MAGNITUDE))
    return size


@kernel
def _symmetric(x: Floats, bits: Integers, out: Bytes, nbytes: int, top: int) -> bool:
    """Q4_0 and Q5_0: the value of largest magnitude, the first of several, becomes level -top."""
    levels = np.empty(32, np.uint8)
    whole, highest = float32(top), int32(2 * top - 1)
    middle = whole + float32(0.5)
    for block in range(len(x) // 32):
        xs, bs = x[block * 32 : block * 32 + 32], bits[block * 32 : block * 32 + 32]
        packed = out[block * nbytes :]
        size = _size(bs)
        if size >= int32(0x7F800000):
            return False
        first = int32(31)
        for i in range(31, -1, -1):
            first = int32(i) if int32(bs[i] & MAGNITUDE) == size else first
        scale = (xs[first] if size else ZERO) / -whole
        factor = ONE / scale if scale != ZERO else ZERO
        put_half(scale, packed)
        for i in range(32):
            levels[i] = min(highest, cut(xs[i] * factor + middle))
        _pack(levels, packed[2:], top > 8)
    return True


@kernel
def _affine(x: Floats, bits: Integers, out: Bytes, nbytes: int, top: int) -> bool:
    """Q4_1 and Q5_1: from the smallest value, level 0, to the largest."""
    levels = np.empty(32, np.uint8)
    highest = int32(top)
    for block in range(len(x) // 32):
        xs, bs = x[block * 32 : block * 32 + 32], bits[block * 32 : block * 32 + 32]
        packed = out[block * nbytes :]
        # Whole numbers in the order of the float32 whose bits they come from.
        least, most = int32(0x7FFFFFFF), SIGN
        for i in range(32):
            key = int32(bs[i] ^ int32(int32(bs[i] >> int32(31)) & MAGNITUDE))
            least, most = min(least, key), max(most, key)
        if most >= int32(0x7F800000) or least <= int32(-0x7F800001):
            return False
        low = int32(least ^ int32(int32(least >> int32(31)) & MAGNITUDE)).view(np.float32)
        high = int32(most ^ int32(int32(most >> int32(31)) & MAGNITUDE)).view(np.float32)
        if low == ZERO:
            # Of zeros ggml takes the first, whatever its sign.
            for i in range(31, -1, -1):
                low = xs[i] if xs[i] == ZERO else low
        scale = (high - low) / float32(top)
        factor = ONE / scale if scale != ZERO else ZERO
        put_half(scale, packed)
        put_half(low, packed[2:])
        for i in range(32):
            levels[i] = min(highest, cut((xs[i] - low) * factor + float32(0.5)))
        _pack(levels, packed[4:], top > 15)
    return True


@kernel
def _bytes(x: Floats, bits: Integers, out: Bytes) -> bool:
    """Q8_0: the largest magnitude becomes 127."""
    for block in range(len(x) // 32):
        xs, packed = x[block * 32 : block * 32 + 32], out[block * 34 : block * 34 + 34]
        size = _size(bits[block * 32 : block * 32 + 32])
        if size >= int32(0x7F800000):
            return False
        scale = int32(size).view(np.float32) / float32(127)
        factor = ONE / scale if scale != ZERO else ZERO
        put_half(scale, packed)
        for i in range(32):
            packed[i + 2] = away_from_zero(xs[i] * factor)
    return True


@kernel
def _powers(x: Floats, bits: Integers, out: Bytes) -> bool:
    """MXFP4: an exponent, and the nearest of 0, 1, 2, 3, 4, 6, 8 and 12 times half its power of two, with a sign."""
    levels = np.empty(32, np.uint8)
    for block in range(len(x) // 32):
        xs, packed = x[block * 32 : block * 32 + 32], out[block * 17 :]
        size = _size(bits[block * 32 : block * 32 + 32])
        if size >= int32(0x7F800000):
            return False
        power = math.log2(int32(size).view(np.float32)) if size else float32(-125)
        exponent = math.floor(power) + 125 & 255
        packed[0] = exponent
        half = int32(exponent - 1 << 23 if exponent >= 2 else 0x200000 << exponent).view(np.float32)
        for i in range(32):
            value, level = abs(xs[i]), int32(0)
            error = abs(ZERO * half - value)
            for j in range(1, 8):
                miss = abs(STEPS[j] * half - value)
                level = int32(j) if miss < error else level
                error = miss if miss < error else error
            levels[i] = int32(level + int32(8)) if (xs[i] < ZERO) & (level != int32(0)) else level
        _pack(levels, packed[1:], False)
    return True


STEPS = np.array([0, 1, 2, 3, 4, 6, 8, 12], np.float32)
