"""The pipeline of objects against the answers of transformers' on the same checkpoints and pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isoform import api
from isoform.errors import CheckpointError, InputError, UnsupportedModel
from isoform.formats import FORMAT_OF
from isoform.manifest import Manifest
from isoform.runtimes.pipelines.vision.object_detection import best_of_all, best_of_each, corners_of
from isoform.validators.cases.media import drawn
from tests.exports import copied, exported, portable
from tests.oracle import tiny as folder_of

Tiny = Callable[[str], Path]
Things = list[dict[str, Any]]
SCORE = 1e-4  # float32 sums in another order, which the refining of boxes makes larger
PIXEL = 1  # of a corner: where it lies between two pixels
DETECTORS = (
    "rt_detr_v2",
    "rt_detr_b",
    "rt_detr_v2_b",
    "yolos",
    "yolos_b",
    "detr",
    "detr_b",
    "deformable_detr",
    "deformable_detr_b",
)


def pictures() -> list[Image.Image]:
    return [drawn(), drawn().rotate(90, expand=True).resize((55, 91))]


@cache
def theirs(name: str) -> list[Things]:
    """Every thing above 0.2 of each picture, one picture at a time."""
    from transformers import pipeline

    pipe = pipeline("object-detection", str(folder_of(name)))
    return [pipe(picture, threshold=0.2) for picture in pictures()]


def same(found: Things, expected: Things) -> None:
    """The same things with the same scores, from the best on; those of almost equal scores in any order."""
    assert len(found) == len(expected) > 0
    left = list(expected)
    for n, thing in enumerate(found):
        assert list(thing) == ["score", "label", "box"]
        assert list(thing["box"]) == ["xmin", "ymin", "xmax", "ymax"]
        assert all(type(side) is int for side in thing["box"].values())
        assert abs(thing["score"] - expected[n]["score"]) < SCORE
        near = [other for other in left if is_near(thing, other)]
        assert near, thing
        left.remove(near[0])


def is_near(one: dict[str, Any], other: dict[str, Any]) -> bool:
    gaps = [abs(one["box"][side] - other["box"][side]) for side in one["box"]]
    return one["label"] == other["label"] and abs(one["score"] - other["score"]) < SCORE and max(gaps) <= PIXEL


@pytest.mark.parametrize("name", DETECTORS)
def test_things_are_those_of_transformers(name: str, tiny: Tiny) -> None:
    with api.pipeline("object-detection", tiny(name), backend="torch") as pipe:
        for size in (None, 2):
            for found, expected in zip(pipe(pictures(), threshold=0.2, batch_size=size), theirs(name), strict=True):
                same(found, expected)


@pytest.mark.parametrize("name", ["rt_detr_v2", "yolos", "detr", "deformable_detr"])
def test_every_backend_finds_the_things_of_transformers(name: str) -> None:
    written = {artifact.format for artifact in Manifest.read(exported(name)).artifacts}
    for backend, form in FORMAT_OF.items():
        if form in written:
            source = portable(name) if backend == "openvino" else exported(name)
            with api.pipeline("object-detection", source, backend=backend, threads=1) as pipe:
                same(pipe(pictures()[1], threshold=0.2), theirs(name)[1])


def test_one_picture_has_one_answer_however_it_is_given(tiny: Tiny, tmp_path: Path) -> None:
    picture = pictures()[1]
    picture.save(tmp_path / "one.png")
    with api.pipeline("object-detection", tiny("rt_detr_v2_b")) as pipe:
        for given in (tmp_path / "one.png", str(tmp_path / "one.png"), np.asarray(picture)):
            same(pipe(given, threshold=0.2, timeout=3), theirs("rt_detr_v2_b")[1])
        same(pipe(images=picture, threshold=0.2), theirs("rt_detr_v2_b")[1])
        assert [len(things) > 0 for things in pipe((one for one in pictures()), threshold=0.2)] == [True, True]
        surest = pipe(picture, threshold=0.2)[0]["score"]
        assert pipe(picture, threshold=surest) == []
        assert pipe(picture) == [thing for thing in pipe(picture, threshold=0.0) if thing["score"] > 0.5]


def test_boxes_are_in_the_pixels_of_the_picture_itself(tiny: Tiny) -> None:
    with api.pipeline("object-detection", tiny("rt_detr_v2_b")) as pipe:
        small = pipe(drawn(), threshold=0.0)
        large = pipe(drawn().resize((1600, 1200), Image.Resampling.NEAREST), threshold=0.0)
        for name in ("xmin", "ymin"):
            spread = [np.ptp([thing["box"][name] for thing in things]) for things in (small, large)]
            assert 5 < spread[1] / spread[0] < 20


@pytest.mark.parametrize("threshold", ["0.5", None, True, [0.5]])
def test_a_threshold_that_is_no_number_is_refused(threshold: Any, tiny: Tiny) -> None:
    with api.pipeline("object-detection", tiny("rt_detr_v2_b")) as pipe, pytest.raises(InputError, match="threshold="):
        pipe(drawn(), threshold=threshold)


def test_pictures_that_are_none_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "none.png").write_bytes(b"no picture")
    with api.pipeline("object-detection", tiny("rt_detr_v2_b")) as pipe:
        for given in (tmp_path / "none.png", 3, {"picture": drawn()}):
            with pytest.raises(InputError):
                pipe(given)
        for side in ((1, 10_000), (10_000, 1), (1, 1)):
            assert isinstance(pipe(Image.new("RGB", side)), list)


@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "torchscript"])
def test_a_size_that_does_not_halve_evenly_is_refused(backend: str, tmp_path: Path) -> None:
    """The maps of an encoder do not fit on each other then, in transformers neither."""
    copy = copied(exported("rt_detr_v2"), tmp_path / "copy")
    settings = {"image_processor_type": "RTDetrImageProcessor", "size": {"height": 100, "width": 96}}
    (copy / "preprocessor_config.json").write_text(json.dumps(settings))
    pipe = api.pipeline("object-detection", copy, backend=backend)
    with pipe, pytest.raises(InputError, match="could not run the model on these inputs"):
        pipe(drawn())


def test_a_folder_that_does_not_say_how_boxes_are_scored_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny("rt_detr_v2_b"), copy)
    (copy / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "ViTImageProcessor"}))
    with pytest.raises(UnsupportedModel, match="does not say how boxes are scored"):
        api.pipeline("object-detection", copy)
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no preprocessor_config\.json"):
        api.pipeline("object-detection", copy)


def test_scores_of_a_query_are_shares_or_each_label_s_own() -> None:
    logits = np.array([[2.0, 0.0, 1.0], [-1.0, 3.0, 0.5]], np.float32)
    scores, labels, queries = best_of_all(logits, None)
    assert (labels.tolist(), queries.tolist()) == ([1, 0], [1, 0])
    np.testing.assert_allclose(scores, 1 / (1 + np.exp([-3.0, -2.0])), rtol=1e-6)
    assert best_of_all(logits, 4)[1].tolist() == [1, 0, 2, 2]
    scores, labels, queries = best_of_each(logits, None)
    assert (labels.tolist(), queries.tolist()) == ([0, 1], [0, 1])
    np.testing.assert_allclose(scores[0], np.exp(2) / np.exp([2.0, 0.0, 1.0]).sum(), rtol=1e-6)
    assert best_of_all(np.array([[-200, 200]], np.float32), None)[0].tolist() == [1.0]


def test_corners_are_half_a_size_away_from_the_centre() -> None:
    found = corners_of(np.array([[0.5, 0.4, 0.2, 0.6]]))
    np.testing.assert_allclose(found, [[0.4, 0.1, 0.6, 0.7]], rtol=1e-6)
