"""VitPose computes what the Hub's own code computes, and refuses what makes no sense."""

from __future__ import annotations

import json
import shutil
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
from isoform.errors import CheckpointError, IsoformError, UnsupportedExport, UnsupportedModel
from isoform.reference.families import load_family
from isoform.reference.model import Model, open_model
from isoform.runtimes.open import open_path
from tests.exports import exported
from tests.oracle import tiny

NAMES = ("vitpose", "vitpose_plus", "vitpose_b")
ORDER = 2e-6  # of the largest value: float32 sums in another order


@cache
def model(name: str) -> Model:
    return open_model(tiny(name))


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    worst = float((found.double() - expected.double()).abs().max() / expected.double().abs().max())
    assert worst <= ORDER, f"off by {worst:.2e} of the largest value"


@pytest.mark.parametrize("name", NAMES)
def test_heatmaps_equal_those_of_transformers(name: str) -> None:
    golden, signature = load_file(tiny(name) / "golden.safetensors"), model(name).signature
    (found,) = model(name).module()(*(golden[f"in.{port.name}"] for port in signature.inputs))
    close(found, golden["out.heatmaps"])


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_is_the_stored_one(name: str, tmp_path: Path) -> None:
    """With the layers that the head does not read; not with the counts of training steps, which nothing reads."""
    model(name).save(tmp_path / "saved")
    with (
        safe_open(tiny(name) / "model.safetensors", "pt") as a,
        safe_open(tmp_path / "saved" / "model.safetensors", "pt") as b,
    ):
        assert set(b.keys()) == {key for key in a.keys() if not key.endswith("num_batches_tracked")}  # noqa: SIM118
        assert all(torch.equal(a.get_tensor(key), b.get_tensor(key)) for key in b.keys())  # noqa: SIM118


def test_only_models_with_experts_take_a_data_set() -> None:
    inputs = {name: [port.name for port in model(name).signature.inputs] for name in NAMES}
    assert inputs["vitpose"] == ["pixel_values"]
    assert inputs["vitpose_plus"] == inputs["vitpose_b"] == ["pixel_values", "dataset_index"]


def test_rows_of_a_batch_may_be_of_different_data_sets() -> None:
    golden = load_file(tiny("vitpose_b") / "golden.safetensors")
    pixels, chosen = golden["in.pixel_values"][:1].expand(3, -1, -1, -1), torch.arange(3)
    (together,) = model("vitpose_b").module()(pixels, chosen)
    for row, one in zip(together, chosen, strict=True):
        close(row[None], model("vitpose_b").module()(pixels[:1], one[None])[0])
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def edited(name: str, folder: Path, **backbone: Any) -> Path:
    shutil.copytree(tiny(name), folder)
    data = json.loads((folder / "config.json").read_text())
    data["backbone_config"] |= backbone
    (folder / "config.json").write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize(
    ("names", "indices", "state"),
    [
        (None, None, 3),
        (["stage1", "stage3"], None, 3),
        (None, [0, 1], 1),
        (None, [-3], 1),
        (["stem"], None, 0),
        (["stage2"], [2], 2),
    ],
)
def test_the_head_reads_the_last_state_that_the_backbone_gives(
    names: list[str] | None, indices: list[int] | None, state: int, tmp_path: Path
) -> None:
    import transformers

    folder = edited("vitpose", tmp_path / "model", out_features=names, out_indices=indices)
    ours, theirs = open_model(folder), transformers.VitPoseForPoseEstimation.from_pretrained(folder).eval()
    assert len(ours.module().layers) == state  # type: ignore[arg-type]
    pixels = load_file(tiny("vitpose") / "golden.safetensors")["in.pixel_values"]
    with torch.inference_mode():
        close(ours.module()(pixels)[0], theirs(pixels).heatmaps)


@pytest.mark.parametrize(
    ("backbone", "kind", "message"),
    [
        ({"out_features": ["stage4"]}, CheckpointError, r"out_features is \['stage4'\]; .* to stage3"),
        (
            {"out_indices": [9], "out_features": None},
            CheckpointError,
            r"backbone_config\.out_indices is \[9\]; .* 0 to 3",
        ),
        ({"out_indices": [1]}, CheckpointError, "they must agree"),
        ({"out_indices": [], "out_features": None}, CheckpointError, r"out_indices is \[\]"),
        ({"image_size": [62, 48]}, CheckpointError, "the sizes do not belong together"),
        ({"patch_size": [99, 16]}, CheckpointError, "holds no patch"),
        ({"num_experts": 2, "part_features": 48}, CheckpointError, "part_features is 48, of 48 channels"),
        ({"model_type": "resnet"}, UnsupportedModel, r"backbone_config\.model_type is 'resnet'"),
        ({"rotation": 3}, UnsupportedModel, r"backbone_config\.rotation = 3 is not known"),
    ],
)
def test_a_backbone_without_meaning_is_refused(
    backbone: dict[str, Any], kind: type[IsoformError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message):
        open_model(edited("vitpose", tmp_path / "model", **backbone))


def test_a_backbone_of_timm_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="use_timm_backbone is true"):
        load_family("vitpose").config.from_dict({"use_timm_backbone": True})


def test_without_a_backbone_config_four_layers_are_read() -> None:
    """That is what transformers makes of such a file."""
    config: Any = load_family("vitpose").config.from_dict({"model_type": "vitpose"})
    assert (config.backbone.num_hidden_layers, config.backbone.state, config.image_size) == (12, 4, (256, 192))


def test_llama_cpp_has_no_such_architecture(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedExport, match="no architecture that estimates poses"):
        api.export(tiny("vitpose"), tmp_path / "out", to="gguf", check=False)


@pytest.mark.parametrize("rows", [1, 7])
def test_one_graph_takes_any_batch(rows: int) -> None:
    """Each row has the heatmaps that torch gives it alone, whichever experts its neighbours take."""
    random = np.random.default_rng(rows)
    pixels = random.standard_normal((rows, 3, 32, 48)).astype(np.float32)
    chosen = random.integers(0, 3, rows)
    session, _ = open_path(exported("vitpose_b"), "onnxruntime", threads=1)
    with session:
        found = session.run({"pixel_values": pixels, "dataset_index": chosen})["heatmaps"]
    for n in range(rows):
        (want,) = model("vitpose_b").module()(torch.from_numpy(pixels[n : n + 1]), torch.from_numpy(chosen[n : n + 1]))
        close(torch.from_numpy(found[n : n + 1].copy()), want)
