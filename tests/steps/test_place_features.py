"""Features stand where their tokens are, and counts that differ are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoform.errors import InputError
from isoform.steps import STEPS, load_step

STEP = load_step("place_features")


def test_every_step_can_be_loaded_and_names_its_ports() -> None:
    for name in STEPS:
        step = load_step(name)
        assert step.INPUTS
        assert step.OUTPUTS
    with pytest.raises(InputError, match="no host step 'os'"):
        load_step("os")


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4))
def test_features_are_placed_in_order_and_the_rest_stays(rows: list[list[bool]]) -> None:
    places = np.array(rows)
    tokens = np.where(places, 9, 1)
    embeddings = np.random.default_rng(0).standard_normal((*places.shape, 3)).astype(np.float32)
    before = embeddings.copy()
    features = np.arange(3 * places.sum(), dtype=np.float32).reshape(-1, 1, 3)
    placed = STEP.run({"tokens": tokens, "embeddings": embeddings, "features": features}, token=9)["embeddings"]
    assert np.array_equal(placed[places], features[:, 0])
    assert np.array_equal(placed[~places], before[~places])
    assert np.array_equal(embeddings, before)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_number_of_features_is_refused(count: int) -> None:
    inputs = {"tokens": np.array([[9, 1, 9]]), "embeddings": np.zeros((1, 3, 4)), "features": np.zeros((count, 4))}
    with pytest.raises(InputError, match=f"2 places .* {count} feature vectors"):
        STEP.run(inputs, token=9)
