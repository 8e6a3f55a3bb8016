"""keypoint-detection and keypoint-matching answer as transformers does, from the checkpoint and from every bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from isoform import api
from isoform.cli import app
from isoform.errors import CheckpointError, InputError, UnsupportedModel
from isoform.reference.classes import class_facts
from isoform.runtimes.preprocess.image.opening import open_processor
from isoform.runtimes.preprocess.image.sized import size_of
from isoform.validators.cases.media import drawn
from tests import oracle
from tests.exports import exported

Tiny = Callable[[str], Path]
DETECTION, MATCHING = "keypoint-detection", "keypoint-matching"
ORDER = 1e-5  # sums of another order; scores and descriptors are at most 1


@cache
def theirs(name: str) -> tuple[Any, Any]:
    """transformers' Pillow processor and model."""
    import transformers

    folder = oracle.tiny(name)
    kind = "KeypointDetection" if name.startswith("superpoint") else "KeypointMatching"
    model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(folder).eval()
    return transformers.AutoImageProcessor.from_pretrained(folder, backend="pil"), model


def pictures() -> list[Any]:
    return [drawn(), drawn().rotate(90, expand=True), drawn().convert("L"), drawn().resize((5, 3))]


def close(found: Any, want: Any) -> None:
    assert np.shape(found) == np.shape(want)
    assert not np.size(want) or np.abs(np.asarray(found, np.float64) - np.asarray(want)).max() <= ORDER


# ------------------------------------------------------------------ processors
@pytest.mark.parametrize("name", ["superpoint", "superpoint_b", "superglue"])
def test_pixels_are_those_of_transformers_bit_for_bit(name: str, tiny: Tiny) -> None:
    processor, _ = theirs(name)
    mine = open_processor(tiny(name), class_facts(tiny(name)))
    arrays = [np.asarray(drawn()), np.moveaxis(np.asarray(drawn()), -1, 0), np.asarray(drawn()) / 255.0]
    for picture in (*pictures(), *arrays):
        given = [picture, picture] if name == "superglue" else picture
        want = processor(given, return_tensors="np")["pixel_values"].reshape(-1, *np.shape(mine([picture])[0])[1:])
        found = mine([picture])[0]
        assert found.dtype == np.float32
        assert all(np.array_equal(found[n], want[min(n, len(want) - 1)]) for n in range(3))


@pytest.mark.parametrize("name", ["superpoint", "superglue"])
def test_a_processor_without_settings_has_those_of_transformers(name: str, tiny: Tiny, tmp_path: Path) -> None:
    import transformers

    kind = "SuperPoint" if name == "superpoint" else "SuperGlue"
    settings = {"image_processor_type": f"{kind}ImageProcessorFast"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    want = getattr(transformers, f"{kind}ImageProcessorPil")()
    given = [drawn(), drawn()] if name == "superglue" else drawn()
    found = open_processor(tmp_path, class_facts(tmp_path))([drawn()])[0]
    assert found.shape == (3, 480, 640)
    assert np.array_equal(found, want(given, return_tensors="np")["pixel_values"].reshape(-1, *found.shape)[0])


@pytest.mark.parametrize(
    ("setting", "error"), [({"do_edge": True}, "do_edge"), ({"do_flip_channel_order": True}, "do_flip_channel_order")]
)
def test_settings_that_are_not_known_are_refused(
    setting: dict[str, Any], error: str, tiny: Tiny, tmp_path: Path
) -> None:
    shutil.copytree(tiny("superpoint"), tmp_path / "model")
    path = tmp_path / "model/preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | setting), encoding="utf-8")
    with pytest.raises(UnsupportedModel, match=error):
        api.pipeline(DETECTION, tmp_path / "model")


# ------------------------------------------------------------------ detection
def expected(name: str, picture: Any) -> dict[str, NDArray[Any]]:
    processor, model = theirs(name)
    with torch.inference_mode():
        outputs = model(**processor(picture, return_tensors="pt"))
    (found,) = processor.post_process_keypoint_detection(outputs, [(picture.height, picture.width)])
    return {key: value.numpy() for key, value in found.items()}


def same(found: dict[str, Any], want: dict[str, NDArray[Any]]) -> None:
    assert list(found) == ["keypoints", "scores", "descriptors"]
    assert found["keypoints"] == want["keypoints"].tolist()
    close(found["scores"], want["scores"])
    close(found["descriptors"], want["descriptors"])


@pytest.mark.parametrize("name", ["superpoint", "superpoint_b"])
def test_keypoints_are_those_of_transformers(name: str, tiny: Tiny) -> None:
    """Of pictures of any shape, in their own pixels, alone and in a list."""
    with api.pipeline(DETECTION, tiny(name)) as pipe:
        given = [picture.convert("RGB") for picture in pictures()]
        answers = pipe(given)
        for picture, found in zip(given, answers, strict=True):
            same(found, expected(name, picture))
        same(pipe(given[1]), expected(name, given[1]))
        array = np.asarray(given[0])
        same(pipe(array), expected(name, given[0]))


@pytest.mark.parametrize("backend", ["onnxruntime", "torchscript", "openvino"])
def test_a_bundle_finds_the_same_keypoints(backend: str, tiny: Tiny) -> None:
    with api.pipeline(DETECTION, tiny("superpoint_b")) as pipe:
        want = pipe(drawn())
    with api.pipeline(DETECTION, exported("superpoint_b"), backend=backend) as pipe:
        found = pipe(drawn())
    assert sorted(found["keypoints"]) == sorted(want["keypoints"])
    close(found["descriptors"], want["descriptors"])


def changed(source: Path, folder: Path, **settings: Any) -> Path:
    """The checkpoint with other settings in config.json, or in preprocessor_config.json where it has them."""
    shutil.copytree(source, folder)
    for file in ("config.json", "preprocessor_config.json"):
        path = folder / file
        data = json.loads(path.read_text("utf-8"))
        own = {key: value for key, value in settings.items() if key in data}
        path.write_text(json.dumps({**data, **own}), encoding="utf-8")
    return folder


def test_a_picture_without_keypoints_has_an_empty_answer(tiny: Tiny, tmp_path: Path) -> None:
    with api.pipeline(DETECTION, changed(tiny("superpoint"), tmp_path / "strict", keypoint_threshold=1.0)) as pipe:
        found = pipe(drawn())
    assert (found["keypoints"], found["scores"], found["descriptors"].shape) == ([], [], (0, 32))


def test_a_picture_that_is_not_resized_keeps_its_size(tiny: Tiny, tmp_path: Path) -> None:
    """One that is smaller than a cell is refused."""
    folder = changed(tiny("superpoint"), tmp_path / "whole", do_resize=False)
    with api.pipeline(DETECTION, folder) as pipe:
        picture = drawn().resize((61, 43))
        processor, model = theirs("superpoint")
        with torch.inference_mode():
            outputs = model(**processor(picture, do_resize=False, return_tensors="pt"))
        (want,) = processor.post_process_keypoint_detection(outputs, [(43, 61)])
        same(pipe(picture), {key: value.numpy() for key, value in want.items()})
        for size in ((7, 40), (40, 7), (1, 10_000)):
            with pytest.raises(InputError, match="is too small: the model reads at least 8"):
                pipe(drawn().resize(size))


def test_a_very_wide_picture_is_read(tiny: Tiny) -> None:
    with api.pipeline(DETECTION, tiny("superpoint")) as pipe:
        found = pipe(drawn().resize((10_000, 1)))
        assert {y for _, y in found["keypoints"]} == {0}
        same(found, expected("superpoint", drawn().resize((10_000, 1))))


# ------------------------------------------------------------------ matching
def pairs() -> list[list[Any]]:
    square = drawn().resize((96, 96))
    return [[square, square.rotate(5)], [drawn(), drawn().rotate(90, expand=True)], [drawn().resize((31, 90)), square]]


def matches(name: str, pair: list[Any], threshold: float = 0.0) -> list[dict[str, Any]]:
    """transformers' post-processing with heights and widths; its pipeline takes one for the other."""
    processor, model = theirs(name)
    with torch.inference_mode():
        outputs = model(**processor(pair, return_tensors="pt"))
    sizes = [[(picture.height, picture.width) for picture in pair]]
    (found,) = processor.post_process_keypoint_matching(outputs, sizes, threshold)
    rows = zip(
        found["keypoints0"].tolist(), found["keypoints1"].tolist(), found["matching_scores"].tolist(), strict=True
    )
    keys = ("keypoint_image_0", "keypoint_image_1")
    made = [
        {**{key: dict(zip("xy", place, strict=True)) for key, place in zip(keys, row, strict=False)}, "score": row[2]}
        for row in rows
    ]
    return sorted(made, key=lambda match: -match["score"])


def alike(found: list[dict[str, Any]], want: list[dict[str, Any]]) -> None:
    """The same pairs; scores that are equal but for rounding may have changed places."""

    def places(match: dict[str, Any]) -> list[int]:
        return [match[f"keypoint_image_{n}"][axis] for n in (0, 1) for axis in "xy"]

    assert [list(match) for match in found] == [list(match) for match in want]
    assert [match["score"] for match in found] == sorted((match["score"] for match in found), reverse=True)
    found, want = sorted(found, key=places), sorted(want, key=places)
    assert [places(match) for match in found] == [places(match) for match in want]
    close([match["score"] for match in found], [match["score"] for match in want])


@pytest.mark.parametrize("name", ["superglue", "superglue_b"])
def test_matches_are_those_of_transformers(name: str, tiny: Tiny) -> None:
    with api.pipeline(MATCHING, tiny(name)) as pipe:
        answers = pipe(pairs())
        for pair, found in zip(pairs(), answers, strict=True):
            assert found
            alike(found, matches(name, pair))
        best = answers[0][0]["score"]
        threshold = best * 0.8
        alike(pipe(pairs()[0], threshold=threshold), matches(name, pairs()[0], threshold))
        alike(pipe(pairs(), batch_size=3, threshold=threshold)[2], matches(name, pairs()[2], threshold))
        assert pipe(pairs()[0], threshold=1) == []


def test_square_pictures_are_answered_as_by_the_pipeline_of_transformers(tiny: Tiny) -> None:
    import transformers

    name = "superglue"
    want = transformers.pipeline(MATCHING, str(tiny(name)), image_processor=theirs(name)[0], device="cpu")
    pair = pairs()[0]
    with api.pipeline(MATCHING, tiny(name)) as pipe:
        alike(pipe(pair), want(pair))
        alike(pipe([pair]), want([pair]))
        alike(pipe((pair, pair[::-1]))[1], want([pair, pair[::-1]])[1])


@pytest.mark.parametrize("backend", ["onnxruntime", "torchscript", "openvino"])
def test_a_bundle_finds_the_same_matches(backend: str, tiny: Tiny) -> None:
    with api.pipeline(MATCHING, tiny("superglue_b")) as pipe:
        want = pipe(pairs()[1])
    with api.pipeline(MATCHING, exported("superglue_b"), backend=backend) as pipe:
        alike(pipe(pairs()[1]), want)


def test_pictures_without_keypoints_have_no_match(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "strict"
    shutil.copytree(tiny("superglue"), folder)
    data = json.loads((folder / "config.json").read_text("utf-8"))
    data["keypoint_detector_config"]["keypoint_threshold"] = 1.0
    (folder / "config.json").write_text(json.dumps(data), encoding="utf-8")
    with api.pipeline(MATCHING, folder) as pipe:
        assert pipe(pairs()[0]) == []


def test_what_is_no_pair_is_refused(tiny: Tiny) -> None:
    with api.pipeline(MATCHING, tiny("superglue")) as pipe:
        for wrong in (drawn(), [drawn()], [drawn()] * 3, [[drawn(), drawn()], drawn()], [[drawn()] * 3], "a.png", 7):
            with pytest.raises(InputError, match="takes a pair of pictures"):
                pipe(wrong)
        with pytest.raises(InputError, match="no parameter 'top_k'"):
            pipe(pairs()[0], top_k=3)
        with pytest.raises(InputError, match="threshold is a number"):
            pipe(pairs()[0], threshold="high")
        with pytest.raises(InputError, match="is not there"):
            pipe(["/none/a.png", drawn()])


def test_pictures_of_unlike_size_that_are_not_resized_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    with (
        api.pipeline(MATCHING, changed(tiny("superglue"), tmp_path / "whole", do_resize=False)) as pipe,
        pytest.raises(InputError, match="have 160 x 120 and 120 x 160 pixels"),
    ):
        pipe(pairs()[1])


def test_a_detector_alone_cannot_match(tiny: Tiny) -> None:
    with pytest.raises((CheckpointError, InputError, UnsupportedModel), match="keypoint"):
        api.pipeline(MATCHING, tiny("superpoint"))


def test_sizes_of_pictures_and_arrays_are_height_and_width() -> None:
    assert size_of(drawn()) == (120, 160)
    for shape in ((120, 160), (120, 160, 3), (3, 120, 160), (1, 120, 160)):
        assert size_of(np.zeros(shape)) == (120, 160)


def test_two_arguments_of_the_command_line_are_a_pair(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(tmp_path / f"{n}.png") for n in range(4)]
    for path, picture in zip(paths, (*pairs()[1], *pairs()[2]), strict=True):
        picture.save(path)
    lines = tmp_path / "pairs.jsonl"
    lines.write_text("\n".join(json.dumps(pair) for pair in (paths[:2], paths[2:])), encoding="utf-8")
    folder = str(tiny("superglue_b"))
    answers = []
    for given in (paths, [str(lines)]):
        assert app(["run", MATCHING, folder, *given, "--json"], standalone_mode=False) in (0, None)
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1]
    for found, pair in zip(answers[0], pairs()[1:], strict=True):
        alike(found, matches("superglue_b", pair))
    with pytest.raises(InputError, match="one picture was given"):
        app(["run", MATCHING, folder, paths[0]], standalone_mode=False)
