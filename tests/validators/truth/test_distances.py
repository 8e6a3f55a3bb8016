"""The comparison itself: what it counts, and what no tolerance may forgive."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from isoform.validators.truth.distances import choices, difference, kl_divergence, largest_relative, matched

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
ARRAYS = arrays(np.float32, array_shapes(max_dims=3, max_side=5), elements=FINITE)


def f32(values: list[float]) -> NDArray[Any]:
    return np.array(values, np.float32)


@given(ARRAYS)
def test_an_array_equals_itself(x: NDArray[Any]) -> None:
    found = difference(x, x.astype(np.float64), np.float32)
    assert (found.problem, found.size, found.nonfinite) == ("", x.size, 0)
    assert found.max_abs == largest_relative(x, x) == found.rms == found.nmse == 0
    assert found.scale == np.abs(x).max()


@given(ARRAYS, st.integers(0), st.sampled_from([np.nan, np.inf, -np.inf]), st.booleans())
def test_one_value_that_is_not_finite_is_found_on_either_side(
    x: NDArray[Any], where: int, bad: float, both: bool
) -> None:
    broken = x.copy()
    broken.flat[where % x.size] = bad
    for got, want in ((broken, x), (x, broken), (broken, broken)) if both else ((broken, x),):
        found = difference(got, want)
        assert found.nonfinite == 1
        assert math.isinf(found.max_abs)
        assert math.isinf(found.rms)


@given(ARRAYS, st.integers(0))
def test_one_unit_in_the_last_place_is_a_difference(x: NDArray[Any], where: int) -> None:
    moved = x.copy()
    index = where % x.size
    moved.flat[index] = np.nextafter(moved.flat[index], np.float32(0 if moved.flat[index] > 0 else 1))
    found = difference(moved, x)
    assert found.max_abs == abs(float(moved.flat[index]) - float(x.flat[index])) > 0
    assert found.rms == pytest.approx(found.max_abs / math.sqrt(x.size))
    assert largest_relative(moved, x) > 0
    assert found.nmse > 0


@given(ARRAYS, ARRAYS)
def test_the_mean_error_is_between_zero_and_the_largest(x: NDArray[Any], y: NDArray[Any]) -> None:
    if x.shape != y.shape:
        assert "shape" in difference(x, y).problem
        return
    found = difference(x, y)
    assert 0 <= found.rms <= found.max_abs * (1 + 1e-12)
    assert found.max_abs == difference(y, x).max_abs
    assert difference(x.T, y.T).max_abs == found.max_abs  # strides do not matter


@pytest.mark.parametrize("tiny", [1e-45, 1e-40])
def test_subnormal_differences_count(tiny: float) -> None:
    found = difference(f32([tiny, 1]), f32([0, 1]))
    assert found.max_abs == np.float32(tiny)
    assert found.rms > 0
    assert math.isinf(largest_relative(f32([tiny, 1]), f32([0, 1])))


def test_huge_values_do_not_overflow() -> None:
    found = difference(np.array([1e300, 1.0]), np.array([-1e300, 1.0]))
    assert found.max_abs == pytest.approx(2e300)
    assert math.isfinite(found.rms)
    assert found.nmse == pytest.approx(4)


def test_an_error_against_all_zeros_has_no_relative_size() -> None:
    assert math.isinf(difference(f32([1]), f32([0])).nmse)
    assert difference(f32([0]), f32([0])).nmse == 0


def test_another_dtype_is_no_agreement() -> None:
    x = np.ones(3)
    assert difference(x, x, np.float32).problem == "dtype float64, not float32"
    assert difference(x.astype(np.int64), x, np.float32).problem


def test_empty_arrays_compare_nothing() -> None:
    found = difference(np.zeros((0, 3)), np.zeros((0, 3)))
    assert found.size == 0
    assert found.max_abs == 0


def test_a_choice_within_the_tie_is_a_near_tie() -> None:
    want = np.array([[1.0, 0.99, 0.0], [1.0, 0.5, 0.0], [3.0, 1.0, 2.0]])
    got = np.array([[0.9, 1.0, 0.0], [0.2, 0.5, 0.0], [3.0, 1.0, 2.0]])
    assert choices(got, want, 0.02) == (1, 1)
    assert choices(got, want, 0.005) == (2, 0)
    assert choices(got, want, 1.0) == (0, 2)
    assert choices(np.zeros((0, 3)), np.zeros((0, 3)), 0.0) == (0, 0)


@given(arrays(np.float32, (2, 5), elements=st.floats(-50, 50, width=32)), st.floats(-100, 100))
def test_divergence_is_zero_for_shifted_logits_and_never_negative(x: NDArray[Any], shift: float) -> None:
    assert np.abs(kl_divergence(x + shift, x)).max() < 1e-10
    assert kl_divergence(x[::-1], x).min() >= -1e-12


def test_rows_of_a_set_are_compared_in_any_order() -> None:
    want = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    got = want[[3, 0, 5, 1, 4, 2]] + np.float32(1e-3)
    assert np.abs(matched(got, want) - want).max() < 2e-3
    assert sorted(matched(got, want)[:, 0]) == sorted(got[:, 0])


def test_a_row_that_is_missing_is_no_row_twice() -> None:
    want = np.eye(4, dtype=np.float32)
    got = want[[0, 0, 1, 2]]
    assert np.abs(matched(got, want) - want).max() == 1
