"""Pictures resized by their longer edge and padded, bit for bit as transformers' Pillow processor does it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoform.errors import CheckpointError, InputError, IsoformError, UnsupportedModel
from isoform.reference.classes import class_facts
from isoform.runtimes.preprocess.image.longest_edge import LongestEdgeProcessor
from isoform.runtimes.preprocess.image.opening import open_processor
from isoform.validators.cases.media import drawn

SMALL = {"size": {"longest_edge": 96}, "pad_size": {"height": 96, "width": 96}}
SETTINGS: dict[str, dict[str, Any]] = {
    "small": SMALL,
    "padded more": {"size": {"longest_edge": 80}, "pad_size": {"height": 90, "width": 100}},
    "as the class has it": {},
    "bicubic, not normalised": {**SMALL, "resample": 3, "do_normalize": False},
    "not scaled": {**SMALL, "do_rescale": False, "image_mean": [0.5] * 3, "image_std": [2.0] * 3},
    "masks for training": {**SMALL, "mask_size": {"longest_edge": 24}, "mask_pad_size": {"height": 24, "width": 24}},
}


def opened(folder: Path, settings: dict[str, Any], kind: str = "SamImageProcessor") -> Any:
    found = {"image_processor_type": kind, **settings}
    (folder / "preprocessor_config.json").write_text(json.dumps(found), encoding="utf-8")
    return open_processor(folder, class_facts(folder))


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_gives_transformers_pixels(name: str, tmp_path: Path) -> None:
    from transformers import SamImageProcessorPil

    ours, theirs = opened(tmp_path, SETTINGS[name]), SamImageProcessorPil(**SETTINGS[name])
    assert isinstance(ours, LongestEdgeProcessor)
    tall, thin = drawn().rotate(90, expand=True), drawn().resize((7, 503))
    for picture in (drawn(), tall, thin, drawn().convert("RGBA"), drawn().convert("L"), np.asarray(drawn())):
        want = theirs(picture, return_tensors="np")
        np.testing.assert_array_equal(ours([picture])[0], np.asarray(want["pixel_values"][0], np.float32))
        height, width = want["original_sizes"][0]
        assert ours.resized(height, width) == tuple(want["reshaped_input_sizes"][0])


def test_the_names_of_older_files_are_read(tmp_path: Path) -> None:
    want = opened(tmp_path, SMALL)([drawn()])[0]
    for kind in ("SamImageProcessorFast", "SamImageProcessorPil"):
        np.testing.assert_array_equal(opened(tmp_path, SMALL, kind)([drawn()])[0], want)


def test_points_go_where_the_processor_of_transformers_puts_them(tmp_path: Path) -> None:
    from transformers import SamImageProcessorPil, SamProcessor

    points = [[[[3.0, 5.0], [159.0, 119.5]], [[0.0, 0.0], [80.0, 1.0]]]]
    want = SamProcessor(SamImageProcessorPil(**SMALL))(drawn(), input_points=points, return_tensors="pt")
    placed = opened(tmp_path, SMALL).placed(np.array(points), 120, 160)
    np.testing.assert_array_equal(placed, want["input_points"].numpy())


WRONG: dict[str, tuple[dict[str, Any], type[IsoformError], str]] = {
    "not padded": ({"do_pad": False}, UnsupportedModel, "not padded"),
    "not resized": ({"do_resize": False}, UnsupportedModel, "not resized"),
    "cropped": ({"do_center_crop": True, "crop_size": 32}, UnsupportedModel, "or cropped"),
    "a square": ({"size": {"height": 96, "width": 96}}, CheckpointError, "it has longest_edge alone"),
    "no room": ({"pad_size": {"height": 96, "width": 90}}, CheckpointError, "must hold the longest edge of 96"),
    "no sizes": ({"pad_size": 96}, CheckpointError, "it has height and width"),
    "another setting": ({"do_sharpen": True}, UnsupportedModel, "do_sharpen"),
}


@pytest.mark.parametrize("name", WRONG)
def test_settings_that_cannot_be_followed_are_refused(name: str, tmp_path: Path) -> None:
    settings, kind, words = WRONG[name]
    with pytest.raises(kind, match=words):
        opened(tmp_path, {**SMALL, **settings})


def test_a_picture_that_would_vanish_is_refused(tmp_path: Path) -> None:
    processor = opened(tmp_path, SMALL)
    assert processor([drawn().resize((192, 1))])[0].shape == (3, 96, 96)
    with pytest.raises(InputError, match="at most 192 times"):
        processor([drawn().resize((193, 1))])
    with pytest.raises(InputError, match="10000 x 1 would become 96 x 0"):
        processor([drawn().resize((10_000, 1))])
