"""Depth Anything: depths of pictures of every size are those of transformers."""

from __future__ import annotations

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
from tests.oracle import tiny

ORDER = 1e-5  # of the largest value: float32 sums in another order
NAMES = ("depth_anything", "depth_anything_b")


@cache
def model(name: str) -> Model:
    return open_model(tiny(name))


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    worst = float((found.double() - expected.double()).abs().max() / expected.double().abs().max())
    assert worst <= ORDER, f"off by {worst:.2e} of the largest value"


@pytest.mark.parametrize("name", NAMES)
def test_depths_of_every_size_equal_those_of_transformers(name: str) -> None:
    from transformers import DepthAnythingForDepthEstimation

    golden, module = load_file(tiny(name) / "golden.safetensors"), model(name).module()
    theirs = DepthAnythingForDepthEstimation.from_pretrained(tiny(name)).eval()
    step = model(name).signature.units["height"]
    with torch.inference_mode():
        close(module(golden["in.pixel_values"])[0], golden["out.predicted_depth"])
        for count, rows, columns in ((1, 1, 1), (3, 7, 2), (2, 3, 9)):
            x = torch.randn(
                count, 3, rows * step + step // 2, columns * step, generator=torch.Generator().manual_seed(rows)
            )
            close(module(x)[0], theirs(x).predicted_depth)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_is_the_stored_one(name: str, tmp_path: Path) -> None:
    model(name).save(tmp_path / "saved")
    stored, saved = (load_file(folder / "model.safetensors") for folder in (tiny(name), tmp_path / "saved"))
    assert stored.keys() == saved.keys()
    assert all(torch.equal(stored[key], saved[key]) for key in stored)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({"reassemble_factors": [4, 2]}, CheckpointError, "4 states of the backbone, 2 reassemble_factors"),
        ({"reassemble_factors": [4, 2, 0, 1]}, CheckpointError, "each is above 0"),
        ({"reassemble_factors": [4, 2, 1.5, 1]}, CheckpointError, "4, 2, 1, 0.5"),
        ({"patch_size": 16}, CheckpointError, "patch_size is 16, the backbone's 14 x 14"),
        ({"reassemble_hidden_size": 32}, CheckpointError, "the backbone gives 384"),
        ({"head_in_index": 1}, UnsupportedModel, "head_in_index is 1"),
        ({"depth_estimation_type": "stereo"}, UnsupportedModel, "depth_estimation_type is"),
        ({"use_timm_backbone": True}, UnsupportedModel, "use_timm_backbone is true"),
        ({"backbone_config": {"model_type": "vit"}}, UnsupportedModel, "with ViT as its backbone"),
        ({"backbone_config": {"model_type": "dinov2_with_registers"}}, UnsupportedModel, "with registers as its"),
        ({"backbone_config": {"out_indices": [1, 2, 3, 99]}}, CheckpointError, "out_indices is"),
        ({"backbone_config": {"hidden_size": 384, "out_indices": [1, 2, 3, 4]}}, UnsupportedModel, "must be false"),
    ],
)
def test_configurations_without_meaning_are_refused(data: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_family("depth_anything").config.from_dict(data)
