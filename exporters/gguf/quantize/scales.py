"""The searches for the scale of a sub-block: ggml's candidates, in ggml's order, for LANES sub-blocks at once.

What they follow: make_qkx2_quants and make_qkx3_quants (`search_affine`), make_qx_quants (`search_symmetric`,
`fit_symmetric`), make_q3_quants (`descend_symmetric`) and make_qp_quants (`fit_positive`) of ggml-quants.c.
"""

from __future__ import annotations

import numpy as np
from numpy import float32, int32
from numpy.typing import NDArray

from isoform.exporters.gguf.quantize.compiled import kernel
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
    SCALE,
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
    fill,
)
from isoform.exporters.gguf.quantize.rounding import clamp, nearest

Floats = NDArray[np.float32]

SMALLEST = float32(1e-15)  # GROUP_MAX_EPS: values below it count as zeros
TENTH = float32(0.1)


@kernel
def search_affine(
    x: Floats,
    weights: Floats,
    levels: Floats,
    state: Floats,
    n: int,
    top: int32,
    first: float32,
    step: float32,
    steps: int,
    absolute: bool,
) -> None:
    """Find scale and minimum such that scale * level + minimum is near `x`, for levels from 0 to `top`.

    The result is in SCALE and LOW; WON_FACTOR and WON_LOW give the levels back. `absolute` weighs the error itself
    instead of its square. `levels` is room to work in.
    """
    _bounds(x, weights, state, n)
    whole = float32(top)
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
    _assign_affine(x, weights, levels, state, n, top)
    _measure(x, weights, levels, state, n, absolute)
    for lane in range(LANES):
        state[BEST + lane] = state[ERROR + lane]
    for index in range(steps + 1):
        wanted = first + step * float32(index) + whole
        for lane in range(LANES):
            state[FACTOR + lane] = wanted / (state[HIGH + lane] - state[LOW + lane])
        _assign_affine(x, weights, levels, state, n, top)
        _solve(state)
        _measure(x, weights, levels, state, n, absolute)
        _keep(state)


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
def _assign_affine(x: Floats, weights: Floats, levels: Floats, state: Floats, n: int, top: int32) -> None:
    """The level of each element under FACTOR and LOW, and the weighted sums over them."""
    fill(state, SUM_L, ZERO)
    fill(state, SUM_LL, ZERO)
    fill(state, SUM_XL, ZERO)
    for start in range(0, n * LANES, EIGHT):
        xs, ws, ls = x[start : start + EIGHT], weights[start : start + EIGHT], levels[start : start + EIGHT]
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
def fit_positive(values: Floats, weights: Floats, top: int, levels: NDArray[np.uint8]) -> float32:
    """Levels from 0 to `top`, and the scale that gives the non-negative `values` back best; one super-block's."""
    n = len(values)
    largest = ZERO
    for i in range(n):
        largest = values[i] if values[i] > largest else largest
    if largest < SMALLEST:
        levels[:n] = 0
        return ZERO
    whole = float32(top)
    factor = whole / largest
    scale = ONE / factor
    least = ZERO
    for i in range(n):
        levels[i] = nearest(factor * values[i])
        miss = values[i] - scale * float32(levels[i])
        least += weights[i] * miss * miss
    for index in range(-4, 5):
        if index == 0:
            continue
        wanted = (TENTH * float32(index) + whole) / largest
        scale = ONE / wanted
        error = ZERO
        for i in range(n):
            miss = values[i] - scale * float32(min(top, nearest(wanted * values[i])))
            error += weights[i] * miss * miss
        if error < least:
            least = error
            factor = wanted
    sum_xl = ZERO
    sum_ll = ZERO
    for i in range(n):
        level = min(top, nearest(factor * values[i]))
        levels[i] = level
        sum_xl += weights[i] * values[i] * float32(level)
        sum_ll += weights[i] * float32(level) * float32(level)
    for _ in range(5):
        changed = False
        for i in range(n):
            weight, level = weights[i], float32(levels[i])
            without_xl = sum_xl - weight * values[i] * level
            without_ll = sum_ll - weight * level * level
            if without_xl > ZERO and without_ll > ZERO:
                better = min(top, nearest(values[i] * without_ll / without_xl))
                if better != levels[i]:
                    with_xl = without_xl + weight * values[i] * float32(better)
                    with_ll = without_ll + weight * float32(better) * float32(better)
                    if with_xl * with_xl * sum_ll > sum_xl * sum_xl * with_ll:
                        levels[i] = better
                        sum_xl = with_xl
                        sum_ll = with_ll
                        changed = True
        if not changed:
            break
    return sum_xl / sum_ll if sum_ll > ZERO else ZERO
