"""Drawings in files: PNG, SVG with the picture inside, COCO's JSON; nothing half, and nothing that cannot be."""

from __future__ import annotations

import base64
import json
import xml.etree.ElementTree as ElementTree
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isoform.drawing import files
from isoform.drawing.coco import coco, rle
from isoform.drawing.files import check, write
from isoform.drawing.layout import Canvas
from isoform.drawing.marks import Scene, Subject
from isoform.drawing.palette import colour_of
from isoform.drawing.raster import raster
from isoform.drawing.scenes import SCENES
from isoform.drawing.vector import vector
from isoform.errors import InputError
from tests.cli.test_bad_input import run
from tests.drawing.test_scenes import ANSWERS, BOX, DETECTED, HEIGHT, PICTURE, WIDTH, WORDS, disc, drawn, subject
from tests.oracle import tiny

SVG = "{http://www.w3.org/2000/svg}"


def embedded(image: ElementTree.Element) -> Image.Image:
    kind, _, data = image.attrib["href"].partition(",")
    assert kind == "data:image/png;base64"
    return Image.open(BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize("task", sorted(SCENES))
def test_every_task_is_written_as_png_and_svg(task: str, tmp_path: Path) -> None:
    given = [("a.png", subject(task), ANSWERS[task])]
    write(tmp_path / "out.png", task, given)
    write(tmp_path / "new" / "out.SVG", task, given)
    with Image.open(tmp_path / "out.png") as found:
        assert np.array_equal(np.asarray(found), np.asarray(raster(drawn(task))))
    root = ElementTree.parse(tmp_path / "new" / "out.SVG").getroot()
    width, height = drawn(task).picture.size
    assert root.attrib["viewBox"] == f"0 0 {width} {height}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "out.png"]


def test_an_svg_holds_the_picture_and_the_marks_where_they_are() -> None:
    root = ElementTree.fromstring(vector(drawn("object-detection", [{**DETECTED[0], "label": "<cat> & co"}])))
    (image,) = root.iter(f"{SVG}image")
    assert np.array_equal(np.asarray(embedded(image)), np.asarray(PICTURE))
    box = [rect for rect in root.iter(f"{SVG}rect") if rect.attrib.get("fill") == "none"][-1]
    assert [box.attrib[key] for key in ("x", "y", "width", "height")] == ["100", "120", "200", "240"]
    (text,) = root.iter(f"{SVG}text")
    assert text.text == "<cat> & co 0.90"
    assert text.attrib["paint-order"] == "stroke"


def test_an_svg_of_masks_has_them_as_one_translucent_picture() -> None:
    root = ElementTree.fromstring(vector(drawn("image-segmentation")))
    _, areas = (embedded(image) for image in root.iter(f"{SVG}image"))
    pixels = np.asarray(areas)
    assert areas.mode == "RGBA" and pixels.shape == (HEIGHT, WIDTH, 4)
    assert 0 < pixels[200, 200, 3] < 255 and pixels[20, 20, 3] == 0
    assert tuple(pixels[200, 200, :3]) == colour_of(0)


def test_a_small_picture_is_enlarged_by_a_whole_number() -> None:
    small = Image.fromarray(np.random.default_rng(1).integers(0, 255, (9, 30, 3), dtype=np.uint8))
    canvas = Canvas.of(30, 9)
    pixels = np.asarray(raster(Scene(small)))
    assert canvas.scale == 16
    assert np.array_equal(pixels[8 : 9 * 16 : 16, 8 : 30 * 16 : 16], np.asarray(small))


# ------------------------------------------------------------------ COCO
def test_runs_of_a_mask_are_those_of_transformers() -> None:
    import torch
    from transformers.models.sam.image_processing_pil_sam import _mask_to_rle

    random = np.random.default_rng(2)
    masks = [random.random((7, 5)) > 0.5, np.ones((3, 4), bool), np.zeros((3, 4), bool), disc(200, 200, 90)]
    masks[0][0, 0] = True
    for mask in masks:
        (expected,) = _mask_to_rle(torch.from_numpy(mask)[None])
        assert rle(mask) == {"size": list(expected["size"]), "counts": [int(n) for n in expected["counts"]]}
        flat = np.repeat(np.arange(len(rle(mask)["counts"])) % 2 == 1, rle(mask)["counts"])
        assert np.array_equal(flat.reshape(mask.shape[::-1]).T, mask)


def test_boxes_become_annotations() -> None:
    answers = [("a.png", Subject((PICTURE,)), DETECTED), ("b.png", Subject((PICTURE,)), [])]
    found = coco("object-detection", answers)
    assert found["images"] == [
        {"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT},
        {"id": 2, "file_name": "b.png", "width": WIDTH, "height": HEIGHT},
    ]
    assert found["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert found["annotations"][0] == {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": [100, 120, 200, 240],
        "area": 48000,
        "iscrowd": 0,
        "score": 0.9,
    }
    assert [one["category_id"] for one in found["annotations"]] == [1, 2, 1]
    assert json.loads(json.dumps(found)) == found


def test_masks_keypoints_and_answers_become_annotations() -> None:
    def only(task: str) -> dict[str, Any]:
        found: dict[str, Any] = coco(task, [("a.png", subject(task), ANSWERS[task])])
        return found

    cup = only("image-segmentation")["annotations"][0]
    assert cup["segmentation"] == rle(disc(200, 200, 90))
    assert cup["bbox"] == [111, 111, 179, 179] and cup["area"] == disc(200, 200, 90).sum()
    assert "score" not in only("image-segmentation")["annotations"][1]
    assert [one["score"] for one in only("mask-generation")["annotations"]] == [0.9, 0.8]
    pose = only("pose-estimation")
    (person,) = pose["annotations"]
    assert person["keypoints"][:6] == [100, 100, 2, 120, 115, 2] and len(person["keypoints"]) == 51
    assert person["bbox"] == [100, 100, 320, 240] and person["num_keypoints"] == 17
    assert len(pose["categories"][0]["keypoints"]) == 17 and [16, 14] in pose["categories"][0]["skeleton"]
    some = {key: value[3:5] for key, value in ANSWERS["pose-estimation"][0].items() if key != "bbox"}
    (part,) = coco("pose-estimation", [("a", subject(""), [some])])["annotations"]
    assert part["keypoints"][:12] == [0] * 9 + [160, 145, 2] and part["num_keypoints"] == 2
    answer = only("document-question-answering")["annotations"][0]
    assert answer["text"] == "of 42" and answer["bbox"] == pytest.approx([160, 48, 96, 28.8])
    assert only("keypoint-detection")["annotations"][0]["num_keypoints"] == 2
    assert all(json.dumps(only(task)) for task in ("image-segmentation", "mask-generation", "pose-estimation"))


# ------------------------------------------------------------------ what is refused, and nothing half
@pytest.mark.parametrize(
    ("name", "task", "count", "message"),
    [
        ("out.jpg", "object-detection", 1, r"does not end in \.png, \.svg, \.json"),
        ("out", "object-detection", 1, "does not end in"),
        ("out.png", "image-classification", 1, "image-classification has nothing to draw"),
        ("out.json", "depth-estimation", 1, "no place for the answers of depth-estimation"),
        ("out.json", "keypoint-matching", 1, "no place for the answers of keypoint-matching"),
        ("out.png", "object-detection", 3, r"\.png holds the drawing of one picture, not of 3"),
        ("out.svg", "object-detection", 2, "draw into a .json"),
        ("folder.png", "object-detection", 1, "is a folder"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_runs(
    name: str, task: str, count: int, message: str, tmp_path: Path
) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match=message):
        check(tmp_path / name, task, count)
    check(tmp_path / "out.json", "object-detection", 3)


def test_a_file_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.png"
    path.write_text("before")
    given = [("a", Subject((PICTURE,)), [{**DETECTED[0], "box": {**BOX, "xmax": "wide"}}])]
    for wrong in (path, tmp_path / "out.svg", tmp_path / "out.json"):
        with pytest.raises(InputError):
            write(wrong, "object-detection", given)

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(InputError, match=r"out\.png' cannot be written \(No space left on device\)"):
        write(path, "object-detection", [("a", Subject((PICTURE,)), DETECTED)])
    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["out.png"]
    assert files.ENDINGS == (".png", ".svg", ".json")


# ------------------------------------------------------------------ isoform run … --draw
def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    return run(monkeypatch, "run", *arguments, "--backend", "torch")


def test_run_draws_the_answer_beside_printing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.png"
    PICTURE.save(page)
    asked = ["document-question-answering", tiny("layoutlmv3_qa"), page, "--set", "question=how much?"]
    asked += ["--set", f"word_boxes={json.dumps(WORDS)}", "--json"]
    for ending in ("png", "svg", "json"):
        assert command(monkeypatch, *asked, "--draw", tmp_path / f"out.{ending}") == 0
        ((best,),) = json.loads(capsys.readouterr().out)
    (annotation,) = json.loads((tmp_path / "out.json").read_text())["annotations"]
    assert annotation["text"] == best["answer"] and annotation["score"] == pytest.approx(best["score"])
    assert json.loads((tmp_path / "out.json").read_text())["images"][0]["file_name"] == str(page)
    assert best["answer"] in (tmp_path / "out.svg").read_text()
    with Image.open(tmp_path / "out.png") as found:
        assert not np.array_equal(np.asarray(found), np.asarray(PICTURE))


def test_run_refuses_what_it_cannot_draw_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.png"
    PICTURE.save(page)
    for task, out, message in (
        ("document-question-answering", "out.gif", "does not end in"),
        ("image-classification", "out.png", "has nothing to draw"),
    ):
        assert command(monkeypatch, task, tmp_path / "no model", page, "--draw", tmp_path / out) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    two = [page, page]
    assert command(monkeypatch, "document-question-answering", "none", *two, "--draw", tmp_path / "out.png") == 2
    assert "one picture, not of 2" in " ".join(capsys.readouterr().err.split())
    assert [each.name for each in tmp_path.iterdir()] == ["page.png"]


def test_run_draws_the_matches_of_two_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, out = (tmp_path / name for name in ("first.png", "second.png", "out.png"))
    PICTURE.save(first)
    PICTURE.rotate(5).save(second)
    pair = ["keypoint-matching", tiny("superglue"), first, second]
    assert command(monkeypatch, *pair, "--jsonl", "--draw", out) == 0
    assert json.loads(capsys.readouterr().out)
    with Image.open(out) as found:
        assert found.width >= 2 * PICTURE.width
    assert command(monkeypatch, *pair, first, second, "--draw", out) == 2
    assert "one picture, not of 2" in " ".join(capsys.readouterr().err.split())
