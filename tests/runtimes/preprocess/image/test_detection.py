"""Pictures for detectors are those of transformers' Pillow processors, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isoform.errors import CheckpointError, InputError, IsoformError, UnsupportedModel
from isoform.reference.classes import class_facts
from isoform.runtimes.preprocess.image.opening import open_processor
from isoform.validators.cases.media import drawn

RT_DETR = {"image_processor_type": "RTDetrImageProcessor"}
DETR = {"image_processor_type": "DetrImageProcessor"}
YOLOS = {"image_processor_type": "YolosImageProcessor"}
SETTINGS: dict[str, dict[str, Any]] = {
    "as the class has it": RT_DETR,
    "fast": {"image_processor_type": "RTDetrImageProcessorFast", "size": {"height": 96, "width": 64}},
    "normalised": {**RT_DETR, "do_normalize": True, "size": {"height": 64, "width": 96}, "resample": 3},
    "by edges": {**RT_DETR, "size": {"shortest_edge": 60, "longest_edge": 75}},
    "by bounds": {**RT_DETR, "size": {"max_height": 90, "max_width": 50}},
    "padded": {
        **RT_DETR,
        "size": {"shortest_edge": 40, "longest_edge": 60},
        "do_pad": True,
        "pad_size": {"height": 64, "width": 70},
    },
    "in patches": {**YOLOS, "size": {"shortest_edge": 60, "longest_edge": 100}},
    "in patches, older": {**YOLOS, "size": 50, "max_size": 70},
    "in patches, padded": {**YOLOS, "size": 50, "max_size": 70, "pad_size": {"height": 80, "width": 96}},
    "in patches, not padded": {
        **YOLOS,
        "size": {"height": 33, "width": 50},
        "pad_and_return_pixel_mask": False,
        "pad_size": {"height": 80, "width": 96},
    },
    "of any size": {**DETR, "size": {"shortest_edge": 60, "longest_edge": 100}},
    "of any size, older": {**DETR, "size": 50, "max_size": 70},
    "of any size, padded": {**DETR, "size": 50, "max_size": 70, "pad_size": {"height": 80, "width": 96}},
    "of Deformable DETR": {
        "image_processor_type": "DeformableDetrImageProcessor",
        "size": {"shortest_edge": 60, "longest_edge": 100},
    },
    "as it is": {**RT_DETR, "do_resize": False, "rescale_factor": 0.01},
}


def processor(folder: Path, **settings: Any) -> Any:
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return open_processor(folder, class_facts(folder))


def pictures() -> list[Image.Image]:
    return [drawn(), drawn().rotate(90, expand=True), drawn().resize((33, 47)), drawn().resize((7, 5))]


@pytest.mark.parametrize("name", SETTINGS)
def test_pixels_and_masks_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    import transformers

    settings = SETTINGS[name]
    ours = processor(tmp_path, **settings)
    kind = settings["image_processor_type"].removesuffix("Fast") + "Pil"
    theirs = getattr(transformers, kind)(**{k: v for k, v in settings.items() if k != "image_processor_type"})
    for picture in pictures():
        for given in (picture, np.asarray(picture)):
            expected = theirs(images=[given], return_tensors="np")
            (found,) = ours([given])
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, expected["pixel_values"][0])
        mask = ours.mask(picture.height, picture.width)
        want = expected["pixel_mask"][0] if "pixel_mask" in expected else np.ones(found.shape[1:], np.int64)
        np.testing.assert_array_equal(mask, want)


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"size": 640}, CheckpointError, "it has height and width, or shortest_edge and longest_edge"),
        ({"size": {"height": 0, "width": 3}}, CheckpointError, "size is"),
        ({"size": {"height": "a", "width": 3}}, CheckpointError, "make no sense"),
        ({"do_pad": True, "pad_size": 7}, CheckpointError, "pad_size is 7"),
        ({"do_pad": True, "pad_size": {"height": 7}}, CheckpointError, "it has height and width"),
        ({"do_center_crop": True, "crop_size": "x"}, IsoformError, "make no sense"),
        ({"do_mirror": True}, UnsupportedModel, "do_mirror = True is not known"),
    ],
)
def test_settings_without_meaning_are_refused(
    settings: dict[str, Any], kind: type[IsoformError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message):
        processor(tmp_path, **RT_DETR, **settings)


def test_pictures_that_cannot_be_prepared_are_refused(tmp_path: Path) -> None:
    thin = Image.new("RGB", (10_000, 1))
    with pytest.raises(InputError, match="crop it first"):
        processor(tmp_path, **RT_DETR, size={"shortest_edge": 60, "longest_edge": 75})([thin])
    padded = processor(tmp_path, **RT_DETR, do_pad=True, pad_size={"height": 64, "width": 64})
    with pytest.raises(InputError, match="does not fit into the pad_size of 64 x 64"):
        padded([drawn()])
    assert processor(tmp_path, **RT_DETR)([thin])[0].shape == (3, 640, 640)
