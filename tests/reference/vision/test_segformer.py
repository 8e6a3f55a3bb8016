"""SegFormer computes what transformers' code computes, of pictures of every size."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.families import load_family
from isoform.reference.model import Model, open_model
from isoform.runtimes.open import open_path
from tests.exports import exported
from tests.oracle import tiny

NAMES = ("segformer", "segformer_b", "segformer_base", "segformer_cls")
ORDER = 1e-5  # of the largest value: float32 sums in another order


@cache
def model(name: str) -> Model:
    return open_model(tiny(name))


@cache
def theirs(name: str) -> Any:
    import transformers

    kind = model(name).checkpoint.config["architectures"][0]
    return getattr(transformers, kind).from_pretrained(tiny(name), dtype=torch.float32).eval()


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= ORDER * float(expected.abs().max())


def noise(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))


@pytest.mark.parametrize("name", NAMES)
def test_pictures_of_every_size_equal_those_of_transformers(name: str) -> None:
    """Also those that leave pixels over at the edges."""
    for batch, height, width in ((2, 64, 96), (1, 131, 37), (1, 50, 75)):
        x = noise(batch, height, width)
        with torch.inference_mode():
            close(model(name).module()(x)[0], theirs(name)(pixel_values=x)[0])


@pytest.mark.parametrize("name", ["segformer", "segformer_b"])
def test_one_graph_reads_every_size_and_batch(name: str) -> None:
    session, _ = open_path(exported(name))
    module = model(name).module()
    with session:
        for batch, height, width in ((1, 131, 37), (7, 36, 45), (1, 97, 160)):
            x = noise(batch, height, width)
            (found,) = session.run({"pixel_values": x.numpy()}).values()
            with torch.inference_mode():
                close(torch.from_numpy(found), module(x)[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_is_the_stored_one(name: str, tmp_path: Path) -> None:
    model(name).save(tmp_path / "saved")
    stored, saved = (load_file(folder / "model.safetensors") for folder in (tiny(name), tmp_path / "saved"))
    assert {key for key in stored if not key.endswith("num_batches_tracked")} == saved.keys()
    assert all(torch.equal(stored[key], saved[key]) for key in saved)


@pytest.mark.parametrize("name", ["segformer_cls", "segformer_base"])
def test_the_last_map_may_be_stored_as_cells(name: str, tmp_path: Path) -> None:
    """A classifier's logits do not change; a model without a head gives a map, or cells."""
    import transformers

    folder = tmp_path / "model"
    shutil.copytree(tiny(name), folder)
    config = json.loads((folder / "config.json").read_text())
    config["reshape_last_stage"] = not config["reshape_last_stage"]
    (folder / "config.json").write_text(json.dumps(config))
    other = getattr(transformers, config["architectures"][0]).from_pretrained(folder, dtype=torch.float32).eval()
    x = noise(1, 64, 41)
    with torch.inference_mode():
        close(open_model(folder).module()(x)[0], other(pixel_values=x)[0])


def test_cells_are_not_segmented(tmp_path: Path) -> None:
    """transformers computes their places from the number of channels."""
    folder = tmp_path / "model"
    shutil.copytree(tiny("segformer"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "reshape_last_stage": False}))
    with pytest.raises(UnsupportedModel, match="reshape_last_stage is false"):
        open_model(folder).module()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"depths": [1, 2]}, "depths is"),
        ({"strides": [4, 2, 2, 0]}, "strides is"),
        ({"num_encoder_blocks": 3}, "each of the 3 stages"),
        ({"mlp_ratios": [4, 4, 4, 0.0001]}, "mlp_ratios is"),
        ({"sr_ratios": "many"}, "sr_ratios is"),
    ],
)
def test_configurations_without_meaning_are_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_family("segformer").config.from_dict(data)


def test_heads_that_do_not_divide_a_stage_are_refused() -> None:
    family = load_family("segformer")
    config = family.config.from_dict({"num_attention_heads": [3, 2, 5, 8]})
    with pytest.raises(CheckpointError, match="hidden_sizes"), torch.device("meta"):
        family.tasks[0].built(config)
