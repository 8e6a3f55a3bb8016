"""Q4_K, Q5_K and Q2_K: super-blocks of 256 whose sub-blocks have a scale and a minimum of their own.

The layouts are those of block_q4_K, block_q5_K and block_q2_K in ggml-common.h. `x` holds whole rows of `columns`
elements one after another, `importance` one value per column, or nothing.
"""

from __future__ import annotations

import numpy as np
from numpy import float32, int32
from numpy.typing import NDArray

from isoform.exporters.gguf.quantize.compiled import inlined, kernel
from isoform.exporters.gguf.quantize.lanes import (
    BELOW,
    EIGHT,
    ERROR,
    LANES,
    LOW,
    SCALE,
    STATE,
    STEP,
    SUM_W,
    VARIANCE,
    WON_FACTOR,
    WON_LOW,
    ZERO,
    all_finite,
    fill,
    spread,
    sum_squares,
    take_columns,
    weigh,
    whole,
)
from isoform.exporters.gguf.quantize.rounding import clamp, from_half, nearest, to_half
from isoform.exporters.gguf.quantize.scales import fit_positive, search_affine

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

SUPER = 256
BATCH = 32 * LANES  # elements that fill every lane with a sub-block of 32


@kernel
def q4_k(x: Floats, out: Bytes, columns: int, importance: Floats) -> bool:
    return _q4_q5(x, out, 144, int32(15), float32(-1), 20, importance)


@kernel
def q5_k(x: Floats, out: Bytes, columns: int, importance: Floats) -> bool:
    return _q4_q5(x, out, 176, int32(31), float32(-0.5), 15, importance)


@kernel
def _q4_q5(x: Floats, out: Bytes, size: int, top: int32, first: float32, steps: int, importance: Floats) -> bool:
    """They differ in the levels and in where the fifth bit goes; `size` is the bytes of a super-block."""
    padded, lanes = np.empty(BATCH, np.float32), np.empty(BATCH, np.float32)
    weights, room = np.empty(BATCH, np.float32), np.empty(BATCH, np.float32)
    state, levels = np.zeros(STATE, np.float32), np.empty(BATCH, np.uint8)
    scales, lows = np.empty(8, np.uint8), np.empty(8, np.uint8)
    for start in range(0, len(x), BATCH):
        if not all_finite(x[start : start + BATCH].view(np.int32)):
            return False
        count = min(BATCH, len(x) - start) // SUPER
        batch = whole(x[start : start + BATCH], padded)
        spread(batch, lanes, 32)
        if len(importance):
            take_columns(importance, start, room)
            spread(room, weights, 32)
            _weigh_by_importance(batch, lanes, weights, state, 32, float32(2))
            search_affine(lanes, weights, room, state, 32, top, float32(-0.9), float32(0.05), 36, False)
        else:
            _weigh_by_size(lanes, weights, state)
            search_affine(lanes, weights, room, state, 32, top, first, float32(0.1), steps, False)
        for block in range(count):
            packed = out[(start // SUPER + block) * size :]
            if len(importance):
                scale, low = _fit_scales(state, block, 8, 63, scales, lows)
            else:
                scale, low = _round_scales(state, block, 8, 63, scales, lows)
                for j in range(8):
                    scales[j], lows[j] = min(63, scales[j]), min(63, lows[j])
            _pack_scales(scale, low, scales, lows, packed)
            scale, low = from_half(to_half(scale)), from_half(to_half(low))
            code = packed[4:16]
            for j in range(8):
                six = code[j] & 63 if j < 4 else code[j + 4] & 15 | code[j - 4] >> 6 << 4
                state[STEP + block * 8 + j] = scale * float32(six)
                six = code[j + 4] & 63 if j < 4 else code[j + 4] >> 4 | code[j] >> 6 << 4
                state[BELOW + block * 8 + j] = low * float32(six)
        _assign(batch, levels, state, 32, top)
        for block in range(count):
            packed = out[(start // SUPER + block) * size :]
            if top > 15:
                _pack_fifth(levels[block * SUPER :], packed[16:])
                _pack_nibbles(levels[block * SUPER :], packed[48:])
            else:
                _pack_nibbles(levels[block * SUPER :], packed[16:])
    return True


@kernel
def q2_k(x: Floats, out: Bytes, columns: int, importance: Floats) -> bool:
    size, top, length = 84, int32(3), 16 * LANES
    padded, lanes = np.empty(length, np.float32), np.empty(length, np.float32)
    weights, room = np.empty(length, np.float32), np.empty(length, np.float32)
    state, levels = np.zeros(STATE, np.float32), np.empty(length, np.uint8)
    scales, lows = np.empty(16, np.uint8), np.empty(16, np.uint8)
    for start in range(0, len(x), length):
        if not all_finite(x[start : start + length].view(np.int32)):
            return False
        count = min(length, len(x) - start) // SUPER
        batch = whole(x[start : start + length], padded)
        spread(batch, lanes, 16)
        if len(importance):
            take_columns(importance, start, room)
            spread(room, weights, 16)
            _weigh_by_importance(batch, lanes, weights, state, 16, float32(1))
            search_affine(lanes, weights, room, state, 16, top, float32(-0.9), float32(0.05), 36, False)
        else:
            for i in range(length):
                weights[i] = abs(lanes[i])
            search_affine(lanes, weights, room, state, 16, top, float32(-0.5), float32(0.1), 15, True)
        for block in range(count):
            packed = out[(start // SUPER + block) * size :]
            if len(importance):
                scale, low = _fit_scales(state, block, 16, 15, scales, lows)
            else:
                scale, low = _round_scales(state, block, 16, 15, scales, lows)
            put_half(scale, packed[80:])
            put_half(low, packed[82:])
            scale, low = from_half(to_half(scale)), from_half(to_half(low))
            for j in range(16):
                packed[j] = scales[j] | lows[j] << 4
                state[STEP + block * 16 + j] = scale * float32(packed[j] & 15)
                state[BELOW + block * 16 + j] = low * float32(packed[j] >> 4)
        _assign(batch, levels, state, 16, top)
        for block in range(count):
            pack_pairs(levels[block * SUPER :], out[(start // SUPER + block) * size + 16 :])
    return True


@kernel
def _weigh_by_size(x: Floats, weights: Floats, state: Floats) -> None:
    """Weights of sub-blocks of 32: the root of the mean square, plus the size of the value."""
    fill(state, ERROR, ZERO)
    for start in range(0, BATCH, EIGHT):
        xs = x[start : start + EIGHT]
        for lane in range(LANES):
            total = state[ERROR + lane]
            for i in range(8):
                total += xs[i * LANES + lane] * xs[i * LANES + lane]
            state[ERROR + lane] = total
    for lane in range(LANES):
        state[ERROR + lane] = np.sqrt(state[ERROR + lane] / float32(32))
    for start in range(0, BATCH, EIGHT):
        xs, ws = x[start : start + EIGHT], weights[start : start + EIGHT]
        for lane in range(LANES):
            mean = state[ERROR + lane]
            for i in range(8):
                ws[i * LANES + lane] = mean + abs(xs[i * LANES + lane])


@kernel
def _weigh_by_importance(batch: Floats, x: Floats, weights: Floats, state: Floats, n: int, times: float32) -> None:
    """From importances: times the root of (`times` the mean square of the super-block, plus the value's square)."""
    sums = np.empty(len(batch) // SUPER, np.float32)
    sum_squares(batch, SUPER, sums)
    for lane in range(LANES):
        state[VARIANCE + lane] = times * sums[lane * n // SUPER] / float32(SUPER)
    weigh(x, weights, state, n)


@kernel
def _round_scales(
    state: Floats, block: int, count: int, top: int, scales: Bytes, lows: Bytes
) -> tuple[float32, float32]:
    """Scales and minimums of a super-block from 0 to `top`, and what they are to be multiplied with."""
    found, minimums = state[SCALE + block * count :], state[LOW + block * count :]
    most, deepest = ZERO, ZERO
    for j in range(count):
        most = found[j] if found[j] > most else most
        deepest = -minimums[j] if -minimums[j] > deepest else deepest
    whole = float32(top)
    by_scale = whole / most if most > ZERO else ZERO
    by_low = whole / deepest if deepest > ZERO else ZERO
    for j in range(count):
        scales[j] = nearest(by_scale * found[j])
        lows[j] = nearest(by_low * -minimums[j])
    return most / whole, deepest / whole


@kernel
def _fit_scales(
    state: Floats, block: int, count: int, top: int, scales: Bytes, lows: Bytes
) -> tuple[float32, float32]:
    """The same where importances weigh in: a search of its own over the scales, and one over the minimums."""
    first = block * count
    found, weights = state[SCALE + first : SCALE + first + count], state[SUM_W + first : SUM_W + first + count]
    scale = fit_positive(found, weights, top, scales)
    return scale, fit_positive(-state[LOW + first : LOW + first + count], weights, top, lows)


@kernel
def _pack_scales(scale: float32, low: float32, scales: Bytes, lows: Bytes, packed: Bytes) -> None:
    """The first sixteen bytes of Q4_K and Q5_K: two float16, then eight six-bit scales and eight six-bit minimums."""
    put_half(scale, packed)
    put_half(low, packed[2:])
    code = packed[4:16]
    for j in range(4):
        code[j] = scales[j] | scales[j + 4] >> 4 << 6
        code[j + 4] = lows[j] | lows[j + 4] >> 4 << 6
        code[j + 8] = scales[j + 4] & 15 | (lows[j + 4] & 15) << 4


@kernel
def _assign(x: Floats, levels: Bytes, state: Floats, n: int, top: int32) -> None:
    """The levels under the rounded scales (STEP) and minimums (BELOW); those of the search where a scale became 0."""
    if n == 16:
        for lane in range(LANES):
            step, below = state[STEP + lane], state[BELOW + lane]
            for i in range(16):
                levels[lane * 16 + i] = clamp(nearest((x[lane * 16 + i] + below) / step), int32(0), top)
    else:
        for lane in range(LANES):
            step, below = state[STEP + lane], state[BELOW + lane]
            for i in range(32):
                levels[lane * 32 + i] = clamp(nearest((x[lane * 32 + i] + below) / step), int32(0), top)
    for lane in range(LANES):
        if state[STEP + lane] == ZERO:
            factor, low = state[WON_FACTOR + lane], state[WON_LOW + lane]
            for i in range(lane * n, lane * n + n):
                levels[i] = clamp(nearest(factor * (x[i] - low)), int32(0), top)


@kernel
def _pack_nibbles(levels: Bytes, packed: Bytes) -> None:
    """The low four bits: elements 0 to 31 of each 64 below, 32 to 63 above."""
    for j in range(4):
        for i in range(32):
            packed[32 * j + i] = levels[64 * j + i] & 15 | (levels[64 * j + i + 32] & 15) << 4


@kernel
def pack_pairs(levels: Bytes, packed: Bytes) -> None:
    """The low two bits: elements 0 to 31 of each 128 lowest, 96 to 127 highest."""
    for j in range(2):
        for i in range(32):
            low = levels[128 * j + i] & 3 | (levels[128 * j + i + 32] & 3) << 2
            high = (levels[128 * j + i + 64] & 3) << 4 | (levels[128 * j + i + 96] & 3) << 6
            packed[32 * j + i] = low | high


@kernel
def _pack_fifth(levels: Bytes, packed: Bytes) -> None:
    """Byte i holds the fifth bits of the elements i, i + 32, i + 64 and so on, the first lowest."""
    for i in range(32):
        byte = 0
        for j in range(8):
            byte |= levels[32 * j + i] >> 4 << j
        packed[i] = byte


@inlined
def put_half(value: float32, packed: Bytes) -> None:
    half = to_half(value)
    packed[0] = half & 255
    packed[1] = half >> 8
