"""Laws of comparison, over infinities, NaN, subnormals, huge and empty arrays, mixed dtypes and any memory layout."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from isoform.validators.truth.distances import Difference, choices, difference, kl_divergence, largest_relative

SHAPE = array_shapes(max_dims=3, max_side=4)
ANY64 = st.floats(width=64, allow_subnormal=True)  # NaN and infinities among them
FINITE64 = st.floats(width=64, allow_nan=False, allow_infinity=False)
DTYPES = st.sampled_from([np.float16, np.float32, np.float64, np.int64, np.int8, np.bool_])
MODEST = st.floats(-1e3, 1e3, width=32)


@st.composite
def pairs(draw: Any, elements: Any = ANY64) -> tuple[NDArray[Any], NDArray[Any]]:
    shape = draw(SHAPE)
    one, other = (draw(arrays(np.float64, shape, elements=elements)) for _ in range(2))
    return one, other


def layouts(x: NDArray[Any]) -> list[NDArray[Any]]:
    """The same values in other memory: Fortran order, a slice of a larger array, reversed twice, read only."""
    wide = np.full((*x.shape[:-1], 2 * x.shape[-1]), np.nan, x.dtype)
    wide[..., ::2] = x
    fixed = x.copy()
    fixed.flags.writeable = False
    return [np.asfortranarray(x), wide[..., ::2], x[::-1].copy()[::-1], fixed]


def numbers(found: Difference) -> list[float]:
    return [found.max_abs, found.rms, found.nmse, found.scale, found.size_rms]


@given(pairs())
def test_no_number_is_ever_nan_or_negative(both: tuple[NDArray[Any], NDArray[Any]]) -> None:
    """A limit is held by `value <= limit`: NaN would fail it, but hide how much."""
    for got, want in (both, both[::-1]):
        assert all(value >= 0 for value in numbers(difference(got, want)))


@given(pairs())
def test_zero_error_means_equal_finite_values(both: tuple[NDArray[Any], NDArray[Any]]) -> None:
    got, want = both
    found = difference(got, want)
    equal = bool((got == want).all() and np.isfinite(got).all())
    assert (found.max_abs == 0) == equal
    assert (found.nonfinite == 0) == bool((np.isfinite(got) & np.isfinite(want)).all())


@given(pairs())
def test_the_error_is_symmetric(both: tuple[NDArray[Any], NDArray[Any]]) -> None:
    there, back = difference(*both), difference(*both[::-1])
    assert there.max_abs == back.max_abs
    assert there.rms == back.rms
    assert there.nonfinite == back.nonfinite


@given(pairs(FINITE64))
def test_memory_layout_changes_nothing(both: tuple[NDArray[Any], NDArray[Any]]) -> None:
    got, want = both
    found = numbers(difference(got, want))
    for mine in layouts(got):
        for theirs in layouts(want):
            assert numbers(difference(mine, theirs)) == pytest.approx(found, rel=1e-12)
    flat = difference(got.reshape(-1), want.reshape(-1))
    assert numbers(flat) == pytest.approx(found, rel=1e-12)


@given(pairs(MODEST), st.integers(0), st.floats(1, 100))
def test_a_larger_error_is_never_measured_smaller(
    both: tuple[NDArray[Any], NDArray[Any]], where: int, factor: float
) -> None:
    got, want = both
    worse = got.copy()
    at = where % got.size
    worse.flat[at] = want.flat[at] + (got.flat[at] - want.flat[at]) * factor
    before, after = difference(got, want), difference(worse, want)
    assert after.max_abs >= before.max_abs * (1 - 1e-12)
    assert after.rms >= before.rms * (1 - 1e-12)


@given(pairs(MODEST), arrays(np.float64, 5, elements=MODEST))
def test_what_agrees_dilutes_the_mean_and_not_the_largest(
    both: tuple[NDArray[Any], NDArray[Any]], same: NDArray[Any]
) -> None:
    got, want = both[0].reshape(-1), both[1].reshape(-1)
    alone, diluted = difference(got, want), difference(np.append(got, same), np.append(want, same))
    assert diluted.max_abs == alone.max_abs
    assert diluted.rms <= alone.rms * (1 + 1e-12)


@given(pairs(MODEST), st.integers(-300, 300))
def test_powers_of_two_scale_exactly(both: tuple[NDArray[Any], NDArray[Any]], power: int) -> None:
    """Neither squares nor sums over- or underflow on the way."""
    got, want = (np.where(np.abs(x) < 1e-3, 0, x) for x in both)
    scale = 2.0**power
    found, scaled = difference(got, want), difference(got * scale, want * scale)
    assert scaled.max_abs == found.max_abs * scale
    assert scaled.rms == pytest.approx(found.rms * scale, rel=1e-12)
    assert scaled.nmse == pytest.approx(found.nmse, rel=1e-9)


@given(SHAPE, DTYPES, DTYPES, st.data())
def test_mixed_dtypes_are_compared_by_value(shape: tuple[int, ...], one: Any, other: Any, data: Any) -> None:
    values = data.draw(arrays(np.int8, shape, elements=st.integers(0, 1)))
    moved = data.draw(arrays(np.int8, shape, elements=st.integers(0, 1)))
    found = difference(values.astype(one), moved.astype(other))
    assert found.max_abs == np.abs(values - moved).max()
    assert difference(values.astype(one), moved.astype(other), np.float32).problem == (
        "" if one is np.float32 else f"dtype {np.dtype(one)}, not float32"
    )


@given(SHAPE, SHAPE)
def test_another_shape_is_no_agreement(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    found = difference(np.zeros(one), np.zeros(other))
    assert bool(found.problem) == (one != other)
    assert (found.size == 0) == (one != other)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 5), (2, 0, 4)])
def test_nothing_is_compared_in_empty_arrays(shape: tuple[int, ...]) -> None:
    found = difference(np.zeros(shape, np.float32), np.zeros(shape), np.float32)
    assert (found.problem, found.size) == ("", 0)
    assert numbers(found) == [0] * 5


def test_zeros_of_either_sign_are_equal_and_subnormals_are_not() -> None:
    zero, tiny = np.zeros(3, np.float32), np.full(3, 1e-45, np.float32)
    assert difference(-zero, zero).max_abs == largest_relative(-zero, zero) == 0
    assert difference(tiny, zero).max_abs > 0
    assert difference(tiny, zero).rms == pytest.approx(float(tiny[0]), rel=1e-12)
    assert math.isinf(largest_relative(tiny, zero))


def test_a_gap_beyond_float64_is_infinite_and_every_value_finite() -> None:
    found = difference(np.array([1.7e308]), np.array([-1.7e308]))
    assert found.nonfinite == 0
    assert math.isinf(found.max_abs)
    assert math.isinf(found.rms)


def test_a_value_that_is_repeated_by_strides_is_compared_every_time() -> None:
    one = np.broadcast_to(np.float32(2), (4, 5))
    found = difference(one, np.zeros((4, 5)), np.float32)
    assert (found.size, found.max_abs, found.rms) == (20, 2, 2)


@given(arrays(np.float32, (3, 6), elements=MODEST), st.floats(0, 10), st.permutations(range(6)))
def test_choices_do_not_depend_on_a_shift_or_the_order(x: NDArray[Any], tie: float, order: list[int]) -> None:
    other = x[:, order]
    assert choices(x, x, tie) == (0, 0)
    assert sum(choices(other, x, tie)) == int(np.count_nonzero(other.argmax(-1) != x.argmax(-1)))
    clear, near = choices(other, x, tie)
    more, less = choices(other, x, tie + 1)
    assert clear >= more
    assert near <= less


@given(arrays(np.float64, (2, 4), elements=st.floats(-30, 30)), arrays(np.float64, (2, 4), elements=st.floats(-30, 30)))
def test_divergence_is_zero_only_where_the_distributions_are_the_same(p: NDArray[Any], q: NDArray[Any]) -> None:
    found = kl_divergence(q, p)
    assert (found > -1e-12).all()
    assert np.abs(kl_divergence(p, p)).max() == 0
