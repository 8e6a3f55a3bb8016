"""Pictures whose sides become multiples of a number, against transformers' Pillow processor, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isoform.errors import CheckpointError, InputError, UnsupportedModel
from isoform.reference.classes import class_facts
from isoform.runtimes.preprocess.image.opening import open_processor
from isoform.validators.cases.media import drawn


def processor(folder: Path, settings: dict[str, Any]) -> Any:
    data = json.dumps({"image_processor_type": "DPTImageProcessor", **settings})
    (folder / "preprocessor_config.json").write_text(data, encoding="utf-8")
    return open_processor(folder, class_facts(folder))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ensure_multiple_of": 14, "keep_aspect_ratio": True, "size": {"height": 70, "width": 70}},
        {"ensure_multiple_of": 32, "keep_aspect_ratio": True, "size": {"height": 64, "width": 200}, "resample": 2},
        {"ensure_multiple_of": 10, "size": {"height": 64, "width": 95}},
        {"size": 64, "do_pad": False, "size_divisor": None},
    ],
)
def test_pixels_are_those_of_transformers(settings: dict[str, Any], tmp_path: Path) -> None:
    from transformers import DPTImageProcessorPil

    ours, theirs = processor(tmp_path, settings), DPTImageProcessorPil(**settings)
    for size in ((160, 120), (33, 70), (70, 33), (119, 121)):
        picture = drawn().resize(size)
        want = theirs(picture, return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(ours([picture])[0], np.asarray(want, np.float32))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"ensure_multiple_of": 0}, CheckpointError, "ensure_multiple_of is 0"),
        ({"size": {"shortest_edge": 30}}, UnsupportedModel, "it has height and width"),
        ({"do_pad": True, "size_divisor": 14}, UnsupportedModel, "do_pad is True"),
    ],
)
def test_settings_that_are_not_followed_are_refused(
    settings: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        processor(tmp_path, settings)


def test_a_picture_that_would_vanish_is_refused(tmp_path: Path) -> None:
    """A side that is rounded to 0, where transformers asks Pillow for an empty picture."""
    settings = {"ensure_multiple_of": 14, "keep_aspect_ratio": True, "size": {"height": 28, "width": 28}}
    with pytest.raises(InputError, match="a picture of 10000 x 1 would become"):
        processor(tmp_path, settings)([Image.new("RGB", (10000, 1))])
