"""VideoMAE computes what the Hub's own code computes, and refuses what makes no sense."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from isoform import api
from isoform.errors import CheckpointError, InputError, UnsupportedExport, UnsupportedModel
from isoform.reference.families import load_family
from isoform.reference.model import Model, open_model
from isoform.reference.vision.videomae import sinusoids
from isoform.runtimes.open import open_path
from isoform.steps import load_step
from tests.exports import exported
from tests.oracle import tiny

CLASSIFIERS, PRETRAINED = ("videomae_cls", "videomae_cls_b"), ("videomae", "videomae_b")
ORDER = 2e-6  # of the largest value: float32 sums in another order


@cache
def model(name: str) -> Model:
    return open_model(tiny(name))


@cache
def golden(name: str) -> dict[str, Tensor]:
    return load_file(tiny(name) / "golden.safetensors")


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    worst = float((found.double() - expected.double()).abs().max() / expected.double().abs().max())
    assert worst <= ORDER, f"off by {worst:.2e} of the largest value"


def split(name: str, mask: Any) -> dict[str, Tensor]:
    """What the model's own step makes of a mask."""
    (step,) = model(name).task.steps(model(name).config).items()
    found = load_step(step[0]).run({"bool_masked_pos": np.asarray(mask)}, **step[1])
    return {key: torch.from_numpy(value) for key, value in found.items()}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_equals_that_of_transformers(name: str) -> None:
    close(model(name).module()(golden(name)["in.pixel_values"])[0], golden(name)["out.logits"])


def test_states_equal_those_of_transformers(tmp_path: Path) -> None:
    import transformers

    theirs = transformers.VideoMAEModel.from_pretrained(tiny("videomae_cls_b")).eval()
    theirs.save_pretrained(tmp_path / "trunk")
    pixels = golden("videomae_cls_b")["in.pixel_values"]
    with torch.inference_mode():
        want = theirs(pixels).last_hidden_state
    for folder in (tiny("videomae_cls_b"), tmp_path / "trunk"):
        close(open_model(folder, task="image-feature-extraction").module()(pixels)[0], want)


@pytest.mark.parametrize("name", PRETRAINED)
def test_what_is_drawn_of_masked_tubelets_equals_transformers(name: str) -> None:
    chosen = split(name, golden(name)["in.bool_masked_pos"])
    close(model(name).module()(golden(name)["in.pixel_values"], **chosen)[0], golden(name)["out.logits"])


@pytest.mark.parametrize("hidden", [1, 11])
def test_any_number_of_tubelets_may_be_masked(hidden: int) -> None:
    import transformers

    mask = torch.zeros(2, 12, dtype=torch.bool)
    mask[0, :hidden], mask[1, -hidden:] = True, True
    pixels = golden("videomae_b")["in.pixel_values"]
    theirs = transformers.VideoMAEForPreTraining.from_pretrained(tiny("videomae_b")).eval()
    with torch.inference_mode():
        want = theirs(pixels, bool_masked_pos=mask).logits
        close(model("videomae_b").module()(pixels, **split("videomae_b", mask))[0], want)


@pytest.mark.parametrize(("count", "dim"), [pytest.param(1568, 768, marks=pytest.mark.nightly), (392, 384), (5, 7)])
def test_positions_are_those_of_transformers(count: int, dim: int) -> None:
    from transformers.models.videomae.modeling_videomae import get_sinusoid_encoding_table as theirs

    assert float((sinusoids(count, dim) - theirs(count, dim)).abs().max()) <= 6e-8  # one unit in the last place


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((1, 12), bool), "hides none of the 12"),
        (np.ones((1, 12), bool), "hides all of the 12"),
        (np.ones((1, 11), bool), r"shape \(1, 11\); the model has 12 positions"),
        (np.ones(12, bool), r"shape \(12,\)"),
        (np.eye(2, 12, dtype=bool) + np.eye(2, 12, 1, dtype=bool) * [[1], [0]], "from 1 to 2 positions"),
    ],
)
def test_a_mask_without_meaning_is_refused(mask: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        split("videomae_b", mask)


@pytest.mark.parametrize("name", (*CLASSIFIERS, *PRETRAINED))
def test_a_saved_model_is_the_stored_one(name: str, tmp_path: Path) -> None:
    model(name).save(tmp_path / "saved")
    with (
        safe_open(tiny(name) / "model.safetensors", "pt") as a,
        safe_open(tmp_path / "saved" / "model.safetensors", "pt") as b,
    ):
        assert set(a.keys()) == set(b.keys())
        assert all(torch.equal(a.get_tensor(key), b.get_tensor(key)) for key in a.keys())  # noqa: SIM118


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"num_frames": 1}, "num_frames is 1, which holds no tubelet of 2 frames"),
        ({"image_size": 8}, "holds no patch"),
        ({"qkv_bias": True, "qv_bias": False}, "which are the same setting"),
    ],
)
def test_configurations_without_meaning_are_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_family("videomae").config.from_dict(data)


def test_an_unknown_key_is_refused_by_its_name() -> None:
    with pytest.raises(UnsupportedModel, match="use_cls_token = true is not known"):
        load_family("videomae").config.from_dict({"use_cls_token": True})


def test_llama_cpp_has_no_such_architecture(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedExport, match="no architecture that reads videos"):
        api.export(tiny("videomae_cls"), tmp_path / "out", to="gguf", check=False)


@pytest.mark.parametrize("rows", [1, 7])
def test_one_graph_takes_any_batch_and_any_mask(rows: int) -> None:
    random = np.random.default_rng(rows)
    pixels = random.standard_normal((rows, 6, 3, 16, 24)).astype(np.float32)
    mask = np.zeros((rows, 12), bool)
    for row in mask:
        row[random.choice(12, 1 + rows, replace=False)] = True
    chosen = split("videomae_b", mask)
    session, _ = open_path(exported("videomae_b"), "onnxruntime", threads=1)
    with session:
        found = session.run({"pixel_values": pixels, **{name: one.numpy() for name, one in chosen.items()}})["logits"]
    close(torch.from_numpy(found), model("videomae_b").module()(torch.from_numpy(pixels), **chosen)[0])
