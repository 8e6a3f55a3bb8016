"""Pictures that are normalised and then resized, and the interpolation by which they are, against torch's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from isoform.errors import InputError, UnsupportedModel
from isoform.reference.classes import class_facts
from isoform.runtimes.preprocess.image.interpolation import bicubic, bilinear
from isoform.runtimes.preprocess.image.opening import open_processor
from tests.oracle.depth_goldens import HASHES, SETTINGS, digest, pictures

ROUNDING = 2e-6  # of values up to 4: products of float32 in another order
SIZES = [(40, 30, 96, 96), (300, 201, 96, 200), (7, 9, 64, 1), (1, 50, 33, 500), (96, 96, 300, 201), (5, 5, 5, 5)]


def processor(folder: Path, settings: dict[str, Any], kind: str = "DepthProImageProcessor") -> Any:
    data = json.dumps({"image_processor_type": kind, **settings})
    (folder / "preprocessor_config.json").write_text(data, encoding="utf-8")
    return open_processor(folder, class_facts(folder))


@pytest.mark.parametrize("name", SETTINGS)
def test_pixels_are_those_of_transformers_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Whose torchvision processor gave these hashes."""
    known = json.loads(HASHES.read_text())
    found = processor(tmp_path, SETTINGS[name])
    for picture, image in pictures().items():
        assert digest(found([image])[0]) == known[f"{name}, {picture}"], picture
        again = found([np.asarray(image)])[0] if picture != "row" else found.one(np.moveaxis(np.asarray(image), 2, 0))
        assert digest(again) == known[f"{name}, {picture}"]


@pytest.mark.parametrize("size", SIZES)
def test_bilinear_values_are_torchs_bit_for_bit(size: tuple[int, ...]) -> None:
    old, new = size[:2], size[2:]
    x = np.random.default_rng(0).standard_normal((3, *old)).astype(np.float32)
    want = F.interpolate(torch.from_numpy(x)[None], size=new, mode="bilinear", align_corners=False)[0].numpy()
    np.testing.assert_array_equal(bilinear(x, *new), want)


@pytest.mark.parametrize("size", SIZES)
def test_maps_of_one_channel_are_torchs_to_a_rounding(size: tuple[int, ...]) -> None:
    old, new = size[:2], size[2:]
    x = np.random.default_rng(0).standard_normal((1, *old)).astype(np.float32)
    for mode, ours in (("bilinear", bilinear), ("bicubic", bicubic)):
        want = F.interpolate(torch.from_numpy(x)[None], size=new, mode=mode, align_corners=False)[0].numpy()
        found = ours(x, *new)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, want, rtol=0, atol=20 * ROUNDING)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"antialias": True}, "antialias is true"),
        ({"resample": 3}, "resample is 3"),
        ({"size": {"shortest_edge": 30}}, "it has height and width"),
        ({"do_center_crop": True, "crop_size": 20}, "does not crop"),
        ({"do_rescale": False, "do_normalize": False}, "resizes no bytes"),
        ({"do_pad": True}, "do_pad is True"),
        ({"sharpness": 2}, "sharpness = 2 is not known"),
    ],
)
def test_settings_that_are_not_followed_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        processor(tmp_path, settings)


def test_older_spellings_and_null_settings_are_read(tmp_path: Path) -> None:
    """`…Fast`, a size as one number, and what newer versions write without a meaning for this class."""
    nothing = {"crop_size": None, "do_center_crop": None, "data_format": "channels_first", "device": None}
    settings = {"size": 64, "antialias": False, "disable_grouping": None, **nothing}
    assert processor(tmp_path, settings, "DepthProImageProcessorFast")([pictures()["small"]])[0].shape == (3, 64, 64)


def test_a_picture_without_three_channels_is_refused(tmp_path: Path) -> None:
    found = processor(tmp_path, {})
    with pytest.raises(InputError, match="has 1 channels, the processor normalises 3"):
        found([pictures()["small"].convert("L")])
    with pytest.raises(InputError, match="is no picture"):
        found.one(np.zeros((0, 4, 3), np.uint8))
