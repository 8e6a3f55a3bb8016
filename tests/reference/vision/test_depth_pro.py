"""DepthPro: inverse depths and fields of view are those of transformers, for any number of pictures."""

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
from isoform.reference.vision import depth_pro
from tests.oracle import tiny

ORDER = 1e-5  # of the largest value: float32 sums in another order
NAMES = ("depth_pro", "depth_pro_b")


@cache
def model(name: str) -> Model:
    return open_model(tiny(name))


@cache
def module(name: str) -> torch.nn.Module:
    return model(name).module()


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    worst = float((found.double() - expected.double()).abs().max() / expected.double().abs().max())
    assert worst <= ORDER, f"off by {worst:.2e} of the largest value"


def pictures(name: str, count: int) -> Tensor:
    size = [axis for axis in model(name).signature.inputs[0].axes if isinstance(axis, int)]
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(5))


def stored_keys(stored: dict[str, Tensor]) -> set[str]:
    """Without what only counts the steps of a training."""
    return {key for key in stored if not key.endswith("num_batches_tracked")}


@pytest.mark.parametrize("name", NAMES)
def test_outputs_equal_those_of_transformers(name: str) -> None:
    golden = load_file(tiny(name) / "golden.safetensors")
    with torch.inference_mode():
        outputs = module(name)(golden["in.pixel_values"])
    for port, output in zip(model(name).signature.outputs, outputs, strict=True):
        close(output, golden[f"out.{port.name}"])
    assert float((outputs[0] > 0).float().mean()) > 0.5, "depths that the last activation cuts off prove nothing"


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_in_a_batch_is_the_picture_alone(name: str) -> None:
    x = pictures(name, 3)
    with torch.inference_mode():
        together = module(name)(x)
        for n in range(len(x)):
            for one, all_of_them in zip(module(name)(x[n : n + 1]), together, strict=True):
                close(one, all_of_them[n : n + 1])


@pytest.mark.parametrize("name", NAMES)
def test_strips_of_the_finest_map_are_the_whole_of_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = pictures(name, 1)
    with torch.inference_mode():
        found = module(name)(x)[0]
        monkeypatch.setattr(depth_pro, "STRIPS", 1)
        close(found, module(name)(x)[0])
        monkeypatch.setattr(depth_pro, "STRIPS", 4)
        monkeypatch.setattr(module(name), "beyond", 0)
        with pytest.raises(AssertionError, match="off by"):
            close(found, module(name)(x)[0])


def test_without_a_field_of_view_its_weights_are_left_alone(tmp_path: Path) -> None:
    from transformers import DepthProForDepthEstimation

    folder = shutil.copytree(tiny("depth_pro_b"), tmp_path / "plain")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "use_fov_model": False}))
    found, x = open_model(folder), pictures("depth_pro_b", 1)
    assert [port.name for port in found.signature.outputs] == ["predicted_depth"]
    theirs = DepthProForDepthEstimation.from_pretrained(folder).eval()
    with torch.inference_mode():
        close(found.module()(x)[0], theirs(x).predicted_depth)
    found.save(tmp_path / "saved")
    saved, stored = (load_file(one / "model.safetensors") for one in (tmp_path / "saved", folder))
    assert saved.keys() == stored_keys(stored)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_is_the_stored_one(name: str, tmp_path: Path) -> None:
    model(name).save(tmp_path / "saved")
    stored, saved = (load_file(folder / "model.safetensors") for folder in (tiny(name), tmp_path / "saved"))
    assert stored_keys(stored) == saved.keys()
    assert all(torch.equal(stored[key], saved[key]) for key in saved)


def test_the_published_sizes_are_those_of_the_paper() -> None:
    """35 patches of 384 x 384 of a picture of 1536 x 1536, whose maps are joined to 24, 48 and 96 rows."""
    data = {"use_fov_model": True, **{f"{name}_model_config": {"patch_size": 16} for name in depth_pro.TOWERS}}
    config: Any = load_family("depth_pro").config.from_dict(data)
    assert (config.image_size, config.grid, config.base) == (1536, 24, 24)
    with torch.device("meta"):
        built = depth_pro.DepthPro(config)
    assert [(len(tiles), tiles.rows) for tiles in built.tiles] == [(1, 24), (9, 48), (25, 96)]
    task = load_family("depth_pro").tasks[0]
    assert task.signature is not None
    assert [port.axes[1:] for port in task.signature(config).outputs] == [(1536, 1536), ()]


SCALES = {"scaled_images_overlap_ratios": [0, 0], "scaled_images_feature_dims": [8, 8]}


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({"merge_padding_value": -1}, CheckpointError, "merge_padding_value is -1"),
        ({"scaled_images_ratios": [1]}, CheckpointError, "each scale has one of each"),
        ({"intermediate_hook_ids": [1]}, CheckpointError, "1 intermediate_hook_ids have 2"),
        ({"intermediate_hook_ids": [99, 1]}, CheckpointError, "the state 100 of a tower of 12 layers"),
        ({**SCALES, "scaled_images_ratios": [1, 0.5]}, CheckpointError, "they go up"),
        ({**SCALES, "scaled_images_ratios": [0, 0.5]}, CheckpointError, "from above 0 to 1"),
        ({"scaled_images_overlap_ratios": [0, 1, 0.5]}, CheckpointError, "each is from 0 to 1"),
        ({"fusion_hidden_size": 2}, CheckpointError, "cannot be halved 2 times"),
        ({"patch_size": 7}, CheckpointError, "a picture of 7 holds no patch of 14"),
        ({"patch_size": [384, 384]}, CheckpointError, "patch_size is"),
        ({"image_model_config": 3}, CheckpointError, "image_model_config is 3"),
        ({"image_model_config": {"model_type": "vit"}}, UnsupportedModel, "DepthPro with ViT as a tower"),
        ({"image_model_config": {"model_type": "mystery"}}, UnsupportedModel, "mystery"),
        ({"patch_model_config": {"rounded": 1}}, UnsupportedModel, "patch_model_config.rounded"),
    ],
)
def test_configurations_without_meaning_are_refused(data: dict[str, Any], error: type[Exception], message: str) -> None:
    family = load_family("depth_pro")
    with pytest.raises(error, match=message), torch.device("meta"):
        family.tasks[0].built(family.config.from_dict(data))


def test_a_tower_gives_the_states_that_are_asked_for(tmp_path: Path) -> None:
    """As layers give them and after the norm, from registers on, and nothing of the layers behind the last of them."""
    from transformers import AutoModel

    for name in ("dinov2", "dinov2_registers"):
        opened = open_model(tiny(name))
        levels, config = opened.family.levels, opened.config
        assert levels is not None
        tower = levels.build(config, (0, 2), (1,))
        weights = {key: weight.load() for key, weight in opened.weights.items()}
        left = levels.left_out(config, (0, 2), (1,))
        assert {key for key in weights if key not in tower.state_dict()} == {
            key for key in weights if any(key.startswith(f"{one}.") for one in left)
        }
        tower.load_state_dict({key: weights[key] for key in tower.state_dict()})
        theirs, x = AutoModel.from_pretrained(tiny(name)).eval(), torch.randn(1, 3, 42, 28)
        with torch.inference_mode():
            states = theirs(x, output_hidden_states=True).hidden_states
            for found, want in zip(tower(x), (states[0], states[2], theirs.layernorm(states[1])), strict=True):
                close(found, want)
        assert found.shape[1:] == (levels.special(config) + 3 * 2, levels.width(config))
