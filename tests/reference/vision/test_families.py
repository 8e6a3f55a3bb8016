"""The vision families compute what the Hub's own code computes, of pictures of every size that they read."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from isoform.errors import CheckpointError
from isoform.reference.families import load_family
from isoform.reference.model import Model, open_model
from isoform.reference.vision.patches import bicubic, resized
from tests.oracle import tiny

DINO = (
    "dinov2",
    "dinov2_giant",
    "dinov2_cls",
    "dinov2_b",
    "dinov2_giant_b",
    "dinov2_registers",
    "dinov2_registers_cls",
)
TOWERS = ("clip", "clip_b", "siglip", "siglip_b")
SEGMENTED = ("mask2former", "mask2former_b", "oneformer", "oneformer_b")
OTHERS = ("beit_cls", "beit_b", "swin_absolute", "swin_b", "swin_cls", "vit_b", "vit_cls")
NAMES = (*DINO, *OTHERS, *SEGMENTED, *TOWERS)
ORDER = 1e-5  # of the largest value: float32 sums in another order
PLACES = 1e-12  # float64: the same weights from places that are rounded in another way


@cache
def model(name: str) -> Model:
    return open_model(tiny(name))


@cache
def module(name: str) -> torch.nn.Module:
    return model(name).module()


@cache
def theirs(name: str) -> Any:
    import transformers

    architecture = model(name).checkpoint.config["architectures"][0]
    return getattr(transformers, architecture).from_pretrained(tiny(name), dtype=torch.float32).eval()


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    worst = float((found.double() - expected.double()).abs().max() / expected.double().abs().max())
    assert worst <= ORDER, f"off by {worst:.2e} of the largest value"


@pytest.mark.parametrize("name", NAMES)
def test_outputs_equal_those_of_transformers(name: str) -> None:
    golden, signature = load_file(tiny(name) / "golden.safetensors"), model(name).signature
    outputs = module(name)(*(golden[f"in.{port.name}"] for port in signature.inputs))
    for port, output in zip(signature.outputs, outputs, strict=True):
        close(output, golden[f"out.{port.name}"])


@pytest.mark.parametrize("name", ["dinov2", "dinov2_b", "dinov2_registers", "dinov2_registers_cls"])
def test_pictures_of_every_size_equal_those_of_transformers(name: str) -> None:
    """Smaller and larger than the grid of positions, not square, and with pixels left over at the edges."""
    step = model(name).signature.units["height"]
    for rows, columns in ((1, 1), (5, 5), (3, 8), (9, 7)):
        x = torch.randn(2, 3, rows * step + step // 2, columns * step, generator=torch.Generator().manual_seed(rows))
        with torch.inference_mode():
            close(module(name)(x)[0], theirs(name)(pixel_values=x)[0])


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize(("old", "new"), [(37, 16), (16, 37), (5, 5), (5, 1), (1, 4), (3, 8)])
def test_positions_are_interpolated_as_torch_does_it(old: int, new: int, smooth: bool) -> None:
    x = torch.randn(old, old, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    options = {"mode": "bicubic", "align_corners": False, "antialias": smooth}
    want = F.interpolate(x.permute(2, 0, 1)[None], size=(new, new + 1), **options)[0].permute(1, 2, 0)  # type: ignore[arg-type]
    found = resized(x.flatten(0, 1), (old, old), (new, new + 1), smooth).unflatten(0, (new, new + 1))
    assert float((found - want).abs().max()) <= PLACES
    assert bicubic(x, old, new, smooth).sum(1).allclose(torch.ones(new, dtype=torch.float64))


def test_a_grid_of_its_own_size_is_kept_bit_for_bit() -> None:
    for smooth in (False, True):
        assert torch.equal(bicubic(torch.ones(1), 16, 16, smooth), torch.eye(16))


@pytest.mark.parametrize("name", ["clip", "clip_b"])
def test_padding_on_either_side_changes_no_text(name: str) -> None:
    golden = load_file(tiny(name) / "golden.safetensors")
    ids, mask, pixels = (golden[f"in.{n}"] for n in ("input_ids", "attention_mask", "pixel_values"))
    want = module(name)(ids, pixels, mask)[2]
    zeros = torch.zeros(len(ids), 3, dtype=torch.int64)
    filler = ids[:, :1].expand(-1, 3)
    close(module(name)(torch.cat((filler, ids), 1), pixels, torch.cat((zeros, mask), 1))[2], want)
    close(module(name)(torch.cat((ids, filler), 1), pixels, torch.cat((mask, zeros), 1))[2], want)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_is_the_stored_one(name: str, tmp_path: Path) -> None:
    """Every tensor under its own key, those that the task has no use for included (but the pooler of no classifier)."""
    model(name).save(tmp_path / "saved")
    with (
        safe_open(tiny(name) / "model.safetensors", "pt") as a,
        safe_open(tmp_path / "saved" / "model.safetensors", "pt") as b,
    ):
        assert {key for key in a.keys() if "position_index" not in key} == set(b.keys())  # noqa: SIM118
        assert all(torch.equal(a.get_tensor(key), b.get_tensor(key)) for key in b.keys())  # noqa: SIM118


def test_a_config_of_an_old_checkpoint_is_read() -> None:
    """CLIP's first checkpoints state a tower twice; the second, `…_dict`, holds."""
    clip = load_family("clip").config
    data = {"text_config": {"hidden_size": 99}, "text_config_dict": {"hidden_size": 64}, "vision_config": None}
    config: Any = clip.from_dict({**data, "projection_dim": 7})
    assert (config.text.hidden_size, config.vision.hidden_size, config.projection_dim) == (64, 768, 7)
    assert config.max_position_embeddings == 77


@pytest.mark.parametrize(
    ("model_type", "data", "message"),
    [
        ("dinov2", {"image_size": [28, 42]}, "this family has square ones"),
        ("dinov2", {"image_size": 7}, "holds no patch"),
        ("dinov2", {"patch_size": [1, 2, 3]}, "is no size"),
        ("vit", {"id2label": ["a"]}, "id2label is"),
        ("beit", {"image_size": 8}, "holds no patch"),
        ("beit", {"image_size": [32, 48]}, "image_size is"),
        ("beit", {"layer_scale_init_value": "much"}, "which is no number"),
        ("clip", {"text_config": 3}, "text_config is 3"),
    ],
)
def test_configurations_without_meaning_are_refused(model_type: str, data: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_family(model_type).config.from_dict(data)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    family = load_family("vit")
    with pytest.raises(CheckpointError, match="no multiple of num_attention_heads"), torch.device("meta"):
        family.tasks[0].built(family.config.from_dict({"hidden_size": 20, "num_attention_heads": 3}))
