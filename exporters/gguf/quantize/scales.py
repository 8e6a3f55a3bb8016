"""The searches for the scale of a sub-block: ggml's candidates, in ggml's order, for LANES sub-blocks at once.

What they follow: make_qkx2_quants and make_qkx3_quants (`search_affine`), make_qx_quants (`search_symmetric`,
`fit_symmetric`), make_q3_quants (`descend_symmetric`) and make_qp_quants (`fit_positive`) of ggml-quants.c.
"""

from __future__ import annotations

import numpy as np
from numpy import float32, int32

from isoform.compiled import inlined, kernel
from isoform.exporters.gguf.quantize.lanes import (
    BEST,
    EIGHT,
    ERROR,
    FACTOR,
    FIT,
    HIGH,
    LANES,
    LOW,
    ONE,
    PEAK,
    SCALE,
    SIZE,
    STATE,
    SUM_L,
    SUM_LL,
    SUM_W,
    SUM_X,
    SUM_XL,
    TRY_LOW,
    TRY_SCALE,
    WON_FACTOR,
    WON_LOW,
    ZERO,
    Floats,
    Integers,
    fill,
)
from isoform.exporters.gguf.quantize.rounding import ALIGNER, clamp, clamp_early, nearest

SMALLEST = float32(1e-15)  # GROUP_MAX_EPS: values below it count as zeros
TENTH = float32(0.1)
INFINITY = float32(np.inf)


@kernel
def search_affine(
    x: Floats,
    weights: Floats,
    states: Floats,
    n: int,
    top: int32,
    first: float32,
    step: float32,
    steps: int,
    absolute: bool,
    early: bool,
) -> None:
    """Find scale and minimum such that scale * level + minimum is near `x`, for levels from 0 to `top`.

    The result is in SCALE and LOW; WON_FACTOR and WON_LOW give the levels back (`won_level`). `absolute` weighs the
    error itself instead of its square. `early` clamps a candidate's levels before they are rounded, as
    make_qkx3_quants does: that matters past 2**22, where rounding wraps.
    """
    length, whole = n * LANES, float32(top)
    levels = np.empty(length, np.float32)
    for group in range(len(x) // length):
        xs, ws = x[group * length : (group + 1) * length], weights[group * length : (group + 1) * length]
        state = states[group * STATE : (group + 1) * STATE]
        _bounds(xs, ws, state, n)
        for lane in range(LANES):
            low = state[LOW + lane]
            low = ZERO if low > ZERO else low
            factor = whole / (state[HIGH + lane] - low)
            scale = ONE / factor
            state[LOW + lane] = low
            state[FACTOR + lane] = factor
            state[TRY_SCALE + lane] = scale
            state[TRY_LOW + lane] = low
            state[SCALE + lane] = scale
            state[WON_FACTOR + lane] = factor
            state[WON_LOW + lane] = low
        _assign_affine(xs, ws, levels, state, n, top, False)
        _measure(xs, ws, levels, state, n, absolute)
        for lane in range(LANES):
            state[BEST + lane] = state[ERROR + lane]
        for index in range(steps + 1):
            wanted = first + step * float32(index) + whole
            for lane in range(LANES):
                state[FACTOR + lane] = wanted / (state[HIGH + lane] - state[LOW + lane])
            _assign_affine(xs, ws, levels, state, n, top, early)
            _solve(state)
            _measure(xs, ws, levels, state, n, absolute)
            _keep(state)


@inlined
def won_level(value: float32, factor: float32, low: float32, top: int32, early: bool) -> int32:
    """The level that the search gave a value, from WON_FACTOR and WON_LOW. The first candidate is never early."""
    if early and abs(factor) < INFINITY:
        return int32(clamp_early(factor * (value - low), float32(top)))
    return clamp(nearest(factor * (value - low)), int32(0), top)


@kernel
def _bounds(x: Floats, weights: Floats, state: Floats, n: int) -> None:
    for lane in range(LANES):
        value, weight = x[lane], weights[lane]
        state[LOW + lane] = value
        state[HIGH + lane] = value
        state[SUM_W + lane] = weight
        state[SUM_X + lane] = weight * value
    for i in range(1, n):
        xs, ws = x[i * LANES : i * LANES + LANES], weights[i * LANES : i * LANES + LANES]
        for lane in range(LANES):
            value, weight = xs[lane], ws[lane]
            low, high = state[LOW + lane], state[HIGH + lane]
            state[LOW + lane] = value if value < low else low
            state[HIGH + lane] = value if value > high else high
            state[SUM_W + lane] += weight
            state[SUM_X + lane] += weight * value


@kernel
def _assign_affine(x: Floats, weights: Floats, levels: Floats, state: Floats, n: int, top: int32, early: bool) -> None:
    """The level of each element under FACTOR and LOW, and the weighted sums over them."""
    fill(state, SUM_L, ZERO)
    fill(state, SUM_LL, ZERO)
    fill(state, SUM_XL, ZERO)
    whole = float32(top)
    for start in range(0, n * LANES, EIGHT):
        xs, ws, ls = x[start : start + EIGHT], weights[start : start + EIGHT], levels[start : start + EIGHT]
        if early:
            for lane in range(LANES):
                factor, low = state[FACTOR + lane], state[LOW + lane]
                sum_l, sum_ll, sum_xl = state[SUM_L + lane], state[SUM_LL + lane], state[SUM_XL + lane]
                for i in range(8):
                    value = xs[i * LANES + lane]
                    level = clamp_early(factor * (value - low), whole)
                    weighted = ws[i * LANES + lane] * level
                    sum_l += weighted
                    sum_ll += weighted * level
                    sum_xl += weighted * value
                    ls[i * LANES + lane] = level
                state[SUM_L + lane] = sum_l
                state[SUM_LL + lane] = sum_ll
                state[SUM_XL + lane] = sum_xl
        else:
            for lane in range(LANES):
                factor, low = state[FACTOR + lane], state[LOW + lane]
                sum_l, sum_ll, sum_xl = state[SUM_L + lane], state[SUM_LL + lane], state[SUM_XL + lane]
                for i in range(8):
                    value = xs[i * LANES + lane]
                    level = float32(clamp(nearest(factor * (value - low)), int32(0), top))
                    weighted = ws[i * LANES + lane] * level
                    sum_l += weighted
                    sum_ll += weighted * level
                    sum_xl += weighted * value
                    ls[i * LANES + lane] = level
                state[SUM_L + lane] = sum_l
                state[SUM_LL + lane] = sum_ll
                state[SUM_XL + lane] = sum_xl


@kernel
def _solve(state: Floats) -> None:
    """Scale and minimum of least weighted squared error for the levels summed up; FIT is the determinant."""
    for lane in range(LANES):
        sum_w, sum_x = state[SUM_W + lane], state[SUM_X + lane]
        sum_l, sum_ll, sum_xl = state[SUM_L + lane], state[SUM_LL + lane], state[SUM_XL + lane]
        fit = sum_w * sum_ll - sum_l * sum_l
        scale = (sum_w * sum_xl - sum_x * sum_l) / fit
        low = (sum_ll * sum_x - sum_l * sum_xl) / fit
        through_zero = sum_xl / sum_ll
        state[FIT + lane] = fit
        state[TRY_SCALE + lane] = through_zero if low > ZERO else scale
        state[TRY_LOW + lane] = ZERO if low > ZERO else low


@kernel
def _measure(x: Floats, weights: Floats, levels: Floats, state: Floats, n: int, absolute: bool) -> None:
    """The weighted error of TRY_SCALE * level + TRY_LOW."""
    fill(state, ERROR, ZERO)
    for start in range(0, n * LANES, EIGHT):
        xs, ws, ls = x[start : start + EIGHT], weights[start : start + EIGHT], levels[start : start + EIGHT]
        if absolute:
            for lane in range(LANES):
                scale, low, error = state[TRY_SCALE + lane], state[TRY_LOW + lane], state[ERROR + lane]
                for i in range(8):
                    error += ws[i * LANES + lane] * abs(scale * ls[i * LANES + lane] + low - xs[i * LANES + lane])
                state[ERROR + lane] = error
        else:
            for lane in range(LANES):
                scale, low, error = state[TRY_SCALE + lane], state[TRY_LOW + lane], state[ERROR + lane]
                for i in range(8):
                    miss = scale * ls[i * LANES + lane] + low - xs[i * LANES + lane]
                    error += ws[i * LANES + lane] * (miss * miss)
                state[ERROR + lane] = error


@kernel
def _keep(state: Floats) -> None:
    """Take the candidate over in the lanes where it is better; the next one starts from its minimum."""
    for lane in range(LANES):
        better = (state[FIT + lane] > ZERO) & (state[ERROR + lane] < state[BEST + lane])
        state[BEST + lane] = state[ERROR + lane] if better else state[BEST + lane]
        state[SCALE + lane] = state[TRY_SCALE + lane] if better else state[SCALE + lane]
        state[WON_FACTOR + lane] = state[FACTOR + lane] if better else state[WON_FACTOR + lane]
        state[WON_LOW + lane] = state[LOW + lane] if better else state[WON_LOW + lane]
        state[LOW + lane] = state[TRY_LOW + lane] if better else state[LOW + lane]


@kernel
def fit_positive(values: Floats, weights: Floats, levels: Integers, states: Floats, n: int, top: int32) -> None:
    """Levels from 0 to `top`, and in SCALE what gives the non-negative `values` back best."""
    length, whole = n * LANES, float32(top)
    for group in range(len(values) // length):
        vs, ws = values[group * length : (group + 1) * length], weights[group * length : (group + 1) * length]
        ls, state = levels[group * length : (group + 1) * length], states[group * STATE : (group + 1) * STATE]
        _largest(vs, state, n)
        for lane in range(LANES):
            factor = whole / state[HIGH + lane]
            state[FACTOR + lane] = factor
            state[TRY_SCALE + lane] = ONE / factor
        _assign_positive(vs, ws, ls, state, n, int32(0x7FFFFFFF))
        for lane in range(LANES):
            state[BEST + lane] = state[ERROR + lane]
            state[WON_FACTOR + lane] = state[FACTOR + lane]
        for index in range(-4, 5):
            if index == 0:
                continue
            wanted = TENTH * float32(index) + whole
            for lane in range(LANES):
                factor = wanted / state[HIGH + lane]
                state[FACTOR + lane] = factor
                state[TRY_SCALE + lane] = ONE / factor
            _assign_positive(vs, ws, ls, state, n, top)
            for lane in range(LANES):
                better = state[ERROR + lane] < state[BEST + lane]
                state[BEST + lane] = state[ERROR + lane] if better else state[BEST + lane]
                state[WON_FACTOR + lane] = state[FACTOR + lane] if better else state[WON_FACTOR + lane]
        _descend_positive(vs, ws, ls, state, n, top)


@kernel
def _largest(values: Floats, state: Floats, n: int) -> None:
    fill(state, HIGH, ZERO)
    for i in range(n):
        vs = values[i * LANES : (i + 1) * LANES]
        for lane in range(LANES):
            state[HIGH + lane] = vs[lane] if vs[lane] > state[HIGH + lane] else state[HIGH + lane]


@kernel
def _assign_positive(values: Floats, weights: Floats, levels: Integers, state: Floats, n: int, top: int32) -> None:
    """The weighted squared error under FACTOR and TRY_SCALE. Without a `top`, levels are bytes, as ggml keeps them."""
    fill(state, ERROR, ZERO)
    for i in range(n):
        vs, ws = values[i * LANES : (i + 1) * LANES], weights[i * LANES : (i + 1) * LANES]
        for lane in range(LANES):
            level = min(top, nearest(state[FACTOR + lane] * vs[lane]))
            level = int32(level & int32(255)) if top > int32(255) else level
            miss = vs[lane] - state[TRY_SCALE + lane] * float32(level)
            state[ERROR + lane] += ws[lane] * miss * miss


@kernel
def _descend_positive(values: Floats, weights: Floats, levels: Integers, state: Floats, n: int, top: int32) -> None:
    """From the levels under WON_FACTOR, change one level at a time as long as that explains more."""
    fill(state, SUM_XL, ZERO)
    fill(state, SUM_LL, ZERO)
    for i in range(n):
        vs, ws = values[i * LANES : (i + 1) * LANES], weights[i * LANES : (i + 1) * LANES]
        ls = levels[i * LANES : (i + 1) * LANES]
        for lane in range(LANES):
            level = min(top, nearest(state[WON_FACTOR + lane] * vs[lane]))
            ls[lane] = int32(level & int32(255))
            state[SUM_XL + lane] += ws[lane] * vs[lane] * float32(level)
            state[SUM_LL + lane] += ws[lane] * float32(level) * float32(level)
    for _ in range(5):
        fill(state, ERROR, ZERO)
        for i in range(n):
            vs, ws = values[i * LANES : (i + 1) * LANES], weights[i * LANES : (i + 1) * LANES]
            ls = levels[i * LANES : (i + 1) * LANES]
            for lane in range(LANES):
                sum_xl, sum_ll = state[SUM_XL + lane], state[SUM_LL + lane]
                now = float32(ls[lane])
                without_xl = sum_xl - ws[lane] * vs[lane] * now
                without_ll = sum_ll - ws[lane] * now * now
                other = min(top, nearest(vs[lane] * without_ll / without_xl))
                with_xl = without_xl + ws[lane] * vs[lane] * float32(other)
                with_ll = without_ll + ws[lane] * float32(other) * float32(other)
                explains = with_xl * with_xl * sum_ll > sum_xl * sum_xl * with_ll
                better = (without_xl > ZERO) & (without_ll > ZERO) & (other != ls[lane]) & explains
                ls[lane] = int32(other & int32(255)) if better else ls[lane]
                state[SUM_XL + lane] = with_xl if better else sum_xl
                state[SUM_LL + lane] = with_ll if better else sum_ll
                state[ERROR + lane] = ONE if better else state[ERROR + lane]
        if not _any(state):
            break
    for lane in range(LANES):
        found = state[SUM_XL + lane] / state[SUM_LL + lane] if state[SUM_LL + lane] > ZERO else ZERO
        state[SCALE + lane] = ZERO if state[HIGH + lane] < SMALLEST else found
    for i in range(n):
        ls = levels[i * LANES : (i + 1) * LANES]
        for lane in range(LANES):
            ls[lane] = int32(0) if state[HIGH + lane] < SMALLEST else ls[lane]


@kernel
def search_symmetric(x: Floats, weights: Floats, states: Floats, n: int, top: int32, finite: bool) -> None:
    """Find the scale such that scale * level is near `x`, for levels from -top to top - 1.

    The result is in SCALE; WON_FACTOR gives the levels back, except where SIZE is below SMALLEST: there the scale is 0
    and ggml leaves the stored levels 0. `finite` says that all of `x` is, which is faster.
    """
    length, whole = n * LANES, float32(top)
    cubes = np.empty(length, np.float32)
    for group in range(len(x) // length):
        xs, ws = x[group * length : (group + 1) * length], weights[group * length : (group + 1) * length]
        state = states[group * STATE : (group + 1) * STATE]
        peak(xs, state, n)
        for index in range(length):
            cubes[index] = ws[index] * xs[index]
        for lane in range(LANES):
            state[FACTOR + lane] = -whole / state[PEAK + lane]
        _assign_symmetric(xs, ws, cubes, state, n, top, finite)
        for lane in range(LANES):
            sum_xl, sum_ll = state[SUM_XL + lane], state[SUM_LL + lane]
            scale = ZERO if sum_ll == ZERO else sum_xl / sum_ll
            state[SCALE + lane] = scale
            state[BEST + lane] = scale * sum_xl
            state[WON_FACTOR + lane] = state[FACTOR + lane]
        for index in range(-9, 10):
            if index == 0:
                continue
            wanted = -(whole + TENTH * float32(index))
            for lane in range(LANES):
                state[FACTOR + lane] = wanted / state[PEAK + lane]
            _assign_symmetric(xs, ws, cubes, state, n, top, finite)
            _keep_symmetric(state)
        for lane in range(LANES):
            state[SCALE + lane] = ZERO if state[SIZE + lane] < SMALLEST else state[SCALE + lane]


@kernel
def _keep_symmetric(state: Floats) -> None:
    """Take the candidate over in the lanes where it explains more."""
    for lane in range(LANES):
        sum_xl, sum_ll, best = state[SUM_XL + lane], state[SUM_LL + lane], state[BEST + lane]
        better = (sum_ll > ZERO) & (sum_xl * sum_xl > best * sum_ll)
        scale = sum_xl / sum_ll
        state[SCALE + lane] = scale if better else state[SCALE + lane]
        state[BEST + lane] = scale * sum_xl if better else best
        state[WON_FACTOR + lane] = state[FACTOR + lane] if better else state[WON_FACTOR + lane]


@kernel
def peak(x: Floats, state: Floats, n: int) -> None:
    """The value of largest magnitude, the first of several."""
    fill(state, PEAK, ZERO)
    fill(state, SIZE, ZERO)
    for i in range(n):
        xs = x[i * LANES : (i + 1) * LANES]
        for lane in range(LANES):
            larger = abs(xs[lane]) > state[SIZE + lane]
            state[PEAK + lane] = xs[lane] if larger else state[PEAK + lane]
            state[SIZE + lane] = abs(xs[lane]) if larger else state[SIZE + lane]


@kernel
def _assign_symmetric(
    x: Floats, weights: Floats, cubes: Floats, state: Floats, n: int, top: int32, finite: bool
) -> None:
    """The weighted sums over the levels under FACTOR; `cubes` is weight times value."""
    fill(state, SUM_XL, ZERO)
    fill(state, SUM_LL, ZERO)
    low, high = float32(-top), float32(top - 1)
    for start in range(0, n * LANES, EIGHT):
        xs, ws, cs = x[start : start + EIGHT], weights[start : start + EIGHT], cubes[start : start + EIGHT]
        if finite:
            # FACTOR times any value is at most top + 1: adding ALIGNER and taking it away rounds as `nearest` does.
            for lane in range(LANES):
                factor, sum_xl, sum_ll = state[FACTOR + lane], state[SUM_XL + lane], state[SUM_LL + lane]
                for i in range(8):
                    level = factor * xs[i * LANES + lane] + ALIGNER - ALIGNER
                    level = level if level > low else low
                    level = level if level < high else high
                    sum_xl += cs[i * LANES + lane] * level
                    sum_ll += ws[i * LANES + lane] * level * level
                state[SUM_XL + lane] = sum_xl
                state[SUM_LL + lane] = sum_ll
        else:
            for lane in range(LANES):
                factor, sum_xl, sum_ll = state[FACTOR + lane], state[SUM_XL + lane], state[SUM_LL + lane]
                for i in range(8):
                    near = clamp(nearest(factor * xs[i * LANES + lane]), int32(-top), int32(top - 1))
                    sum_xl += cs[i * LANES + lane] * float32(near)
                    sum_ll += ws[i * LANES + lane] * float32(near) * float32(near)
                state[SUM_XL + lane] = sum_xl
                state[SUM_LL + lane] = sum_ll


@kernel
def descend_symmetric(x: Floats, levels: Floats, states: Floats, n: int, top: int32) -> None:
    """The same with the squares as weights, by changing one level at a time; `levels` are the result, from -top on."""
    length, whole = n * LANES, float32(top)
    squares, cubes = np.empty(length, np.float32), np.empty(length, np.float32)
    for group in range(len(x) // length):
        xs, ls = x[group * length : (group + 1) * length], levels[group * length : (group + 1) * length]
        state = states[group * STATE : (group + 1) * STATE]
        peak(xs, state, n)
        for index in range(length):
            squares[index] = xs[index] * xs[index]
            cubes[index] = squares[index] * xs[index]
        for lane in range(LANES):
            factor = -whole / state[PEAK + lane]
            state[FACTOR + lane] = factor
        _assign_symmetric(xs, squares, cubes, state, n, top, True)
        for i in range(n):
            part, into = xs[i * LANES : (i + 1) * LANES], ls[i * LANES : (i + 1) * LANES]
            for lane in range(LANES):
                level = nearest(state[FACTOR + lane] * part[lane])
                into[lane] = float32(clamp(level, int32(-top), int32(top - int32(1))))
        for _ in range(5):
            if not _descend(xs, squares, cubes, ls, state, n, top):
                break
        for lane in range(LANES):
            found = state[SUM_XL + lane] / state[SUM_LL + lane] if state[SUM_LL + lane] > ZERO else ZERO
            state[SCALE + lane] = ZERO if state[SIZE + lane] < SMALLEST else found


@kernel
def _descend(x: Floats, squares: Floats, cubes: Floats, levels: Floats, state: Floats, n: int, top: int32) -> bool:
    """One round over the elements; whether any level of any lane changed."""
    fill(state, ERROR, ZERO)
    for i in range(n):
        xs, ls = x[i * LANES : (i + 1) * LANES], levels[i * LANES : (i + 1) * LANES]
        ss, cs = squares[i * LANES : (i + 1) * LANES], cubes[i * LANES : (i + 1) * LANES]
        for lane in range(LANES):
            sum_xl, sum_ll, level = state[SUM_XL + lane], state[SUM_LL + lane], ls[lane]
            without_xl = sum_xl - cs[lane] * level
            without_ll = sum_ll - ss[lane] * level * level
            whole = clamp(nearest(xs[lane] * without_ll / without_xl), int32(-top), int32(top - 1))
            other = float32(whole)
            with_xl = without_xl + cs[lane] * other
            with_ll = without_ll + ss[lane] * other * other
            explains = with_xl * with_xl * sum_ll > sum_xl * sum_xl * with_ll
            better = (without_xl > ZERO) & (other != level) & (with_ll > ZERO) & explains
            ls[lane] = other if better else level
            state[SUM_XL + lane] = with_xl if better else sum_xl
            state[SUM_LL + lane] = with_ll if better else sum_ll
            state[ERROR + lane] = ONE if better else state[ERROR + lane]
    return _any(state)


@kernel
def _any(state: Floats) -> bool:
    """Whether ERROR is set in any lane."""
    found = False
    for lane in range(LANES):
        found |= state[ERROR + lane] != ZERO
    return found
