"""SAM: its parts, apart and wired, equal transformers' in every form, for every kind of prompt."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from isoform.errors import CheckpointError
from isoform.exporters.bundle import export
from isoform.reference.model import Model, open_model
from isoform.reference.vision import sam as family
from isoform.runtimes.open import open_path, open_session
from tests.oracle import tiny

PARITY = 1e-5  # float32 against float32, each in its own order of sums; masks are logits of about 1
PARTS = ("vision_encoder", "mask_prompt", "prompt_encoder_mask_decoder")
NAMES, FORMS = ("sam", "sam_b"), ("torch", "torchscript", "onnx")
NOTHING = -11


@cache
def model(name: str = "sam") -> Model:
    return open_model(tiny(name))


@cache
def theirs(name: str) -> Any:
    from transformers import SamModel

    return SamModel.from_pretrained(tiny(name), dtype=torch.float32).eval()


@pytest.fixture(scope="module", params=[(name, form) for name in NAMES for form in FORMS], ids="-".join)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    name, form = request.param
    if form == "torch":
        return name, open_session(model(name), "torch")
    folder = tmp_path_factory.mktemp(name) / form
    export(model(name), [form], folder)
    return name, open_path(folder)[0]


def gap(got: NDArray[Any], want: Any) -> float:
    """The largest difference, as a part of the largest value where that is more than 1."""
    expected = np.asarray(want)
    return float(np.abs(got - expected).max() / max(1.0, float(np.abs(expected).max())))


def noise(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def test_masks_and_scores_are_those_of_transformers(opened: Any) -> None:
    name, session = opened
    known = load_file(tiny(name) / "golden.safetensors")
    outputs = session.run({key.removeprefix("in."): array for key, array in known.items() if key.startswith("in.")})
    for port in ("iou_scores", "pred_masks"):
        assert gap(outputs[port], known[f"out.{port}"]) < PARITY, port


BOXES = [[[10.0, 12.0, 60.0, 70.0], [0.0, 30.0, 33.5, 79.0]], [[5.0, 5.0, 6.0, 6.0], [70.0, 8.0, 20.0, 50.0]]]
POINTS = [
    [[[20.0, 30.0], [-4.0, 99.0]], [[1.0, 2.0], [0.0, 0.0]]],
    [[[5.0, 5.0], [40.0, 41.0]], [[7.0, 7.0], [8.0, 9.0]]],
]
LABELS = [[[1, 0], [0, -10]], [[-1, 1], [1, 1]]]
PROMPTS = {
    "points": (POINTS, LABELS, None, False),
    "points and boxes": (POINTS, LABELS, BOXES, False),
    "boxes": (None, None, BOXES, False),
    "points and a mask": (POINTS, LABELS, None, True),
    "boxes and a mask": (None, None, BOXES, True),
    "a mask": (None, None, None, True),
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_every_kind_of_prompt_gives_the_masks_of_transformers(kind: str, opened: Any) -> None:
    name, session = opened
    points, labels, boxes, masked = PROMPTS[kind]
    edge = model(name).config.picture or 0
    pixels, masks = noise(2, 3, edge, edge), noise(2, 1, edge // 4, edge // 4) if masked else None
    corners = np.zeros((2, 1, 1, 2)) if boxes is None else np.reshape(boxes, (2, 2, 2, 2))
    marks = np.full(corners.shape[:3], NOTHING) if boxes is None else np.tile([2, 3], (2, 2, 1))
    parts = [(np.asarray(points), np.asarray(labels))] if points else []
    parts += [(corners, marks)] if boxes or not points else []
    encoded = session.encode({"pixel_values": pixels})
    feeds = {
        "input_points": np.concatenate([part for part, _ in parts], 2).astype(np.float32),
        "input_labels": np.concatenate([part for _, part in parts], 2),
    }
    if masks is not None:
        given = session.run_part("mask_prompt", encoded, {"input_masks": masks})
        feeds["image_embeddings"] = given["prompted_embeddings"]
    got = session.run_part(PARTS[-1], encoded, feeds)
    assert set(got) == {"iou_scores", "pred_masks", "single_iou_scores", "single_pred_masks"}
    for several in (True, False):
        with torch.no_grad():
            want = theirs(name)(
                torch.from_numpy(pixels),
                input_points=points and torch.tensor(points),
                input_labels=labels and torch.tensor(labels),
                input_boxes=boxes and torch.tensor(boxes),
                input_masks=None if masks is None else torch.from_numpy(masks),
                multimask_output=several,
            )
        for port in ("iou_scores", "pred_masks"):
            mine = got[port if several else f"single_{port}"]
            assert mine.shape == want[port].shape
            assert gap(mine, want[port]) < PARITY, (port, several)


def test_one_graph_serves_any_number_of_pictures_prompts_and_points(opened: Any) -> None:
    name, session = opened
    random = np.random.default_rng(0)
    edge = model(name).config.picture or 0
    for pictures, prompts, points in ((1, 1, 1), (7, 5, 2), (2, 1, 4)):
        given: dict[str, NDArray[Any]] = {
            "pixel_values": random.standard_normal((pictures, 3, edge, edge)).astype(np.float32),
            "input_points": random.uniform(0, edge, (pictures, prompts, points, 2)).astype(np.float32),
            "input_labels": random.choice([0, 1, 2, 3, -1, -10, NOTHING], (pictures, prompts, points)),
        }
        want = model(name).module()(*(torch.from_numpy(array) for array in given.values()))
        for got, expected in zip(session.run(given).values(), want, strict=True):
            assert gap(got, expected) < PARITY


@pytest.mark.parametrize("form", ["onnx", pytest.param("torchscript", marks=pytest.mark.nightly)])
def test_rows_of_a_large_picture_ask_one_after_the_other(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a picture of 64 x 64 patches would: here 8 rows in steps of 3, 3 and 2."""
    monkeypatch.setattr(family, "QUERIES", 24)
    opened = open_model(tiny("sam"))
    export(opened, [form], tmp_path / "bundle")
    known = load_file(tiny("sam") / "golden.safetensors")
    given = {key.removeprefix("in."): array for key, array in known.items() if key.startswith("in.")}
    with open_path(tmp_path / "bundle")[0] as session:
        for name, array in session.run(given).items():
            assert name.startswith("single") or gap(array, known[f"out.{name}"]) < PARITY


def test_a_plain_onnx_runtime_opens_every_graph(tmp_path: Path) -> None:
    """Clients do not adjust a graph as our own backend does when it opens one."""
    import onnxruntime

    found = export(model(), ["onnx"], tmp_path / "bundle")
    graphs = sorted((tmp_path / "bundle").rglob("*.onnx"))
    assert found and len(graphs) == len(PARTS)
    for graph in graphs:
        onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])


def test_labels_and_points_change_the_masks() -> None:
    known = load_file(tiny("sam") / "golden.safetensors")
    pixels, points, labels = (
        torch.from_numpy(known[f"in.{n}"]) for n in ("pixel_values", "input_points", "input_labels")
    )
    module = model().module()
    first = module(pixels, points, labels)[1]
    assert (module(pixels, points, 1 - labels)[1] - first).abs().max() > 100 * PARITY
    assert (module(pixels, points, labels + 2)[1] - first).abs().max() > 100 * PARITY
    assert (module(pixels, points + 20, labels)[1] - first).abs().max() > 100 * PARITY


def test_a_picture_is_encoded_once_for_many_prompts(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    export(model(), ["onnx"], tmp_path / "bundle")
    session: Any = open_path(tmp_path / "bundle")[0]
    with session:
        assert session.parts == PARTS
        encoded = session.encode({"pixel_values": random.standard_normal((1, 3, 128, 128)).astype(np.float32)})
        prompts = [random.uniform(0, 128, (1, 1, 1, 2)).astype(np.float32) for _ in range(3)]
        label = np.ones((1, 1, 1), np.int64)
        apart = [session.run_part(PARTS[-1], encoded, {"input_points": p, "input_labels": label}) for p in prompts]
        together = session.run_part(
            PARTS[-1],
            encoded,
            {"input_points": np.concatenate(prompts, 1), "input_labels": np.ones((1, 3, 1), np.int64)},
        )
    for n, one in enumerate(apart):
        for name, array in one.items():
            assert gap(together[name][:, n : n + 1], array) < PARITY


def test_a_copy_of_the_frequencies_is_read_and_must_be_equal(tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("sam"), tmp_path / "sam")
    tensors = load_file(folder / "model.safetensors")
    first = tensors["shared_image_embedding.positional_embedding"]
    tensors["prompt_encoder.shared_embedding.positional_embedding"] = first.copy()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    open_model(folder).module()
    tensors["prompt_encoder.shared_embedding.positional_embedding"] = first + 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="positional_embedding"):
        open_model(folder).module()
