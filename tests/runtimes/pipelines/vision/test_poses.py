"""Poses against transformers' model with its processor and post-processing, on the same checkpoints and pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from isoform import api
from isoform.cli import app
from isoform.errors import InputError, IsoformError, UnsupportedModel
from isoform.reference.classes import class_facts
from isoform.runtimes.pipelines.vision.heatmaps import keypoints, mirrored_back
from isoform.runtimes.preprocess.image.opening import open_processor
from isoform.runtimes.preprocess.image.person_crops import PersonCrops
from isoform.validators.cases.media import drawn
from tests import oracle
from tests.exports import exported

Tiny = Callable[[str], Path]
BOXES = [[20, 10, 60, 90], [-15, 40.5, 40, 200.25], [100.75, 0, 80, 30]]
PAIRS = [[1, 2], [3, 4], [15, 16]]


def processor(**settings: Any) -> Any:
    from transformers.models.vitpose.image_processing_pil_vitpose import VitPoseImageProcessorPil

    return VitPoseImageProcessorPil(**settings)


@cache
def theirs(name: str) -> tuple[Any, Any]:
    """transformers' model and its Pillow processor."""
    import transformers

    folder = oracle.tiny(name)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings.pop("image_processor_type")
    return transformers.VitPoseForPoseEstimation.from_pretrained(folder).eval(), processor(**settings)


def wanted(name: str, picture: Any, boxes: Any, pairs: Any = None, dataset: int = 0, **options: Any) -> Any:
    """transformers' answer about one picture."""
    model, prepare = theirs(name)
    pixels = torch.tensor(np.stack(prepare(picture, boxes=[boxes])["pixel_values"])).float()
    chosen = {"dataset_index": torch.tensor([dataset] * len(boxes))} if name != "vitpose" else {}
    with torch.inference_mode():
        heatmaps = model(pixels, **chosen).heatmaps
        if pairs:
            mirrored = model(pixels.flip(-1), flip_pairs=torch.tensor(pairs), **chosen).heatmaps
            heatmaps = (heatmaps + mirrored) / 2
    return prepare.post_process_pose_estimation(SimpleNamespace(heatmaps=heatmaps), [boxes], **options)[0]


def close(ours: Any, want: Any) -> None:
    """The same keys in the same order. Noise has flat peaks, so that a refined place may be far off and move much."""
    assert [list(one) for one in ours] == [list(one) for one in want]
    for mine, other in zip(ours, want, strict=True):
        assert mine["labels"] == other["labels"].tolist()
        np.testing.assert_allclose(mine["scores"], other["scores"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(mine["keypoints"], other["keypoints"], rtol=1e-4, atol=1e-2)
        np.testing.assert_allclose(mine["bbox"], other["bbox"], rtol=1e-6)


# ------------------------------------------------------------------ the processor
@pytest.mark.parametrize(("height", "width"), [(256, 192), (33, 90)])
def test_persons_are_cut_out_to_the_bit(height: int, width: int, tmp_path: Path) -> None:
    size = {"height": height, "width": width}
    settings = {"image_processor_type": "VitPoseImageProcessor", "size": size}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    ours, random = open_processor(tmp_path, class_facts(tmp_path)), np.random.default_rng(0)
    photo = drawn().resize((641, 480))
    for picture in (photo, photo.rotate(90, expand=True), np.asarray(drawn()).astype(np.float32) / 255):
        pixels = ours.pixels(picture)
        high, wide = pixels.shape[:2]
        sizes = random.uniform((-20, -20, 1, 1), (wide - 1, high - 1, wide, high), (8, 4)).tolist()
        boxes = [*sizes, [0, 0, wide, high], [0, 0, 1, 1], [wide - 2, 3, 1.5, 100]]
        for box, want in zip(boxes, processor(size=size)(picture, boxes=[boxes])["pixel_values"], strict=True):
            found = ours.warped(pixels, ours.crop(box))
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, want.astype(np.float32))


@pytest.mark.parametrize("kernel", [1, 3, 11])
def test_keypoints_of_heatmaps_are_those_of_transformers(kernel: int) -> None:
    """Peaks inside, at the edges and beyond them, maps without a peak, and maps smaller than the blur."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:64, :48]
    middles = random.uniform((-1, -1), (48, 64), (51, 2))
    peaks = [np.exp(-((x - a) ** 2 + (y - b) ** 2) / 8) * random.uniform(-0.2, 1) for a, b in middles]
    smooth = (np.array(peaks) + random.normal(0, 0.01, (51, 64, 48))).astype(np.float32).reshape(3, 17, 64, 48)
    crops = object.__new__(PersonCrops)
    crops.width, crops.height = 192, 256
    for heatmaps in (smooth, random.standard_normal((2, 5, 6, 4)).astype(np.float32) - 2):
        boxes = random.uniform(1, 300, (len(heatmaps), 4)).tolist()
        outputs = SimpleNamespace(heatmaps=torch.from_numpy(heatmaps))
        want = processor().post_process_pose_estimation(outputs, [boxes], kernel_size=kernel)[0]
        places, scores = keypoints(heatmaps, [crops.crop(box) for box in boxes], kernel)
        np.testing.assert_array_equal(places, np.stack([one["keypoints"] for one in want]))
        np.testing.assert_array_equal(scores, np.stack([one["scores"] for one in want]))


def test_mirrored_heatmaps_are_turned_back_as_transformers_does_it() -> None:
    from transformers.models.vitpose.modeling_vitpose import flip_back

    heatmaps = torch.randn(2, 6, 4, 3, generator=torch.Generator().manual_seed(0))
    want = flip_back(heatmaps, torch.tensor([[1, 2], [5, 3]]))
    np.testing.assert_array_equal(mirrored_back(heatmaps.numpy(), [(1, 2), (5, 3)]), want)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_affine_transform": False}, "does not warp persons"),
        ({"do_resize": False}, "does not warp persons"),
        ({"size": {"shortest_edge": 64}}, "state both sizes"),
        ({"normalize_factor": 100.0}, "normalize_factor is 100.0; keypoints come back with 200.0 only"),
        ({"rotation": 30}, "rotation = 30 is not known"),
    ],
)
def test_a_processor_that_warps_nothing_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    known = {"image_processor_type": "VitPoseImageProcessor", **settings}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(known))
    with pytest.raises(UnsupportedModel, match=message):
        open_processor(tmp_path, class_facts(tmp_path))


# ------------------------------------------------------------------ the pipeline
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vitpose", {}),
        ("vitpose", {"threshold": 1.5, "kernel_size": 3}),
        ("vitpose_plus", {"dataset": 5}),
        ("vitpose_b", {"dataset": 1}),
    ],
)
def test_poses_are_those_of_transformers(name: str, options: dict[str, Any]) -> None:
    with api.pipeline("pose-estimation", oracle.tiny(name), quality="exact") as pipe:
        ours = {key if key != "dataset" else "dataset_index": value for key, value in options.items()}
        for picture in (drawn(), drawn().convert("L")):
            found = pipe(picture, boxes=BOXES, **ours)
            close(found, wanted(name, picture.convert("RGB"), BOXES, **options))


def test_the_mirrored_picture_is_read_too() -> None:
    with api.pipeline("pose-estimation", oracle.tiny("vitpose"), quality="exact") as pipe:
        close(pipe(drawn(), boxes=BOXES, flip_pairs=PAIRS), wanted("vitpose", drawn(), BOXES, PAIRS))
        assert pipe(drawn(), boxes=BOXES, flip_pairs=PAIRS) != pipe(drawn(), boxes=BOXES, flip_pairs=[])


@pytest.mark.parametrize("backend", ["onnxruntime", "torchscript", "openvino"])
def test_a_bundle_answers_as_its_checkpoint_does(backend: str, tiny: Tiny) -> None:
    with (
        api.pipeline("pose-estimation", tiny("vitpose_b"), backend="torch") as torch_pipe,
        api.pipeline("pose-estimation", exported("vitpose_b"), backend=backend) as pipe,
    ):
        for mine, other in zip(
            pipe(drawn(), boxes=BOXES, dataset_index=2), torch_pipe(drawn(), boxes=BOXES, dataset_index=2), strict=True
        ):
            np.testing.assert_allclose(mine["keypoints"], other["keypoints"], rtol=1e-4, atol=1e-2)
            np.testing.assert_allclose(mine["scores"], other["scores"], rtol=1e-5, atol=1e-5)


def test_the_command_line_finds_a_pose(tiny: Tiny, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    drawn().save(tmp_path / "a.png")
    arguments = ["run", "pose-estimation", str(tiny("vitpose")), str(tmp_path / "a.png"), "--json"]
    done = CliRunner().invoke(app, [*arguments, "--set", f"boxes={json.dumps(BOXES)}"])
    assert done.exit_code == 0, done.output
    assert [list(one) for one in json.loads(done.stdout)[0]] == [["keypoints", "scores", "labels", "bbox"]] * 3
    lines = [{"image": str(tmp_path / "a.png"), "boxes": boxes} for boxes in (BOXES, BOXES, [])]
    (tmp_path / "persons.jsonl").write_text("\n".join(map(json.dumps, lines)))
    done = CliRunner().invoke(app, [*arguments[:3], str(tmp_path / "persons.jsonl"), "--json"])
    assert done.exit_code == 0, done.output
    assert [len(answer) for answer in json.loads(done.stdout)] == [3, 3, 0]


def test_pictures_have_boxes_of_their_own_in_any_batch(tiny: Tiny, tmp_path: Path) -> None:
    drawn().save(tmp_path / "a.png")
    with api.pipeline("pose-estimation", tiny("vitpose")) as pipe:
        first, second = pipe(drawn(), boxes=BOXES), pipe(drawn(), boxes=BOXES[:1])
        assert len(first) == 3
        pictures = [str(tmp_path / "a.png"), drawn()]
        for size in (None, 1, 4):
            found = pipe(pictures, boxes=[BOXES, BOXES[:1]], batch_size=size)
            for mine, other in zip(found, (first, second), strict=True):
                for one, two in zip(mine, other, strict=True):
                    np.testing.assert_allclose(one["keypoints"], two["keypoints"], atol=1e-3)
        assert pipe({"image": drawn(), "boxes": BOXES[:1]}) == second
        assert list(pipe({"image": one, "boxes": np.array(BOXES[:1])} for one in pictures)) == [second, second]


def test_without_boxes_the_whole_picture_is_one_person(tiny: Tiny) -> None:
    with api.pipeline("pose-estimation", tiny("vitpose")) as pipe:
        assert pipe(drawn()) == pipe(drawn(), boxes=[[0, 0, 160, 120]])
        assert pipe(drawn(), boxes=[]) == []
        assert pipe([drawn(), drawn()], boxes=[[], BOXES[:1]])[0] == []


def thing(label: str, score: float, *edges: int) -> dict[str, Any]:
    return {"score": score, "label": label, "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), edges, strict=True))}


def test_a_detector_finds_the_persons(tiny: Tiny) -> None:
    asked: list[Any] = []

    def detector(picture: Image.Image, **options: Any) -> list[dict[str, Any]]:
        asked.append((picture.size, options))
        things = ("person", 0.6, 20, 10, 80, 100), ("dog", 0.9, 0, 0, 9, 9), ("Person", 0.8, 5, 6, 60, 70)
        no_persons = ("person", 0.7, 3, 3, 3, 9), ("person", 0.9, 160, 0, 170, 9), ("person", 0.9, 0, -9, 9, 0)
        return [thing(*one) for one in (*things, *no_persons)]

    with api.pipeline("pose-estimation", tiny("vitpose")) as pipe:
        found = pipe(drawn(), detector=detector, detector_threshold=0.3)
        assert asked == [((160, 120), {"threshold": 0.3})]
        assert [one.pop("box")["xmin"] for one in found] == [5, 20]
        for mine, other in zip(found, pipe(drawn(), boxes=[[5, 6, 55, 64], [20, 10, 60, 90]]), strict=True):
            np.testing.assert_allclose(mine["keypoints"], other["keypoints"], atol=1e-3)
        assert len(pipe(np.asarray(drawn()) / np.float32(255), detector=detector, detector_label=("dog", "cat"))) == 1
        assert pipe(drawn(), detector=lambda picture: []) == []
        assert pipe(drawn(), detector=detector, detector_label="horse") == []


def test_a_detector_that_knows_no_person_is_refused(tiny: Tiny) -> None:
    def detector(picture: Any) -> list[Any]:
        return []

    detector.model = SimpleNamespace(config=SimpleNamespace(id2label={0: "cat", 1: "dog"}))  # type: ignore[attr-defined]
    with api.pipeline("pose-estimation", tiny("vitpose")) as pipe:
        with pytest.raises(InputError, match="finds no 'person'; set detector_label to what it finds: cat, dog"):
            pipe(drawn(), detector=detector)
        assert pipe(drawn(), detector=detector, detector_label="Cat") == []


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"boxes": [[1, 2, 3]]}, r"boxes\[0\] is \[1, 2, 3\]; a box is \[x, y, width, height\]"),
        ({"boxes": [1, 2, 3, 4]}, r"boxes\[0\] is 1; a box"),
        ({"boxes": [[1, 2, 3, "a"]]}, r"boxes\[0\] is"),
        ({"boxes": "face"}, "is no list of boxes"),
        (
            {"boxes": [[1, 2, 3, 4], [5, 5, 0, 9]]},
            r"boxes\[1\] is \[5, 5, 0, 9\]; its width and height must be",
        ),
        ({"boxes": [[1, 2, -3, 4]]}, "must be above 0"),
        ({"boxes": [[1, 2, float("nan"), 4]]}, "must be above 0"),
        ({"boxes": [[160, 0, 5, 5]]}, r"\[160, 0, 5, 5\], lies beside the picture of 160 x 120"),
        ({"boxes": [[0, -30, 5, 30]]}, "lies beside the picture"),
        ({"dataset_index": 0}, "has no experts"),
        ({"flip_pairs": [[1, 17]]}, "must be pairs of keypoints from 0 to 16"),
        ({"flip_pairs": [[1, 2], [2, 3]]}, "each at most once"),
        ({"flip_pairs": 3}, "must be pairs"),
        ({"kernel_size": 4}, "has no middle"),
        ({"kernel_size": 0}, "whole number of at least 1"),
        ({"threshold": "high"}, "threshold='high' is no number"),
        ({"boxes": [[1, 2, 3, 4]], "detector": "detr"}, "give one of them"),
        ({"detector": "/nowhere/detr"}, "detector: "),
        ({"persons": 2}, "has no parameter 'persons'"),
    ],
)
def test_calls_without_meaning_are_refused(parameters: dict[str, Any], message: str, tiny: Tiny) -> None:
    with api.pipeline("pose-estimation", tiny("vitpose")) as pipe, pytest.raises(IsoformError, match=message):
        pipe(drawn(), **parameters)


@pytest.mark.parametrize("index", [6, -1, True, 0.5])
def test_a_data_set_without_an_expert_is_refused(index: Any, tiny: Tiny) -> None:
    with (
        api.pipeline("pose-estimation", tiny("vitpose_plus")) as pipe,
        pytest.raises(InputError, match="must be a whole number from 0 to 5: the expert of a data set"),
    ):
        pipe(drawn(), dataset_index=index)


@pytest.mark.parametrize(
    ("inputs", "parameters", "message"),
    [
        ([drawn(), drawn()], {"boxes": BOXES}, "2 pictures need as many lists of boxes, not 3 of them"),
        ([{"image": drawn()}], {"boxes": [BOXES]}, "boxes came twice"),
        ({"picture": drawn()}, {}, "pose-estimation takes"),
        ({"image": drawn(), "box": BOXES}, {}, "pose-estimation takes"),
        (3, {}, "pose-estimation takes"),
    ],
)
def test_inputs_without_meaning_are_refused(inputs: Any, parameters: dict[str, Any], message: str, tiny: Tiny) -> None:
    with api.pipeline("pose-estimation", tiny("vitpose")) as pipe, pytest.raises(InputError, match=message):
        pipe(inputs, **parameters)


def test_a_checkpoint_with_another_processor_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny("vitpose"), tmp_path / "model")
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 64, "width": 48}}
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(UnsupportedModel, match="does not cut out persons"):
        api.pipeline("pose-estimation", tmp_path / "model")
