"""mask-generation against transformers' pipeline, its processor and its model, and what can be wrong with prompts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from isoform import api
from isoform.cli import app
from isoform.errors import InputError
from isoform.reference.facts import facts_of
from isoform.reference.model import open_model
from isoform.runtimes.open import open_session
from isoform.runtimes.pipelines.vision.binary_masks import Enlarging, RunLengths, distinct
from isoform.runtimes.pipelines.vision.mask_generation import MaskGeneration
from isoform.runtimes.preprocess.image.pictures import load_image
from isoform.validators.cases.media import drawn
from tests.oracle import tiny

NAMES = ("sam", "sam_b")
SCORES = 1e-5  # float32 against float32, each in its own order of sums


def overlapping(boxes: Any, scores: Any, idxs: Any, iou_threshold: float) -> Any:
    """torchvision's batched_nms of one class, by its definition; transformers asks for it, and the tests do without."""

    def area(box: list[float]) -> float:
        return (box[2] - box[0]) * (box[3] - box[1])

    def hides(a: list[float], b: list[float]) -> bool:
        shared = [max(0.0, min(a[n + 2], b[n + 2]) - max(a[n], b[n])) for n in (0, 1)]
        both = shared[0] * shared[1]
        union = area(a) + area(b) - both
        return union > 0 and both / union > iou_threshold

    every, kept = boxes.tolist(), list[int]()
    for n in torch.sort(scores, descending=True, stable=True)[1].tolist():
        if not any(hides(every[m], every[n]) for m in kept):
            kept.append(n)
    return torch.tensor(kept, dtype=torch.int64)


@pytest.fixture(autouse=True)
def torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers looks for it once, when it is imported, and must not find this one."""
    from transformers.models.sam import image_processing_pil_sam, modeling_sam, processing_sam  # noqa: F401
    from transformers.pipelines import mask_generation  # noqa: F401

    found = {name: ModuleType(name) for name in ("torchvision", "torchvision.ops", "torchvision.ops.boxes")}
    found["torchvision.ops.boxes"].batched_nms = overlapping  # type: ignore[attr-defined]
    for name, module in found.items():
        monkeypatch.setitem(sys.modules, name, module)


@cache
def processor(name: str) -> Any:
    from transformers import SamImageProcessorPil
    from transformers.models.sam import image_processing_pil_sam as module

    made = SamImageProcessorPil.from_pretrained(tiny(name))
    made.post_process_for_mask_generation = module._post_process_for_mask_generation
    return made


@cache
def model(name: str) -> Any:
    from transformers import SamModel

    return SamModel.from_pretrained(tiny(name), dtype=torch.float32).eval()


def theirs(name: str) -> Any:
    from transformers.pipelines.mask_generation import MaskGenerationPipeline

    return MaskGenerationPipeline(model=model(name), image_processor=processor(name), device="cpu")


def same(ours: dict[str, Any], want: dict[str, Any]) -> None:
    """Keys in order, boxes, run lengths and masks alike, scores to the last digits."""
    assert list(ours) == list(want)
    np.testing.assert_allclose(ours["scores"], np.asarray(want["scores"]), rtol=SCORES, atol=SCORES)
    assert ours["scores"].dtype == np.float32
    assert len(ours["masks"]) == len(want["masks"])
    for mine, other in zip(ours["masks"], want["masks"], strict=True):
        assert mine.dtype == np.bool_
        np.testing.assert_array_equal(mine, other)
    assert ours.get("rle_mask") == want.get("rle_mask")
    if "bounding_boxes" in want:
        np.testing.assert_array_equal(ours["bounding_boxes"], np.asarray(want["bounding_boxes"]))


BOTH: dict[str, Any] = {"output_rle_mask": True, "output_bboxes_mask": True}
CALLS: dict[str, dict[str, Any]] = {
    "no mask": {"points_per_crop": 3},
    "all masks": {"pred_iou_thresh": -9, "stability_score_thresh": 0, "points_per_crop": 4, **BOTH},
    "crops": {
        "pred_iou_thresh": -1,
        "stability_score_thresh": 0.1,
        "stability_score_offset": 0.3,
        "crops_n_layers": 1,
        "points_per_crop": 3,
        "points_per_batch": 2,
        "crops_nms_thresh": 0.95,
        **BOTH,
    },
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", NAMES)
def test_masks_of_a_picture_are_those_of_transformers(name: str, call: str) -> None:
    with api.pipeline("mask-generation", tiny(name)) as pipe:
        same(pipe(drawn(), **CALLS[call]), theirs(name)(drawn(), **CALLS[call]))


# ------------------------------------------------------------------ a model of discs, for what happens to its masks
def discs(points: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Three discs about each point (P, 1, 2) of 128 x 128: scores (P, 3), logits (P, 3, 32, 32) with soft edges.

    How large, how steady and how good one is depends on where it is.
    """
    x, y = points[:, 0, 0], points[:, 0, 1]
    at = np.arange(32) * 4 + 2
    away = np.sqrt((at[None, :, None] - y[:, None, None]) ** 2 + (at[None, None, :] - x[:, None, None]) ** 2)
    radius = np.stack((6 + x / 12, 12 + y / 6, 9 + (x + y) / 15), 1)
    slope = np.stack((1 + x / 4, 2 + y / 5, np.full_like(x, 9)), 1)
    logits = (radius[..., None, None] - away[:, None]) * slope[..., None, None]
    scores = 0.75 + 0.25 * np.sin(x[:, None] / 7 + y[:, None] / 5 + np.arange(3))
    return scores.astype(np.float32), logits.astype(np.float32)


class Discs:
    """A session whose decoder gives discs; everything else is the tiny model's."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_part(self, name: str, encoded: Any, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        scores, masks = discs(inputs["input_points"][0])
        return {"iou_scores": scores[None], "pred_masks": masks[None]}


class TheirDiscs(torch.nn.Module):
    """The same as a model of transformers."""

    config = SimpleNamespace(model_type="sam", task_specific_params=None, _commit_hash=None)

    dtype = torch.float32

    def get_image_embeddings(self, pixels: Any) -> Any:
        return pixels

    def forward(self, **inputs: Any) -> Any:
        scores, masks = discs(inputs["input_points"][0].float().numpy())
        return {"iou_scores": torch.from_numpy(scores)[None], "pred_masks": torch.from_numpy(masks)[None]}


@pytest.fixture
def over_discs() -> Iterator[MaskGeneration]:
    found = open_model(tiny("sam"))
    session: Any = Discs(open_session(found, "torch"))
    with MaskGeneration(session, tiny("sam"), facts=facts_of(found)) as pipe:
        yield pipe


CHOICES: dict[str, dict[str, Any]] = {
    "as they are": {"points_per_crop": 16},
    "few points": {"points_per_crop": 5, "points_per_batch": 3},
    "all points at once": {"points_per_crop": 6, "points_per_batch": None},
    "better ones": {"pred_iou_thresh": 0.97, "points_per_crop": 16},
    "any": {"pred_iou_thresh": 0, "stability_score_thresh": 0, "points_per_crop": 12},
    "steady by another measure": {"stability_score_offset": 3, "stability_score_thresh": 0.8, "points_per_crop": 12},
    "smaller masks": {"mask_threshold": 1.5, "points_per_crop": 12},
    "almost no overlap": {"crops_nms_thresh": 0.05, "points_per_crop": 12},
    "overlaps": {"crops_nms_thresh": 0.97, "points_per_crop": 8},
    "crops": {"crops_n_layers": 1, "points_per_crop": 8},
    "crops of crops": {"crops_n_layers": 2, "points_per_crop": 4, "crop_overlap_ratio": 0.2, "pred_iou_thresh": 0.5},
}


@pytest.mark.parametrize("choice", CHOICES)
def test_masks_are_chosen_as_transformers_chooses(choice: str, over_discs: MaskGeneration) -> None:
    options = {**BOTH, **CHOICES[choice]}
    pipe = theirs("sam")
    pipe.model = TheirDiscs()
    for picture in (drawn(), drawn().rotate(90, expand=True).resize((51, 200))):
        found = over_discs(picture, **options)
        same(found, pipe(picture, **options))
        assert len(found["masks"]) > 2


def test_fewer_points_on_smaller_crops(over_discs: MaskGeneration) -> None:
    """transformers fails here: it stacks grids of unlike sizes."""
    with pytest.raises(ValueError, match="inhomogeneous"):
        theirs("sam")(drawn(), crops_n_layers=1, crop_n_points_downscale_factor=2, points_per_crop=4)
    found = over_discs(
        drawn(), crops_n_layers=1, crop_n_points_downscale_factor=2, points_per_crop=8, pred_iou_thresh=0.8
    )
    assert len(found["masks"]) > 2


# ------------------------------------------------------------------ prompts
PROMPTS: dict[str, dict[str, Any]] = {
    "a point": {"input_points": [[40, 60]]},
    "points of two objects": {"input_points": [[[40, 60], [100, 20.5]], [[5, 5], [159, 119]]]},
    "labels": {"input_points": [[[40, 60], [100, 20]]], "input_labels": [[1, 0]]},
    "other labels": {"input_points": [[40, 60], [100, 20]], "input_labels": [-1, -10]},
    "boxes": {"input_boxes": [[10, 12, 150, 90], [0, 0, 30, 119]]},
    "a box that hangs over": {"input_boxes": [-5, -3, 165, 130]},
    "a box and points": {"input_boxes": [[10, 12, 150, 90]], "input_points": [[[40, 60], [50, 50]]]},
    "one mask": {"input_points": [[40, 60]], "multimask_output": False},
    "another threshold": {"input_boxes": [10, 12, 150, 90], "mask_threshold": 0.3},
}


def asked(name: str, picture: Any, *, masks: NDArray[np.float32] | None = None, **given: Any) -> tuple[Any, Any, Any]:
    """transformers' masks, scores and logits for the prompts of one picture."""
    from transformers import SamProcessor

    read = SamProcessor(processor(name))
    several, threshold = given.pop("multimask_output", True), given.pop("mask_threshold", 0.0)
    depth = {"input_points": 3, "input_labels": 2, "input_boxes": 2}
    for key, value in given.items():
        given[key] = [value if np.ndim(value) == depth[key] else [value]]
    inputs = read(picture, return_tensors="pt", **given)
    sizes = inputs.pop("original_sizes"), inputs.pop("reshaped_input_sizes")
    for key in ("input_points", "input_boxes"):
        if key in inputs:
            inputs[key] = inputs[key].float()
    extra = {} if masks is None else {"input_masks": torch.from_numpy(masks)[None]}
    with torch.no_grad():
        out = model(name)(**inputs, **extra, multimask_output=several)
    full = read.post_process_masks(out.pred_masks, *sizes, mask_threshold=threshold)[0]
    return full.numpy(), out.iou_scores[0].numpy(), out.pred_masks[0].numpy()


def agree(answer: dict[str, Any], want: tuple[Any, Any, Any]) -> None:
    np.testing.assert_allclose(answer["scores"], want[1], rtol=SCORES, atol=SCORES)
    np.testing.assert_allclose(answer["low_res_masks"], want[2], rtol=SCORES, atol=SCORES)
    np.testing.assert_array_equal(answer["masks"], want[0])


@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("name", NAMES)
def test_the_masks_of_prompts_are_those_of_transformers(name: str, kind: str) -> None:
    with api.pipeline("mask-generation", tiny(name)) as pipe:
        answer = pipe(drawn(), output_low_res_masks=True, **PROMPTS[kind])
        assert list(answer) == ["masks", "scores", "low_res_masks"]
        agree(answer, asked(name, drawn(), **PROMPTS[kind]))


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_is_a_prompt(name: str) -> None:
    """The logits of one answer sharpen the next: each object's own, with its points or a box or alone."""
    kept: dict[str, Any] = {"output_low_res_masks": True, "multimask_output": False}
    points, box = [[[40, 60]], [[120, 30]]], [[10, 12, 150, 90], [80, 0, 159, 70]]
    with api.pipeline("mask-generation", tiny(name)) as pipe:
        low = pipe(drawn(), input_points=points, **kept)["low_res_masks"][:, 0]
        for given in ({"input_points": points}, {"input_boxes": box}, {}):
            answer = pipe(drawn(), input_masks=low, **given, **kept)
            for n in (0, 1):  # transformers takes one mask for a picture
                own = {key: [value[n]] for key, value in given.items()}
                want = asked(name, drawn(), masks=low[n : n + 1], multimask_output=False, **own)
                agree({key: value[n : n + 1] for key, value in answer.items()}, want)


def test_objects_with_unlike_numbers_of_points_are_as_alone() -> None:
    several: list[dict[str, Any]] = [{}, {"input_boxes": [[10, 12, 150, 90], [0, 0, 30, 119], [4, 4, 8, 8]]}]
    objects = [[[40, 60]], [[10, 20], [30, 90], [120, 110]], [[80, 80], [81, 3]]]
    with api.pipeline("mask-generation", tiny("sam")) as pipe:
        for more in several:
            together = pipe(drawn(), input_points=objects, output_low_res_masks=True, **more)
            for n, points in enumerate(objects):
                box: dict[str, Any] = {key: [value[n]] for key, value in more.items()}
                alone = pipe(drawn(), input_points=[points], output_low_res_masks=True, **box)
                np.testing.assert_allclose(together["low_res_masks"][n], alone["low_res_masks"][0], atol=SCORES)


def test_each_input_may_have_its_own_prompts_and_forms() -> None:
    inputs = [
        {"image": drawn(), "input_points": [[40, 60]]},
        {"image": drawn().resize((50, 90)), "input_boxes": [1, 2, 30, 80]},
    ]
    with api.pipeline("mask-generation", tiny("sam")) as pipe:
        both = pipe(inputs, output_rle_mask=True, output_bboxes_mask=True)
        assert [answer["masks"].shape for answer in both] == [(1, 3, 120, 160), (1, 3, 90, 50)]
        alone = pipe(drawn(), input_points=[[40, 60]])
        np.testing.assert_array_equal(both[0]["masks"], alone["masks"])
        mask, runs = both[1]["masks"][0, 1], both[1]["rle_mask"][0][1]
        np.testing.assert_array_equal(RunLengths((90, 50), np.array(runs["counts"])).mask(), mask)
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), columns.max(), rows.max()]
        np.testing.assert_array_equal(both[1]["bounding_boxes"][0, 1], box)


@pytest.mark.parametrize("form", ["onnx", "torchscript"])
def test_bundles_give_the_same_masks(form: str, tmp_path: Path) -> None:
    api.export(tiny("sam_b"), tmp_path / "bundle", to=form, check=False)
    calls: tuple[dict[str, Any], ...] = (
        CALLS["all masks"],
        {"input_boxes": [10, 12, 150, 90], "multimask_output": False},
    )
    with (
        api.pipeline("mask-generation", tiny("sam_b")) as pipe,
        api.pipeline("mask-generation", tmp_path / "bundle") as other,
    ):
        for call in calls:
            want, got = pipe(drawn(), **call), other(drawn(), **call)
            np.testing.assert_allclose(got["scores"], want["scores"], atol=SCORES)
            np.testing.assert_array_equal(np.array(got["masks"]), np.array(want["masks"]))
        low = pipe(drawn(), input_points=[[40, 60]], output_low_res_masks=True)["low_res_masks"][0, 0]
        want, got = (one(drawn(), input_masks=low) for one in (pipe, other))
        np.testing.assert_array_equal(got["masks"], want["masks"])


# ------------------------------------------------------------------ pieces
def test_enlarging_is_torchs_interpolation() -> None:
    random = np.random.default_rng(3)
    for low, padded, used, size in (
        ((32, 32), (128, 128), (96, 128), (120, 160)),
        ((20, 20), (80, 80), (80, 3), (999, 31)),
    ):
        logits = random.standard_normal((3, *low)).astype(np.float32)
        one = torch.nn.functional.interpolate(torch.from_numpy(logits)[None], padded, mode="bilinear")
        two = torch.nn.functional.interpolate(one[..., : used[0], : used[1]], size, mode="bilinear")[0]
        np.testing.assert_allclose(Enlarging(low, padded, used, size)(logits), two.numpy(), atol=3e-6)


def test_distinct_boxes_are_those_of_the_definition() -> None:
    random = np.random.default_rng(4)
    for most in (0.0, 0.3, 0.5, 0.7):
        corner, edge = random.integers(0, 60, (200, 2)), random.integers(0, 40, (200, 2))
        boxes, scores = np.concatenate((corner, corner + edge), 1), random.integers(0, 30, 200).astype(np.float32)
        want = overlapping(torch.from_numpy(boxes).float(), torch.from_numpy(scores), None, most).tolist()
        assert distinct(boxes, scores, most) == want
    assert distinct(np.zeros((0, 4)), np.zeros(0, np.float32), 0.5) == []


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a point outside": ({"input_points": [[160.5, 3]]}, r"\(160.5, 3\) is outside the picture of 160 x 120"),
    "a point below zero": ({"input_points": [[3, -1]]}, "is outside the picture"),
    "no number": ({"input_points": [[3, "x"]]}, "is not points"),
    "three coordinates": ({"input_points": [[3, 4, 5]]}, "is not points"),
    "too deep": ({"input_points": [[[[3, 4]]]]}, "one for each object"),
    "no points": ({"input_points": []}, "input_points is empty"),
    "labels alone": ({"input_labels": [1]}, "came without input_points"),
    "too many labels": ({"input_points": [[3, 4]], "input_labels": [1, 1]}, "a label for each point"),
    "a label that is none": ({"input_points": [[3, 4]], "input_labels": [2]}, "2 is none of 1"),
    "a box upside down": ({"input_boxes": [50, 50, 20, 60]}, "is no box on the picture"),
    "a box beside the picture": ({"input_boxes": [500, 50, 520, 60]}, "is no box on the picture"),
    "a box of three": ({"input_boxes": [5, 50, 20]}, "is not a box"),
    "unlike numbers": ({"input_points": [[[3, 4]]], "input_boxes": [[1, 2, 3, 4]] * 2}, "different numbers of objects"),
    "a mask of the picture's size": ({"input_masks": np.zeros((120, 160))}, "no logits of 32 x 32"),
    "a mask of bits": ({"input_masks": np.zeros((32, 32), bool)}, "no logits of 32 x 32"),
    "grids with prompts": ({"input_points": [[3, 4]], "points_per_crop": 8}, "points_per_crop=8 changes nothing"),
    "one mask without prompts": ({"multimask_output": False}, "multimask_output=False changes nothing"),
    "no points on crops": ({"crops_n_layers": 3, "crop_n_points_downscale_factor": 4}, "leaves no point"),
    "a batch of none": ({"points_per_batch": 0}, "at least 1"),
    "a threshold": ({"pred_iou_thresh": "high"}, "is no number"),
    "an overlap": ({"crop_overlap_ratio": 1}, "is not from 0 to 1"),
    "holes": ({"max_hole_area": 5}, "max_hole_area is not supported"),
    "another parameter": ({"threshold": 5}, "no parameter 'threshold'"),
}


def test_wrong_calls_are_refused() -> None:
    with api.pipeline("mask-generation", tiny("sam")) as pipe:
        for name, (call, words) in WRONG.items():
            with pytest.raises(InputError, match=words):
                pytest.fail(f"{name}: {pipe(drawn(), **call)}")
        with pytest.raises(InputError, match="longer edge is at most 256 times"):
            pipe(drawn().resize((10_000, 1)))
        with pytest.raises(InputError, match="too small for 2 layers"):
            pipe(drawn().resize((2, 2)), crops_n_layers=2)
        with pytest.raises(InputError, match="not points"):
            pipe({"image": drawn(), "points": [[1, 2]]})
        with pytest.raises(InputError, match="an array of float32 is no picture"):
            pipe(np.zeros((9, 9, 3), np.float32))


def test_a_picture_without_masks_has_an_empty_answer() -> None:
    with api.pipeline("mask-generation", tiny("sam")) as pipe:
        answer = pipe(drawn().resize((1, 1)), points_per_crop=2, **BOTH)
        assert {key: len(value) for key, value in answer.items()} == dict.fromkeys(
            ("masks", "scores", "rle_mask", "bounding_boxes"), 0
        )


def test_the_command_line_prints_a_line_a_mask_and_pictures_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn().save(tmp_path / "house.png")
    call = ["isoform", "run", "mask-generation", str(tiny("sam")), str(tmp_path / "house.png")]
    monkeypatch.setattr(sys, "argv", [*call, "-s", "input_points=[[40,60]]"])
    with pytest.raises(SystemExit) as ended:
        app()
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code in (0, None)
    assert [line.split("│")[1].strip() for line in lines if "│" in line] == ["1.1", "1.2", "1.3"]
    monkeypatch.setattr(sys, "argv", [*call, "-s", "input_points=[[40,60]]", "--jsonl"])
    with pytest.raises(SystemExit):
        app()
    answer = json.loads(capsys.readouterr().out)
    with api.pipeline("mask-generation", tiny("sam")) as pipe:
        want = pipe(drawn(), input_points=[[40, 60]])
    for got, mask in zip(answer["masks"][0], want["masks"][0], strict=True):
        np.testing.assert_array_equal(np.asarray(load_image(got).convert("1")), mask)
    np.testing.assert_allclose(answer["scores"], want["scores"])
