"""SuperPoint and SuperGlue find and match the keypoints that transformers' models do."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.families import load_family
from isoform.reference.model import Model, open_model
from isoform.steps import load_step
from tests.oracle import tiny

DETECTORS, MATCHERS = ("superpoint", "superpoint_b"), ("superglue", "superglue_b")
ORDER = 1e-5  # float32 sums in another order; scores and descriptors are at most 1
Arrays = dict[str, NDArray[Any]]


@cache
def model(name: str) -> Model:
    return open_model(tiny(name))


@cache
def module(name: str, part: str = "") -> torch.nn.Module:
    return (model(name) if not part else next(p for p in model(name).parts if p.part == part)).module()


@cache
def theirs(name: str) -> Any:
    import transformers

    architecture = model(name).checkpoint.config["architectures"][0]
    return getattr(transformers, architecture).from_pretrained(tiny(name), dtype=torch.float32).eval()


def step(name: str, model_name: str, inputs: Arrays) -> Arrays:
    return load_step(name).run(inputs, **model(model_name).task.steps(model(model_name).config)[name])


def detected(name: str, pixel_values: Tensor, part: str = "") -> Arrays:
    with torch.inference_mode():
        scores, descriptors = module(name, part)(pixel_values)
    return step("select_keypoints", name, {"scores": scores.numpy(), "descriptors": descriptors.numpy()})


def assigned(name: str, found: Arrays, height: int, width: int) -> NDArray[Any]:
    sizes = np.array([height, width])
    centred = step("centre_keypoints", name, {"keypoints": found["keypoints"], "sizes": sizes})
    given = (centred["keypoints"], found["scores"], found["descriptors"], found["mask"])
    with torch.inference_mode():
        result: NDArray[Any] = module(name, "matcher")(*map(torch.from_numpy, given))[0].numpy()
    return result


def matched(name: str, pixel_values: Tensor) -> Arrays:
    height, width = pixel_values.shape[-2:]
    found = detected(name, pixel_values, "keypoint_detector")
    mass = assigned(name, found, height, width)
    return {**found, **step("match_keypoints", name, {"assignment": mass})}


def close(found: NDArray[Any], expected: Any) -> None:
    want = np.asarray(expected)
    assert found.shape == want.shape
    assert not want.size or np.abs(found.astype(np.float64) - want).max() <= ORDER


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", DETECTORS)
def test_keypoints_are_those_of_transformers(name: str) -> None:
    golden = load_file(tiny(name) / "golden.safetensors")
    pixel_values = golden["in.pixel_values"]
    found = detected(name, pixel_values)
    height, width = pixel_values.shape[-2:]
    assert np.array_equal(found["keypoints"] / np.array([width, height], np.float32), golden["out.keypoints"])
    for key in ("scores", "descriptors", "mask"):
        close(found[key], golden[f"out.{key}"])


@pytest.mark.parametrize("size", [(8, 8), (9, 23), (47, 31), (16, 200)])
def test_pictures_of_every_size_have_the_keypoints_of_transformers(size: tuple[int, int]) -> None:
    """The smallest, those with pixels that fill no cell, and very wide ones; two with unlike numbers of keypoints."""
    pixel_values = noise(2, 3, *size)
    pixel_values[1] *= 0.1
    found = detected("superpoint", pixel_values)
    with torch.inference_mode():
        want = theirs("superpoint")(pixel_values=pixel_values)
    close(found["keypoints"] / np.array(size[::-1], np.float32), want.keypoints)
    for key in ("scores", "descriptors", "mask"):
        close(found[key], want[key])


def test_only_the_first_channel_is_read() -> None:
    pixel_values = noise(1, 3, 32, 40)
    gray = pixel_values[:, :1].expand(-1, 3, -1, -1)
    for one, other in zip(module("superpoint")(pixel_values), module("superpoint")(gray), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", MATCHERS)
def test_matches_are_those_of_transformers(name: str) -> None:
    golden = load_file(tiny(name) / "golden.safetensors")
    found = matched(name, golden["in.pixel_values"])
    height, width = golden["in.pixel_values"].shape[-2:]
    close(found["keypoints"] / np.array([width, height], np.float32), golden["out.keypoints"])
    assert np.array_equal(found["matches"], golden["out.matches"])
    assert 0 < (found["matches"] >= 0).sum() < found["mask"].sum()
    close(found["matching_scores"], golden["out.matching_scores"])


def test_a_picture_with_fewer_keypoints_is_matched_as_transformers_does() -> None:
    """The padding of the pair has its mass in the transport."""
    pixel_values = noise(1, 2, 3, 40, 56, seed=5)
    pixel_values[0, 1, :, :, 28:] = 0
    found = matched("superglue_b", pixel_values)
    assert len(set(found["mask"][0].sum(1).tolist())) == 2
    with torch.inference_mode():
        want = theirs("superglue_b")(pixel_values=pixel_values)
    assert np.array_equal(found["matches"], want.matches)
    close(found["matching_scores"], want.matching_scores)


def test_a_batch_changes_no_pair() -> None:
    """More padding than the pair needs has no mass; transformers' numbers depend on it."""
    pairs = noise(2, 2, 3, 40, 56, seed=5)
    pairs[1, :, :, :, 20:] = 0
    counts = []
    together = detected("superglue_b", pairs, "keypoint_detector")
    mass = assigned("superglue_b", together, 40, 56)
    for n in range(2):
        alone = detected("superglue_b", pairs[n : n + 1], "keypoint_detector")
        count = alone["mask"].shape[2]
        close(mass[n : n + 1, :count, :count], assigned("superglue_b", alone, 40, 56))
        assert not mass[n, count:].any()
        counts.append(count)
    assert counts[0] != counts[1]


def test_a_pair_without_keypoints_in_a_batch_has_no_match() -> None:
    found = detected("superglue_b", noise(1, 2, 3, 40, 56), "keypoint_detector")
    found = {key: np.concatenate([array, 0 * array]) for key, array in found.items()}
    mass = assigned("superglue_b", found, 40, 56)
    assert np.isfinite(mass).all()
    assert mass[0].any()
    assert not mass[1].any()


@pytest.mark.parametrize("name", [*DETECTORS, *MATCHERS])
def test_a_saved_model_is_the_stored_one(name: str, tmp_path: Path) -> None:
    model(name).save(tmp_path / "saved")
    stored, saved = (load_file(folder / "model.safetensors") for folder in (tiny(name), tmp_path / "saved"))
    counted = {key for key in stored if key.endswith("num_batches_tracked")}
    assert stored.keys() - saved.keys() == counted
    assert all(torch.equal(stored[key], saved[key]) for key in saved)


@pytest.mark.parametrize(
    ("model_type", "data", "message"),
    [
        ("superpoint", {"keypoint_decoder_dim": 17}, "keypoint_decoder_dim is 17"),
        ("superpoint", {"encoder_hidden_sizes": [8, 8, 8]}, "encoder_hidden_sizes is .* 4 stages"),
        ("superpoint", {"max_keypoints": -2}, "max_keypoints is -2"),
        ("superpoint", {"nms_radius": -1}, "nms_radius is -1"),
        ("superpoint", {"keypoint_threshold": "low"}, "keypoint_threshold is 'low'"),
        ("superpoint", {"soft_argmax": True}, "soft_argmax"),
        ("superglue", {"gnn_layers_types": ["self", "other"]}, "a layer is self or cross"),
        ("superglue", {"hidden_size": 64}, "descriptors have 256 channels"),
        ("superglue", {"is_decoder": True}, "is_decoder is true"),
        ("superglue", {"matching_threshold": "no"}, "matching_threshold is 'no'"),
        ("superglue", {"keypoint_detector_config": {"model_type": "vit"}}, "ViT as a detector is not supported"),
        ("superglue", {"keypoint_detector_config": {"model_type": "disk"}}, "'disk' is not supported"),
    ],
)
def test_configurations_without_meaning_are_refused(model_type: str, data: dict[str, Any], message: str) -> None:
    with pytest.raises((CheckpointError, UnsupportedModel), match=message):
        load_family(model_type).config.from_dict(data)


def test_thresholds_and_numbers_may_be_zero() -> None:
    config: Any = load_family("superpoint").config.from_dict(
        {"keypoint_threshold": 0, "max_keypoints": 0, "nms_radius": 0, "border_removal_distance": 0}
    )
    assert config.selection == {"threshold": 0.0, "most": 0, "radius": 0, "border": 0}
    assert load_family("superpoint").config.from_dict({}).selection["most"] == -1  # type: ignore[attr-defined]
