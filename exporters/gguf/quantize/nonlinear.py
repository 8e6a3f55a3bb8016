"""IQ4_NL and IQ4_XS: sixteen values at uneven distances, times the scale of a sub-block of 32.

IQ4_NL stores that scale as float16, IQ4_XS as six bits of a super-block's. The layouts are those of block_iq4_nl and
block_iq4_xs in ggml-common.h, the search that of quantize_row_iq4_nl_impl in ggml-quants.c.
"""

from __future__ import annotations

import numpy as np
from numpy import float32, int32

from isoform.compiled import inlined, kernel
from isoform.exporters.gguf.quantize.lanes import (
    BEST,
    CHUNK,
    EIGHT,
    FACTOR,
    LANES,
    ONE,
    PEAK,
    SCALE,
    SIZE,
    STATE,
    SUM_LL,
    SUM_XL,
    SUPER,
    ZERO,
    Bytes,
    Floats,
    all_finite,
    fill,
    spread,
    sum_squares,
    take_columns,
    weigh,
)
from isoform.exporters.gguf.quantize.packing import put_half
from isoform.exporters.gguf.quantize.rounding import clamp, nearest
from isoform.exporters.gguf.quantize.scales import SMALLEST, peak

SUBS = SUPER // 32
VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
MIDDLES = (VALUES[1:] + VALUES[:-1]) / 2  # exact; a value in the middle goes up


def iq4_nl(x: Floats, out: Bytes, importance: Floats | None) -> bool:
    return _quantize(x, out, importance, 32)


def iq4_xs(x: Floats, out: Bytes, importance: Floats | None) -> bool:
    return _quantize(x, out, importance, SUPER)


def _quantize(x: Floats, out: Bytes, importance: Floats | None, block: int) -> bool:
    lanes, weights, levels = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32), np.empty(CHUNK, np.uint8)
    states = np.zeros(CHUNK // (32 * LANES) * STATE, np.float32)
    for start in range(0, len(x), CHUNK):
        part = x[start : start + CHUNK]
        if not all_finite(part.view(np.int32)):
            return False
        used = -(-len(part) // (32 * LANES)) * 32 * LANES
        spread(part, lanes[:used], 32)
        if importance is None:
            np.multiply(lanes[:used], lanes[:used], out=weights[:used])
        else:
            columns = np.empty(len(part), np.float32)
            take_columns(importance, start, columns)
            spread(columns, weights[:used], 32)
            squares = np.empty(len(part) // block, np.float32)
            sum_squares(part, block, squares)
            weigh(lanes[:used], weights, squares * float32(2 / block), block // 32, 32)
        _search(lanes[:used], weights, states)
        if block == 32:
            _store_nl(part, states, levels, out[start // 32 * 18 :])
        else:
            _store_xs(part, states, levels, out[start // SUPER * 136 :])
    return True


@inlined
def _value(x: float32) -> float32:
    """The nearest of VALUES; a loop over them would keep LLVM from vectorising what is around it."""
    value = VALUES[0]
    value = value if x < MIDDLES[0] else VALUES[1]
    value = value if x < MIDDLES[1] else VALUES[2]
    value = value if x < MIDDLES[2] else VALUES[3]
    value = value if x < MIDDLES[3] else VALUES[4]
    value = value if x < MIDDLES[4] else VALUES[5]
    value = value if x < MIDDLES[5] else VALUES[6]
    value = value if x < MIDDLES[6] else VALUES[7]
    value = value if x < MIDDLES[7] else VALUES[8]
    value = value if x < MIDDLES[8] else VALUES[9]
    value = value if x < MIDDLES[9] else VALUES[10]
    value = value if x < MIDDLES[10] else VALUES[11]
    value = value if x < MIDDLES[11] else VALUES[12]
    value = value if x < MIDDLES[12] else VALUES[13]
    value = value if x < MIDDLES[13] else VALUES[14]
    return value if x < MIDDLES[14] else VALUES[15]


@kernel
def _search(x: Floats, weights: Floats, states: Floats) -> None:
    """Find the scale of each sub-block of 32, in SCALE."""
    length = 32 * LANES
    for group in range(len(x) // length):
        xs, ws = x[group * length : (group + 1) * length], weights[group * length : (group + 1) * length]
        state = states[group * STATE : (group + 1) * STATE]
        peak(xs, state, 32)
        for lane in range(LANES):
            state[FACTOR + lane] = ONE / (-state[PEAK + lane] / float32(-127))
        _explain(xs, ws, state)
        for lane in range(LANES):
            sum_xl, sum_ll = state[SUM_XL + lane], state[SUM_LL + lane]
            scale = sum_xl / sum_ll if sum_ll > ZERO else ZERO
            state[SCALE + lane] = scale
            state[BEST + lane] = scale * sum_xl
        for index in range(-7, 8):
            for lane in range(LANES):
                state[FACTOR + lane] = (float32(index) + float32(-127)) / state[PEAK + lane]
            _explain(xs, ws, state)
            _keep(state)
        for lane in range(LANES):
            state[SCALE + lane] = ZERO if state[SIZE + lane] < SMALLEST else state[SCALE + lane]


@kernel
def _explain(x: Floats, weights: Floats, state: Floats) -> None:
    """The weighted sums over the values that are nearest under FACTOR."""
    fill(state, SUM_XL, ZERO)
    fill(state, SUM_LL, ZERO)
    for start in range(0, 32 * LANES, EIGHT // 2):
        xs, ws = x[start : start + EIGHT // 2], weights[start : start + EIGHT // 2]
        for lane in range(LANES):
            factor, sum_xl, sum_ll = state[FACTOR + lane], state[SUM_XL + lane], state[SUM_LL + lane]
            for i in range(4):
                value = xs[i * LANES + lane]
                near = _value(factor * value)
                weighted = ws[i * LANES + lane] * near
                sum_xl += weighted * value
                sum_ll += weighted * near
            state[SUM_XL + lane] = sum_xl
            state[SUM_LL + lane] = sum_ll


@kernel
def _keep(state: Floats) -> None:
    for lane in range(LANES):
        sum_xl, sum_ll, best = state[SUM_XL + lane], state[SUM_LL + lane], state[BEST + lane]
        better = (sum_ll > ZERO) & (sum_xl * sum_xl > best * sum_ll)
        scale = sum_xl / sum_ll
        state[SCALE + lane] = scale if better else state[SCALE + lane]
        state[BEST + lane] = scale * sum_xl if better else best


@kernel
def _assign(x: Floats, factors: Floats, levels: Bytes) -> None:
    """The index of the nearest of VALUES, under a factor per sub-block of 32."""
    for sub in range(len(factors)):
        xs, ls, factor = x[sub * 32 : sub * 32 + 32], levels[sub * 32 : sub * 32 + 32], factors[sub]
        for i in range(32):
            value, level = factor * xs[i], int32(15)
            for j in range(15):
                level = int32(level - int32(value < MIDDLES[j]))
            ls[i] = level


@kernel
def _pack(levels: Bytes, packed: Bytes) -> None:
    """Sub-blocks of 32: elements 0 to 15 below, 16 to 31 above."""
    for i in range(16):
        packed[i] = levels[i] | levels[i + 16] << 4


@kernel
def _store_nl(x: Floats, states: Floats, levels: Bytes, out: Bytes) -> None:
    count = len(x) // 32
    factors = np.empty(count, np.float32)
    for sub in range(count):
        scale = states[sub // LANES * STATE + SCALE + sub % LANES]
        put_half(scale, out[sub * 18 :])
        factors[sub] = ONE / scale if scale != ZERO else ZERO
    _assign(x, factors, levels)
    for sub in range(count):
        _pack(levels[sub * 32 :], out[sub * 18 + 2 :])


@kernel
def _store_xs(x: Floats, states: Floats, levels: Bytes, out: Bytes) -> None:
    count = len(x) // SUPER
    factors = np.empty(count * SUBS, np.float32)
    for block in range(count):
        packed, state = out[block * 136 :], states[block // 8 * STATE + block % 8 * SUBS :]
        largest, size = ZERO, ZERO
        for j in range(SUBS):
            scale = state[SCALE + j]
            if abs(scale) > size:
                largest, size = scale, abs(scale)
        whole = -largest / float32(32)
        put_half(whole, packed)
        factor = ONE / whole if whole != ZERO else ZERO
        high = 0
        for j in range(SUBS):
            level = clamp(nearest(factor * state[SCALE + j]), int32(-32), int32(31))
            step = whole * float32(level)
            factors[block * SUBS + j] = ONE / step if step != ZERO else ZERO
            code = int(level) + 32
            high |= code >> 4 << 2 * j
            packed[4 + j // 2] = code & 15 if j % 2 == 0 else packed[4 + j // 2] | (code & 15) << 4
        packed[2] = high & 255
        packed[3] = high >> 8
    _assign(x, factors, levels)
    for sub in range(count * SUBS):
        _pack(levels[sub * 32 :], out[sub // SUBS * 136 + 8 + sub % SUBS * 16 :])
