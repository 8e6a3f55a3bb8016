"""Q3_K and Q6_K: super-blocks of 256 in sub-blocks of 16, each with a signed scale and levels on both sides of 0.

The layouts are those of block_q3_K and block_q6_K in ggml-common.h.
"""

from __future__ import annotations

import numpy as np
from numpy import float32, int32

from isoform.compiled import inlined, kernel
from isoform.exporters.gguf.quantize.affine import gather, scatter
from isoform.exporters.gguf.quantize.lanes import (
    CHUNK,
    LANES,
    SCALE,
    SIZE,
    STATE,
    STEP,
    SUM_W,
    SUPER,
    WON_FACTOR,
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
from isoform.exporters.gguf.quantize.packing import pack_bit, pack_pairs, put_half
from isoform.exporters.gguf.quantize.rounding import clamp, from_half, nearest, to_half
from isoform.exporters.gguf.quantize.scales import SMALLEST, descend_symmetric, search_symmetric

SUBS = SUPER // 16


def q6_k(x: Floats, out: Bytes, importance: Floats | None) -> bool:
    lanes, weights, levels = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32), np.empty(CHUNK, np.uint8)
    states = np.zeros(CHUNK // (16 * LANES) * STATE, np.float32)
    for start in range(0, len(x), CHUNK):
        part = x[start : start + CHUNK]
        if not all_finite(part.view(np.int32)):
            return False
        used = -(-len(part) // (16 * LANES)) * 16 * LANES
        spread(part, lanes[:used], 16)
        if importance is None:
            np.multiply(lanes[:used], lanes[:used], out=weights[:used])
        else:
            columns = np.empty(len(part), np.float32)
            take_columns(importance, start, columns)
            spread(columns, weights[:used], 16)
        search_symmetric(lanes[:used], weights, states, 16, int32(32), True)
        _store_q6_k(part, states, levels, out[start // SUPER * 210 :])
    return True


def q3_k(x: Floats, out: Bytes, importance: Floats | None) -> bool:
    lanes, weights, levels = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32), np.empty(CHUNK, np.uint8)
    states = np.zeros(CHUNK // (16 * LANES) * STATE, np.float32)
    scales, wholes = np.empty(CHUNK // 16, np.uint8), np.empty(2 * CHUNK // SUPER, np.float32)
    for start in range(0, len(x), CHUNK):
        part = x[start : start + CHUNK]
        if not all_finite(part.view(np.int32)):
            return False
        used, count = -(-len(part) // (16 * LANES)) * 16 * LANES, len(part) // SUPER
        spread(part, lanes[:used], 16)
        if importance is None:
            descend_symmetric(lanes[:used], weights, states, 16, int32(4))
            _round_scales(states, count, scales, wholes)
            _store_q3_k(part, scales, wholes, states, levels, weights, out[start // SUPER * 110 :])
        else:
            columns = np.empty(len(part), np.float32)
            take_columns(importance, start, columns)
            spread(columns, weights[:used], 16)
            squares = np.empty(count, np.float32)
            sum_squares(part, SUPER, squares)
            weigh(lanes[:used], weights, float32(2) * squares / float32(SUPER), SUBS, 16)
            search_symmetric(lanes[:used], weights, states, 16, int32(4), True)
            _fit_scales(weights[:used], states, count, scales, wholes)
            _store_q3_k(part, scales, wholes, states, levels, weights[:0], out[start // SUPER * 110 :])
    return True


def _fit_scales(weights: Floats, states: Floats, count: int, scales: Bytes, wholes: Floats) -> None:
    """Levels of the scales of Q3_K by a search of its own, each weighted like its sub-block."""
    groups = -(-count // LANES)
    values, sums = np.zeros(groups * SUBS * LANES, np.float32), np.zeros(groups * SUBS * LANES, np.float32)
    fits = np.zeros(groups * STATE, np.float32)
    _sum_weights(weights, states)
    gather(states, SUM_W, float32(1), count, SUBS, sums)
    gather(states, SCALE, float32(1), count, SUBS, values)
    search_symmetric(values, sums, fits, SUBS, int32(32), False)
    levels = np.empty(len(values), np.int32)
    _take_levels(values, fits, levels)
    scatter(levels, fits, count, SUBS, scales, wholes)


@kernel
def _sum_weights(weights: Floats, states: Floats) -> None:
    for group in range(len(weights) // (16 * LANES)):
        ws, state = weights[group * 16 * LANES :], states[group * STATE :]
        for lane in range(LANES):
            total = ZERO
            for i in range(16):
                total += ws[i * LANES + lane]
            state[SUM_W + lane] = total


@kernel
def _take_levels(values: Floats, fits: Floats, levels: Integers) -> None:
    """The levels that a search of side-by-side values found, counted from 0."""
    for group in range(len(values) // (SUBS * LANES)):
        vs, ls = values[group * SUBS * LANES :], levels[group * SUBS * LANES :]
        fit = fits[group * STATE :]
        for i in range(SUBS):
            for lane in range(LANES):
                level = clamp(nearest(fit[WON_FACTOR + lane] * vs[i * LANES + lane]), int32(-32), int32(31))
                ls[i * LANES + lane] = 0 if fit[SIZE + lane] < SMALLEST else level + 32


@inlined
def _largest(state: Floats) -> float32:
    """The scale of largest magnitude of a super-block, the first of several."""
    largest, size = ZERO, ZERO
    for j in range(SUBS):
        scale = state[SCALE + j]
        if abs(scale) > size:
            largest, size = scale, abs(scale)
    return largest


@kernel
def _round_scales(states: Floats, count: int, scales: Bytes, wholes: Floats) -> None:
    """Levels of the scales of Q3_K, from 0 to 63, as parts of the largest."""
    for block in range(count):
        state = states[block // 4 * STATE + block % 4 * SUBS :]
        largest = _largest(state)
        factor = float32(-32) / largest if largest != ZERO else ZERO
        for j in range(SUBS):
            # ggml keeps the level in eight bits before it clamps.
            level = (int(nearest(factor * state[SCALE + j])) + 128 & 255) - 128
            scales[block * SUBS + j] = max(-32, min(31, level)) + 32 if largest != ZERO else 0
        wholes[2 * block] = float32(1) / factor if largest != ZERO else ZERO


@kernel
def _store_q3_k(
    x: Floats, scales: Bytes, wholes: Floats, states: Floats, levels: Bytes, found: Floats, out: Bytes
) -> None:
    for block in range(len(x) // SUPER):
        packed, sc = out[block * 110 :], scales[block * SUBS :]
        state = states[block // 4 * STATE + block % 4 * SUBS :]
        put_half(wholes[2 * block], packed[108:])
        scale = from_half(to_half(wholes[2 * block]))
        for j in range(4):
            packed[96 + j] = sc[j] & 15 | (sc[j + 8] & 15) << 4
            packed[100 + j] = sc[j + 4] & 15 | (sc[j + 12] & 15) << 4
            packed[104 + j] = sc[j] >> 4 | sc[j + 4] >> 4 << 2 | sc[j + 8] >> 4 << 4 | sc[j + 12] >> 4 << 6
        for j in range(SUBS):
            state[STEP + j] = scale * float32(int32(sc[j]) - 32)
    _assign(x, states, levels, found, int32(4))
    for block in range(len(x) // SUPER):
        packed, ls = out[block * 110 :], levels[block * SUPER :]
        pack_bit(ls, 2, packed)
        pack_pairs(ls, packed[32:])


@kernel
def _store_q6_k(x: Floats, states: Floats, levels: Bytes, out: Bytes) -> None:
    for block in range(len(x) // SUPER):
        packed, state = out[block * 210 :], states[block // 4 * STATE + block % 4 * SUBS :]
        factor = float32(-128) / _largest(state)
        put_half(float32(1) / factor, packed[208:])
        whole = from_half(to_half(float32(1) / factor))
        for j in range(SUBS):
            code = (min(127, int(nearest(factor * state[SCALE + j]))) + 128 & 255) - 128
            packed[192 + j] = code & 255
            state[STEP + j] = whole * float32(code)
    _assign(x, states, levels, x[:0], int32(32))
    for block in range(len(x) // SUPER):
        packed, ls = out[block * 210 :], levels[block * SUPER :]
        if abs(_largest(states[block // 4 * STATE + block % 4 * SUBS :])) < SMALLEST:
            for i in range(210):
                packed[i] = 0
            continue
        for j in range(2):
            for i in range(32):
                first, second = ls[128 * j + i], ls[128 * j + i + 32]
                third, fourth = ls[128 * j + i + 64], ls[128 * j + i + 96]
                packed[64 * j + i] = first & 15 | (third & 15) << 4
                packed[64 * j + i + 32] = second & 15 | (fourth & 15) << 4
                packed[128 + 32 * j + i] = first >> 4 | second >> 4 << 2 | third >> 4 << 4 | fourth >> 4 << 6


@kernel
def _assign(x: Floats, states: Floats, levels: Bytes, found: Floats, top: int32) -> None:
    """The levels under the stored scales (STEP), counted from 0; those of the search where a stored scale is 0.

    `found` are the levels of the search, side by side, or nothing where WON_FACTOR gives them back.
    """
    steps = np.empty(SUPER, np.float32)
    for block in range(len(x) // SUPER):
        xs, ls = x[block * SUPER : (block + 1) * SUPER], levels[block * SUPER : (block + 1) * SUPER]
        state = states[block // 4 * STATE + block % 4 * SUBS :]
        for j in range(SUBS):
            for i in range(16):
                steps[16 * j + i] = state[STEP + j]
        for i in range(SUPER):
            ls[i] = int32(clamp(nearest(xs[i] / steps[i]), int32(-top), int32(top - 1)) + top)
        for j in range(SUBS):
            if state[STEP + j] == ZERO:
                for i in range(16):
                    if state[SIZE + j] < SMALLEST:
                        level = int32(-top)
                    elif len(found):
                        level = int32(found[(block // 4 * 16 + i) * LANES + block % 4 * SUBS + j])
                    else:
                        level = clamp(nearest(state[WON_FACTOR + j] * xs[16 * j + i]), int32(-top), int32(top - 1))
                    ls[16 * j + i] = level + top
