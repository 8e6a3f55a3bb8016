"""Q2_K, Q4_K and Q5_K: super-blocks of 256 whose sub-blocks have a scale and a minimum of their own.

The layouts are those of block_q2_K, block_q4_K and block_q5_K in ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy import float32, int32

from isoform.compiled import kernel
from isoform.exporters.gguf.quantize.lanes import (
    BELOW,
    CHUNK,
    EIGHT,
    LANES,
    LOW,
    SCALE,
    STATE,
    STEP,
    SUM_W,
    SUPER,
    WON_FACTOR,
    WON_LOW,
    ZERO,
    Bytes,
    Floats,
    Integers,
    all_finite,
    fill,
    spread,
    sum_squares,
    take_columns,
    weigh,
)
from isoform.exporters.gguf.quantize.packing import pack_bit, pack_nibbles, pack_pairs, put_half
from isoform.exporters.gguf.quantize.rounding import clamp, from_half, nearest, to_half
from isoform.exporters.gguf.quantize.scales import fit_positive, search_affine, won_level


@dataclass(frozen=True, slots=True)
class Affine:
    """How ggml searches the scales of a type, and how it lays a super-block out."""

    n: int  # elements of a sub-block
    top: int  # the highest level
    nbytes: int  # of a super-block
    scale_top: int  # the highest level of the scales and minimums themselves
    first: float  # the first candidate, `steps` more follow
    steps: int
    variance: float  # what the mean square counts for where importances weigh in
    weights: Callable[[Floats, Floats], None]
    store: Callable[[Floats, Bytes, Bytes, Floats, Floats, Bytes, bool, Bytes], None]
    absolute: bool = False  # whether the error itself is weighed without importances, not its square
    clamps: bool = False  # whether negative scales, which wrap to high levels, are cut where importances weigh in


def _quantize(x: Floats, out: Bytes, importance: Floats | None, form: Affine) -> bool:
    n, top, subs = form.n, int32(form.top), SUPER // form.n
    lanes, weights, levels = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32), np.empty(CHUNK, np.uint8)
    states = np.zeros(CHUNK // (n * LANES) * STATE, np.float32)
    scales, lows = np.empty(CHUNK // n, np.uint8), np.empty(CHUNK // n, np.uint8)
    wholes = np.empty(2 * CHUNK // SUPER, np.float32)
    for start in range(0, len(x), CHUNK):
        part = x[start : start + CHUNK]
        if not all_finite(part.view(np.int32)):
            return False
        used = -(-len(part) // (n * LANES)) * n * LANES
        spread(part, lanes[:used], n)
        if importance is None:
            form.weights(lanes[:used], weights)
            search_affine(
                lanes[:used],
                weights,
                states,
                n,
                top,
                float32(form.first),
                float32(0.1),
                form.steps,
                form.absolute,
                False,
            )
            _round_scales(states, len(part) // SUPER, subs, form.scale_top, scales, lows, wholes)
        else:
            columns = np.empty(len(part), np.float32)
            take_columns(importance, start, columns)
            spread(columns, weights[:used], n)
            squares = np.empty(len(part) // SUPER, np.float32)
            sum_squares(part, SUPER, squares)
            weigh(lanes[:used], weights, float32(form.variance) * squares / float32(SUPER), subs, n)
            search_affine(lanes[:used], weights, states, n, top, float32(-0.9), float32(0.05), 36, False, True)
            _fit_scales(states, len(part) // SUPER, subs, form.scale_top, scales, lows, wholes)
            if form.clamps:
                np.minimum(scales, form.scale_top, out=scales)
                np.minimum(lows, form.scale_top, out=lows)
        blocks = start // SUPER * form.nbytes
        form.store(part, scales, lows, wholes, states, levels, importance is not None, out[blocks:])
    return True


def _fit_scales(states: Floats, count: int, subs: int, top: int, scales: Bytes, lows: Bytes, wholes: Floats) -> None:
    """Levels of the scales and of the minimums, each by a search of its own, weighted like the sub-blocks."""
    groups = -(-count // LANES)
    room = groups * subs * LANES
    values, weights, levels = np.zeros(room, np.float32), np.zeros(room, np.float32), np.zeros(room, np.int32)
    fits = np.zeros(groups * STATE, np.float32)
    gather(states, SUM_W, float32(1), count, subs, weights)
    for index, offset, sign, found in ((0, SCALE, 1, scales), (1, LOW, -1, lows)):
        gather(states, offset, float32(sign), count, subs, values)
        fit_positive(values, weights, levels, fits, subs, int32(top))
        scatter(levels, fits, count, subs, found, wholes[index:])


@kernel
def gather(states: Floats, offset: int, sign: float32, count: int, subs: int, values: Floats) -> None:
    """What the sub-blocks hold at an offset, super-blocks side by side."""
    for block in range(count):
        group = block // LANES
        for j in range(subs):
            sub = block * subs + j
            found = states[sub // LANES * STATE + offset + sub % LANES]
            values[(group * subs + j) * LANES + block % LANES] = sign * found


@kernel
def scatter(levels: Integers, fits: Floats, count: int, subs: int, found: Bytes, wholes: Floats) -> None:
    """Levels of super-blocks side by side, one super-block after another; every second of `wholes` is their scale."""
    for block in range(count):
        group = block // LANES
        for j in range(subs):
            found[block * subs + j] = levels[(group * subs + j) * LANES + block % LANES]
        wholes[2 * block] = fits[group * STATE + SCALE + block % LANES]


@kernel
def _round_scales(states: Floats, count: int, subs: int, top: int, scales: Bytes, lows: Bytes, wholes: Floats) -> None:
    """Levels of the scales and of the minimums as parts of their largest."""
    whole = float32(top)
    for block in range(count):
        most, deepest = ZERO, ZERO
        state = states[block * subs // LANES * STATE + block * subs % LANES :]
        for j in range(subs):
            scale, depth = state[SCALE + j], -state[LOW + j]
            most = scale if scale > most else most
            deepest = depth if depth > deepest else deepest
        by_scale = whole / most if most > ZERO else ZERO
        by_depth = whole / deepest if deepest > ZERO else ZERO
        for j in range(subs):
            # ggml keeps them in eight bits before it compares.
            of_scale = int(nearest(by_scale * state[SCALE + j])) & 255
            of_depth = int(nearest(by_depth * -state[LOW + j])) & 255
            scales[block * subs + j] = of_scale if subs == 16 else min(top, of_scale)
            lows[block * subs + j] = of_depth if subs == 16 else min(top, of_depth)
        wholes[2 * block] = most / whole
        wholes[2 * block + 1] = deepest / whole


@kernel
def _weigh_by_size(x: Floats, weights: Floats) -> None:
    """Weights of sub-blocks of 32: the root of their mean square, plus the size of the value."""
    total = np.empty(LANES, np.float32)
    for first in range(0, len(x), 32 * LANES):
        fill(total, 0, ZERO)
        for start in range(first, first + 32 * LANES, EIGHT):
            xs = x[start : start + EIGHT]
            for lane in range(LANES):
                value = total[lane]
                for i in range(8):
                    value += xs[i * LANES + lane] * xs[i * LANES + lane]
                total[lane] = value
        for lane in range(LANES):
            total[lane] = np.sqrt(total[lane] / float32(32))
        for start in range(first, first + 32 * LANES, EIGHT):
            xs, ws = x[start : start + EIGHT], weights[start : start + EIGHT]
            for lane in range(LANES):
                mean = total[lane]
                for i in range(8):
                    ws[i * LANES + lane] = mean + abs(xs[i * LANES + lane])


@kernel
def _weigh_by_magnitude(x: Floats, weights: Floats) -> None:
    for index in range(len(x)):
        weights[index] = abs(x[index])


@kernel
def _store_q4_k(
    x: Floats, scales: Bytes, lows: Bytes, wholes: Floats, states: Floats, levels: Bytes, early: bool, out: Bytes
) -> None:
    _store_scales(scales, lows, wholes, states, len(x) // SUPER, 144, out)
    _assign(x, states, levels, 32, int32(15), early)
    for block in range(len(x) // SUPER):
        pack_nibbles(levels[block * SUPER :], out[block * 144 + 16 :])


@kernel
def _store_q5_k(
    x: Floats, scales: Bytes, lows: Bytes, wholes: Floats, states: Floats, levels: Bytes, early: bool, out: Bytes
) -> None:
    _store_scales(scales, lows, wholes, states, len(x) // SUPER, 176, out)
    _assign(x, states, levels, 32, int32(31), early)
    for block in range(len(x) // SUPER):
        pack_bit(levels[block * SUPER :], 4, out[block * 176 + 16 :])
        pack_nibbles(levels[block * SUPER :], out[block * 176 + 48 :])


@kernel
def _store_q2_k(
    x: Floats, scales: Bytes, lows: Bytes, wholes: Floats, states: Floats, levels: Bytes, early: bool, out: Bytes
) -> None:
    for block in range(len(x) // SUPER):
        packed, state = out[block * 84 :], states[block // 4 * STATE + block % 4 * 16 :]
        scale, low = wholes[2 * block], wholes[2 * block + 1]
        put_half(scale, packed[80:])
        put_half(low, packed[82:])
        scale, low = from_half(to_half(scale)), from_half(to_half(low))
        for j in range(16):
            packed[j] = scales[block * 16 + j] | lows[block * 16 + j] << 4
            state[STEP + j] = scale * float32(packed[j] & 15)
            state[BELOW + j] = low * float32(packed[j] >> 4)
    _assign(x, states, levels, 16, int32(3), early)
    for block in range(len(x) // SUPER):
        pack_pairs(levels[block * SUPER :], out[block * 84 + 16 :])


@kernel
def _store_scales(
    scales: Bytes, lows: Bytes, wholes: Floats, states: Floats, count: int, nbytes: int, out: Bytes
) -> None:
    """The first sixteen bytes of Q4_K and Q5_K: two float16, then eight six-bit scales and eight six-bit minimums.

    What they come to for each sub-block goes to STEP and BELOW.
    """
    for block in range(count):
        packed, state = out[block * nbytes :], states[block // 8 * STATE + block % 8 * 8 :]
        sc, mn = scales[block * 8 :], lows[block * 8 :]
        scale, low = wholes[2 * block], wholes[2 * block + 1]
        put_half(scale, packed)
        put_half(low, packed[2:])
        scale, low = from_half(to_half(scale)), from_half(to_half(low))
        code = packed[4:]
        for j in range(4):
            code[j] = sc[j] | sc[j + 4] >> 4 << 6
            code[j + 4] = mn[j] | mn[j + 4] >> 4 << 6
            code[j + 8] = sc[j + 4] & 15 | (mn[j + 4] & 15) << 4
        for j in range(4):
            state[STEP + j] = scale * float32(code[j] & 63)
            state[BELOW + j] = low * float32(code[j + 4] & 63)
            state[STEP + j + 4] = scale * float32(code[j + 8] & 15 | code[j] >> 6 << 4)
            state[BELOW + j + 4] = low * float32(code[j + 8] >> 4 | code[j + 4] >> 6 << 4)


@kernel
def _assign(x: Floats, states: Floats, levels: Bytes, n: int, top: int32, early: bool) -> None:
    """The levels under the stored scales and minimums; those of the search where a stored scale is 0."""
    subs = SUPER // n
    steps, belows = np.empty(SUPER, np.float32), np.empty(SUPER, np.float32)
    for block in range(len(x) // SUPER):
        xs, ls = x[block * SUPER : (block + 1) * SUPER], levels[block * SUPER : (block + 1) * SUPER]
        state = states[block * subs // LANES * STATE + block * subs % LANES :]
        for j in range(subs):
            for i in range(n):
                steps[n * j + i] = state[STEP + j]
                belows[n * j + i] = state[BELOW + j]
        for i in range(SUPER):
            ls[i] = clamp(nearest((xs[i] + belows[i]) / steps[i]), int32(0), top)
        for j in range(subs):
            if state[STEP + j] == ZERO:
                for i in range(n):
                    ls[n * j + i] = won_level(xs[n * j + i], state[WON_FACTOR + j], state[WON_LOW + j], top, early)


Q2_K = Affine(16, 3, 84, 15, -0.5, 15, 1.0, _weigh_by_magnitude, _store_q2_k, absolute=True)
Q4_K = Affine(32, 15, 144, 63, -1.0, 20, 2.0, _weigh_by_size, _store_q4_k)
Q5_K = Affine(32, 31, 176, 63, -0.5, 15, 2.0, _weigh_by_size, _store_q5_k, clamps=True)


def q2_k(x: Floats, out: Bytes, importance: Floats | None) -> bool:
    return _quantize(x, out, importance, Q2_K)


def q4_k(x: Floats, out: Bytes, importance: Floats | None) -> bool:
    return _quantize(x, out, importance, Q4_K)


def q5_k(x: Floats, out: Bytes, importance: Floats | None) -> bool:
    return _quantize(x, out, importance, Q5_K)
