"""Keypoints are chosen, sampled and matched as transformers' code does it, from the same maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from isoform.steps import load_step
from isoform.steps.select_keypoints import CELL, pixels, sampled, suppressed

SELECT, CENTRE, MATCH = (load_step(f"{name}_keypoints") for name in ("select", "centre", "match"))
SETTINGS = {"threshold": 0.2, "most": -1, "radius": 4, "border": 4}
ROUNDING = 1e-6  # sums of four products, in another order


def maps(
    seed: int, rows: int = 5, columns: int = 7, levels: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scores and descriptors of cells; with `levels`, scores that are often equal."""
    random = np.random.default_rng(seed)
    scores = random.random((CELL * CELL, rows, columns)).astype(np.float32)
    return np.round(scores * levels) / np.float32(levels) if levels else scores, random.standard_normal(
        (6, rows, columns)
    ).astype(np.float32)


def theirs(seed: int, **settings: Any) -> Any:
    """transformers' two heads over the same maps, as (keypoints, scores, descriptors)."""
    from transformers import SuperPointConfig
    from transformers.models.superpoint import modeling_superpoint as code

    asked = {**SETTINGS, **settings}
    config = SuperPointConfig(
        keypoint_threshold=asked["threshold"],
        max_keypoints=asked["most"],
        nms_radius=asked["radius"],
        border_removal_distance=asked["border"],
    )
    head = code.SuperPointInterestPointDecoder(config)
    scores, described = maps(seed)
    kept = code.simple_nms(torch.from_numpy(pixels(scores))[None], asked["radius"])
    keypoints, values = head._extract_keypoints(kept)
    found = code.SuperPointDescriptorDecoder._sample_descriptors(keypoints[None], torch.from_numpy(described)[None])
    return keypoints.numpy(), values.numpy(), found[0].T.numpy()


@pytest.mark.parametrize("radius", [0, 1, 2, 4, 9])
@pytest.mark.parametrize("levels", [0, 5])
def test_only_the_highest_within_the_radius_are_kept(radius: int, levels: int) -> None:
    """Bit for bit, with many equal scores among neighbours as well."""
    from transformers.models.superpoint.modeling_superpoint import simple_nms

    scores = pixels(maps(radius, levels=levels)[0])
    want = simple_nms(torch.from_numpy(scores)[None], radius)[0].numpy()
    assert np.array_equal(suppressed(scores, radius), want)
    assert 0 < np.count_nonzero(want) <= scores.size


@pytest.mark.parametrize(
    "settings", [{}, {"threshold": 0.9}, {"radius": 1}, {"border": 0}, {"border": 20}, {"most": 5}, {"most": 0}]
)
def test_keypoints_are_those_of_transformers(settings: dict[str, Any]) -> None:
    keypoints, values, descriptors = theirs(3, **settings)
    scores, described = maps(3)
    found = SELECT.run({"scores": scores, "descriptors": described}, **{**SETTINGS, **settings})
    assert np.array_equal(found["keypoints"], keypoints)
    assert np.array_equal(found["scores"], values)
    assert found["mask"].all()
    np.testing.assert_allclose(found["descriptors"], descriptors, rtol=0, atol=ROUNDING)


def test_pictures_with_fewer_keypoints_are_padded() -> None:
    first, second = maps(0), maps(1)
    scores, described = (np.stack([a, b * scale])[None] for a, b, scale in zip(first, second, (0.5, 1), strict=True))
    found = SELECT.run({"scores": scores, "descriptors": described}, **{**SETTINGS, "threshold": 0.45})
    alone = SELECT.run({"scores": scores[0, 1], "descriptors": described[0, 1]}, **{**SETTINGS, "threshold": 0.45})
    count, most = len(alone["scores"]), found["mask"].shape[2]
    assert 0 < count < most
    assert found["mask"][0].sum(1).tolist() == [most, count]
    for name in SELECT.OUTPUTS:
        assert np.array_equal(found[name][0, 1, :count], alone[name])
        assert not found[name][0, 1, count:].any()


def test_without_a_keypoint_everything_is_empty() -> None:
    scores, described = maps(0)
    found = SELECT.run({"scores": scores[None], "descriptors": described[None]}, **{**SETTINGS, "threshold": 2})
    assert {name: array.shape for name, array in found.items()} == {
        "keypoints": (1, 0, 2),
        "scores": (1, 0),
        "descriptors": (1, 0, 6),
        "mask": (1, 0),
    }
    matched = MATCH.run({"assignment": np.zeros((1, 0, 0), np.float32)}, threshold=0)
    assert matched["matches"].shape == matched["matching_scores"].shape == (1, 2, 0)


def test_a_place_on_the_centre_of_a_cell_has_the_descriptor_of_the_cell() -> None:
    described = maps(2)[1]
    own = described[:, 2, 3] / np.linalg.norm(described[:, 2, 3])
    # transformers stretches the outermost centres to the corners of the grid: 3.5 to 0, and 8 w - 4.5 to w - 1.
    place = np.array([[3.5 + 3 * (CELL * 7 - 4.5) / 6, 3.5 + 2 * (CELL * 5 - 4.5) / 4]], np.float32)
    np.testing.assert_allclose(sampled(described, place)[0], own, atol=1e-5)


def test_places_are_measured_from_the_middle_in_the_longer_side() -> None:
    from transformers.models.superglue.modeling_superglue import normalize_keypoints

    places = np.random.default_rng(0).uniform(0, 60, (2, 9, 2)).astype(np.float32)
    found = CENTRE.run({"keypoints": places, "sizes": np.array([[48, 64], [48, 64]])}, spread=0.7)["keypoints"]
    want = normalize_keypoints(torch.from_numpy(places), 48, 64).numpy()
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-7)
    assert CENTRE.run({"keypoints": np.array([[32, 24]]), "sizes": np.array([48, 64])}, spread=0.7)[
        "keypoints"
    ].tolist() == [[0, 0]]


def test_a_match_is_the_best_of_both_and_over_the_threshold() -> None:
    mass = np.array([[[0.6, 0.1, 0.0], [0.7, 0.2, 0.0], [0.0, 0.0, 0.05]]], np.float32)
    found = MATCH.run({"assignment": mass}, threshold=0.1)
    assert found["matches"].tolist() == [[[-1, 0, -1], [1, -1, -1]]]
    np.testing.assert_allclose(found["matching_scores"], [[[0, 0.7, 0], [0.7, 0, 0]]])
    assert MATCH.run({"assignment": mass}, threshold=0)["matches"].tolist() == [[[-1, 0, 2], [1, -1, 2]]]
    assert MATCH.run({"assignment": 0 * mass}, threshold=0)["matches"].max() == -1
