"""SAM: its two parts, apart and wired, equal transformers' in every form."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from isoform.exporters.bundle import export
from isoform.reference.model import Model, open_model
from isoform.runtimes.open import open_path, open_session
from tests.oracle import tiny

PARITY = 1e-5  # float32 against float32, each in its own order of sums; masks are logits of about 1
PARTS = ("vision_encoder", "prompt_encoder_mask_decoder")


@cache
def model() -> Model:
    return open_model(tiny("sam"))


@pytest.fixture(scope="module", params=["torch", "torchscript", "onnx"])
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    form: str = request.param
    if form == "torch":
        return open_session(model(), "torch")
    folder = tmp_path_factory.mktemp("sam") / form
    export(model(), [form], folder)
    return open_path(folder)[0]


def test_masks_and_scores_are_those_of_transformers(session: Any) -> None:
    known = load_file(tiny("sam") / "golden.safetensors")
    given = {name.removeprefix("in."): array for name, array in known.items() if name.startswith("in.")}
    outputs = session.run(given)
    assert outputs.keys() == {"iou_scores", "pred_masks"}
    for name, array in outputs.items():
        assert np.abs(array - known[f"out.{name}"]).max() < PARITY, name


def test_one_graph_serves_any_number_of_pictures_prompts_and_points(session: Any) -> None:
    random = np.random.default_rng(0)
    for pictures, prompts, points in ((1, 1, 1), (3, 5, 2), (2, 1, 4)):
        given: dict[str, NDArray[Any]] = {
            "pixel_values": random.standard_normal((pictures, 3, 128, 128)).astype(np.float32),
            "input_points": random.uniform(0, 128, (pictures, prompts, points, 2)).astype(np.float32),
            "input_labels": random.choice([0, 1, -1, -10], (pictures, prompts, points)),
        }
        want = model().module()(*(torch.from_numpy(array) for array in given.values()))
        for got, expected in zip(session.run(given).values(), want, strict=True):
            assert np.abs(got - expected.numpy()).max() < PARITY


def test_labels_and_points_change_the_masks() -> None:
    known = load_file(tiny("sam") / "golden.safetensors")
    pixels, points, labels = (
        torch.from_numpy(known[f"in.{n}"]) for n in ("pixel_values", "input_points", "input_labels")
    )
    module = model().module()
    first = module(pixels, points, labels)[1]
    assert (module(pixels, points, 1 - labels)[1] - first).abs().max() > 100 * PARITY
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
        apart = [session.run_part(PARTS[1], encoded, {"input_points": p, "input_labels": label}) for p in prompts]
        together = session.run_part(
            PARTS[1],
            encoded,
            {"input_points": np.concatenate(prompts, 1), "input_labels": np.ones((1, 3, 1), np.int64)},
        )
    for n, one in enumerate(apart):
        for name, array in one.items():
            assert np.abs(together[name][:, n : n + 1] - array).max() < PARITY
