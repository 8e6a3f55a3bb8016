"""Transformers.js opens a bundle of a vision model unchanged, and gives the answers that isoform gives."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoform import api
from isoform.validators.cases.media import drawn
from tests.clients.environments import HOME, environment
from tests.clients.test_clients import PROGRAMS, client
from tests.oracle import tiny

pytestmark = pytest.mark.clients

OUTPUTS = 1e-4  # relative: its ONNX Runtime is another version, and it scales pixels in float32
LABELS = ["a cat", "two dogs", "a house"]


def bundle(name: str, folder: Path) -> Path:
    api.export(tiny(name), folder / name, to="onnx", check=False)
    return folder / name


def run_in_node(name: str, **request: Any) -> Any:
    if shutil.which("npm") is None:
        pytest.skip("needs Node.js 20 or later with npm; it is not on the PATH")
    node = environment("node")
    program = HOME / "node" / f"{name}.mjs"  # beside node_modules, where node looks for packages
    shutil.copyfile(PROGRAMS / f"transformers_js_{name}.mjs", program)
    return client([node, program], request)


def answer(folder: Path, task: str, picture: Path, *options: Any) -> Any:
    return run_in_node("vision", folder=str(folder), task=task, picture=str(picture), options=options)


def picture(folder: Path, edge: int) -> Path:
    """As large as the processor would make it: how a picture is resized differs between the two."""
    drawn().resize((edge, edge)).save(folder / "picture.png")
    return folder / "picture.png"


def scores(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {row["label"]: row["score"] for row in rows}


@pytest.mark.parametrize(("name", "edge"), [("dinov2", 48), ("dinov2_giant", 48)])
def test_transformers_js_extracts_features(name: str, edge: int, tmp_path: Path) -> None:
    folder, file = bundle(name, tmp_path), picture(tmp_path, edge)
    with api.pipeline("image-feature-extraction", folder) as pipe:
        for options, ours in ([], pipe(file)), ([{"pool": True}], pipe(file, pool=True)):
            found = answer(folder, "image-feature-extraction", file, *options)
            np.testing.assert_allclose(found, ours, rtol=OUTPUTS, atol=OUTPUTS)


@pytest.mark.parametrize(("name", "edge"), [("dinov2_cls", 48), ("vit_cls", 32)])
def test_transformers_js_classifies(name: str, edge: int, tmp_path: Path) -> None:
    folder, file = bundle(name, tmp_path), picture(tmp_path, edge)
    with api.pipeline("image-classification", folder) as pipe:
        ours = scores(pipe(file))
    assert scores(answer(folder, "image-classification", file, {"top_k": 5})) == pytest.approx(ours, rel=OUTPUTS)


@pytest.mark.parametrize(("name", "edge"), [("clip", 32)])
def test_transformers_js_compares_texts_with_a_picture(name: str, edge: int, tmp_path: Path) -> None:
    folder, file = bundle(name, tmp_path), picture(tmp_path, edge)
    with api.pipeline("zero-shot-image-classification", folder) as pipe:
        ours = scores(pipe(file, candidate_labels=LABELS, hypothesis_template="This is a photo of {}"))
    assert scores(answer(folder, "zero-shot-image-classification", file, LABELS)) == pytest.approx(ours, rel=OUTPUTS)


POINTS = {
    "points": ([[[40, 60], [100, 20]], [[10, 90], [64, 64]]], [[1, 0], [1, 1]]),
    "boxes as corners": ([[[10, 12], [90, 80]], [[30, 5], [120, 60]]], [[2, 3], [2, 3]]),
}


@pytest.mark.parametrize("kind", POINTS)
def test_transformers_js_segments_at_points(kind: str, tmp_path: Path) -> None:
    """A box is a pair of points here too, with the labels 2 and 3: its graph has no port for boxes."""
    folder, file = bundle("sam", tmp_path), tmp_path / "picture.png"
    drawn().resize((128, 96)).save(file)  # the longest edge that the processor makes
    points, labels = POINTS[kind]
    prompts: dict[str, Any] = {"input_points": points, "input_labels": labels}
    if kind != "points":
        prompts = {"input_boxes": [[*first, *second] for first, second in points]}
    with api.pipeline("mask-generation", folder) as pipe:
        ours = pipe(file, output_low_res_masks=True, **prompts)
    found = run_in_node("prompts", folder=str(folder), picture=str(file), points=points, labels=labels)
    for name in ("scores", "low_res_masks"):
        np.testing.assert_allclose(found[name], ours[name], rtol=OUTPUTS, atol=OUTPUTS)
    same = np.array(found["masks"], bool) == ours["masks"]
    assert same.mean() > 0.999  # it enlarges in steps of its own
