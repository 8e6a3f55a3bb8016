"""Detectors compute what the Hub's own code computes, of pictures of every size that they read."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from isoform.errors import CheckpointError, IsoformError, UnsupportedModel
from isoform.reference.families import load_family
from isoform.reference.model import Model, open_model
from tests.oracle import tiny

BACKBONES = ("rt_detr_resnet", "rt_detr_resnet_b")
MASKED = ("detr", "detr_b", "deformable_detr", "deformable_detr_b")
DETECTORS = ("rt_detr_v2", "rt_detr_b", "rt_detr_v2_b", "yolos", "yolos_b", *MASKED)
NAMES = (*BACKBONES, *DETECTORS)
ORDER = 4  # times the Hub's own error in float32, which random weights and the refining of boxes make larger
ROUNDING = 1e-6  # of the largest value, where the Hub's own is smaller
SAME = 1e-12  # float64
REFINED = 1e-7  # float64, where a layer reads a box that was cut at such an edge
EDGE = 1e-5  # float64, of boxes: what is before the sigmoid is kept, where the Hub's code takes a logarithm of the box


@cache
def model(name: str) -> Model:
    return open_model(tiny(name))


@cache
def theirs(name: str) -> Any:
    import transformers

    architecture = model(name).checkpoint.config["architectures"][0]
    return getattr(transformers, architecture).from_pretrained(tiny(name), dtype=torch.float64).eval()


def off(found: Tensor, expected: Tensor) -> float:
    """The largest error, of the largest value."""
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def of_hub(name: str, *inputs: Tensor) -> list[Tensor]:
    """Their outputs, in the order of the signature."""
    with torch.inference_mode():
        found = theirs(name)(**dict(zip(("pixel_values", "pixel_mask"), inputs, strict=False)))
    return list(found.feature_maps) if name in BACKBONES else [found.logits, found.pred_boxes]


def padded(height: int, width: int) -> Tensor:
    """The mask of two pictures, the second of which is smaller."""
    mask = torch.ones(2, height, width, dtype=torch.int64)
    mask[1, height - height // 3 :] = 0
    mask[1, :, width - width // 2 :] = 0
    return mask


@pytest.mark.parametrize("name", NAMES)
def test_outputs_equal_those_of_transformers(name: str) -> None:
    golden, signature = load_file(tiny(name) / "golden.safetensors"), model(name).signature
    inputs = [golden[f"in.{port.name}"] for port in signature.inputs]
    with torch.inference_mode():
        outputs = model(name).module()(*inputs)
    exact = of_hub(name, inputs[0].double(), *inputs[1:])
    for port, output, expected in zip(signature.outputs, outputs, exact, strict=True):
        own = off(golden[f"out.{port.name}"], expected)
        assert own < 1e-4
        assert off(output, expected) <= max(ORDER * own, ROUNDING)


@pytest.mark.parametrize("name", NAMES)
def test_they_are_the_same_numbers_where_rounding_is_small(name: str) -> None:
    """In float64, of pictures of several sizes; a backbone alone takes those that do not halve evenly as well."""
    signature = model(name).signature
    channels, *fixed = signature.inputs[0].axes[1:]
    assert isinstance(channels, int)
    sizes: list[Any] = [(50, 75), (96, 32)] if name in (*BACKBONES, *MASKED) else [(96, 128), (160, 96)]
    if all(isinstance(side, int) for side in fixed):
        sizes = [tuple(fixed)]
    module = model(name).module(torch.float64)
    for height, width in sizes:
        generator = torch.Generator().manual_seed(height)
        inputs = [torch.rand(2, channels, height, width, generator=generator, dtype=torch.float64)]
        if name in MASKED:
            inputs.append(padded(height, width))
        with torch.inference_mode():
            outputs = module(*inputs)
        for port, output, expected in zip(signature.outputs, outputs, of_hub(name, *inputs), strict=True):
            same = REFINED if name == "deformable_detr_b" else SAME
            assert off(output, expected) <= (EDGE if port.role == "boxes" else same), port.name


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_is_the_stored_one(name: str, tmp_path: Path) -> None:
    """But what the config determines, what counts the steps of a training, and heads under a second name."""
    model(name).save(tmp_path / "saved")
    with (
        safe_open(tiny(name) / "model.safetensors", "pt") as a,
        safe_open(tmp_path / "saved" / "model.safetensors", "pt") as b,
    ):
        left = {key for key in a.keys() if key.endswith(("n_points_scale", "num_batches_tracked"))}  # noqa: SIM118
        left |= repeated(name, a.keys())
        assert set(a.keys()) - left == set(b.keys())
        assert all(torch.equal(a.get_tensor(key), b.get_tensor(key)) for key in b.keys())  # noqa: SIM118


def repeated(name: str, keys: Any) -> set[str]:
    """Keys of heads that a file holds twice."""
    if name == "deformable_detr":
        return {key for key in keys if key.startswith(("bbox_embed.1.", "class_embed.1."))}
    if name == "deformable_detr_b":
        return {key for key in keys if key.startswith("model.decoder.bbox_embed")}
    return {key for key in keys if key.startswith(("bbox_embed", "class_embed"))}


def test_heads_are_read_from_either_of_their_names(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    stored = load_file(tiny("rt_detr_v2_b") / "model.safetensors")
    outer = {
        key: tensor
        for key, tensor in stored.items()
        if not key.startswith(("model.decoder.bbox", "model.decoder.class"))
    }
    assert len(outer) < len(stored)
    shutil.copy(tiny("rt_detr_v2_b") / "config.json", tmp_path / "config.json")
    save_file(outer, tmp_path / "model.safetensors")
    x = load_file(tiny("rt_detr_v2_b") / "golden.safetensors")["in.pixel_values"]
    with torch.inference_mode():
        assert torch.equal(open_model(tmp_path).module()(x)[1], model("rt_detr_v2_b").module()(x)[1])


def test_positions_between_no_layers_are_refused() -> None:
    with pytest.raises(CheckpointError, match="there is nothing between layers"):
        config_of("yolos", num_hidden_layers=1)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"position_embedding_type": "rotary"}, CheckpointError, "position_embedding_type is 'rotary'"),
        ({"d_model": 30}, CheckpointError, "d_model is 30, no multiple of 4"),
        ({"encoder_attention_heads": 5}, CheckpointError, "no multiple of num_attention_heads 5"),
        ({"activation_function": "mish"}, UnsupportedModel, "activation 'mish'"),
        ({"backbone_config": {"model_type": "vit"}}, UnsupportedModel, "ViT as a backbone is not supported"),
        ({"two_stage": True}, UnsupportedModel, "two_stage = true"),
    ],
)
def test_configurations_of_detr_without_meaning_are_refused(
    changes: dict[str, Any], kind: type[IsoformError], message: str
) -> None:
    with pytest.raises(kind, match=message), torch.device("meta"):
        config = config_of("detr", **changes)
        load_family("detr").tasks[0].built(config)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"two_stage": True}, UnsupportedModel, "two_stage is true"),
        ({"dilation": True}, UnsupportedModel, "dilation is true"),
        ({"position_embedding_type": "rotary"}, CheckpointError, "position_embedding_type is 'rotary'"),
        ({"d_model": 48}, CheckpointError, "d_model is 48, no multiple of 32"),
        ({"num_feature_levels": 1}, CheckpointError, "the backbone gives 2 maps"),
        ({"decoder_attention_heads": 5}, CheckpointError, "no multiple of"),
        ({"encoder_attention_heads": 5}, CheckpointError, "no multiple of"),
    ],
)
def test_configurations_of_deformable_detr_without_meaning_are_refused(
    changes: dict[str, Any], kind: type[IsoformError], message: str
) -> None:
    with pytest.raises(kind, match=message), torch.device("meta"):
        config = config_of("deformable_detr", **changes)
        load_family("deformable_detr").tasks[0].built(config)


def test_deformable_detr_reads_three_maps_of_a_backbone_that_is_only_named() -> None:
    load = load_family("deformable_detr").config.from_dict
    config: Any = load({"backbone": "resnet50", "use_timm_backbone": True})
    assert (config.stages, config.timm, config.num_feature_levels) == (("stage2", "stage3", "stage4"), True, 4)
    single: Any = load({"num_feature_levels": 1})
    assert single.stages == ("stage4",)


def test_heads_of_layers_that_differ_where_one_is_expected_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    stored = load_file(tiny("deformable_detr") / "model.safetensors")
    shutil.copy(tiny("deformable_detr") / "config.json", tmp_path / "config.json")
    save_file({**stored, "class_embed.1.bias": stored["class_embed.1.bias"] + 1}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="class_embed"):
        open_model(tmp_path).module()
    saved = {key: tensor for key, tensor in stored.items() if "_embed.1." not in key}
    save_file(saved, tmp_path / "model.safetensors")
    open_model(tmp_path).module()


def test_a_picture_with_padding_is_the_picture_alone() -> None:
    """Where the padding begins at a cell, and the backbone has not looked across: boxes of the picture, not of all."""
    module, (height, width) = model("detr").module(torch.float64), (96, 128)
    x = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    mask = torch.ones(1, height, width, dtype=torch.int64)
    mask[:, :, 64:] = 0
    other = x.clone()
    other[:, :, :, 112:] = 9.0  # far enough in the padding that no cell of the picture sees it
    with torch.inference_mode():
        for one, two in zip(module(x, mask), module(other, mask), strict=True):
            assert torch.equal(one, two)
        assert not torch.equal(module(x, torch.ones_like(mask))[1], module(x, mask)[1])


def config_of(name: str, **changes: Any) -> Any:
    data = json.loads((tiny(name) / "config.json").read_text()) | changes
    return load_family(data["model_type"], data).config.from_dict(data)


def backbone(**changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((tiny("rt_detr_v2") / "config.json").read_text())["backbone_config"]
    return data | changes


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"learn_initial_query": True}, UnsupportedModel, "learn_initial_query is true"),
        ({"use_timm_backbone": True}, UnsupportedModel, "use_timm_backbone is true"),
        ({"backbone": "resnet50"}, UnsupportedModel, 'backbone is "resnet50"'),
        ({"decoder_method": "nearest"}, CheckpointError, "decoder_method is 'nearest'"),
        ({"decoder_n_levels": 2}, CheckpointError, r"decoder_n_levels is \(2,\)"),
        ({"decoder_in_channels": [32, 32]}, CheckpointError, "decoder_in_channels is"),
        ({"encoder_in_channels": [32]}, CheckpointError, "encoder_in_channels"),
        ({"encode_proj_layers": [3]}, CheckpointError, "encode_proj_layers is"),
        ({"num_feature_levels": 2, "decoder_n_levels": 2}, CheckpointError, "the backbone gives 3 maps"),
        ({"anchor_image_size": [640]}, CheckpointError, "not height and width"),
        ({"anchor_image_size": [64, 64], "feat_strides": [4, 8, 16]}, CheckpointError, "feat_strides is"),
        ({"activation_function": "mish"}, UnsupportedModel, "activation 'mish'"),
        ({"decoder_attention_heads": 5}, CheckpointError, "no multiple of num_attention_heads 5"),
        ({"backbone_config": backbone(out_features=["stage9"])}, CheckpointError, "the stages are stem, stage1"),
        ({"backbone_config": backbone(out_indices=["x"], out_features=None)}, CheckpointError, "out_indices"),
        ({"backbone_config": backbone(layer_type="wide")}, CheckpointError, "layer_type is 'wide'"),
        ({"backbone_config": backbone(depths=[1, 1])}, CheckpointError, "are not of the same stages"),
        (
            {"backbone_config": backbone(out_features=["stage1", "stage2", "stage4"], out_indices=None)},
            CheckpointError,
            "each doubles",
        ),
        ({"backbone_config": backbone(out_features=["stage1", "stage2", "stage4"])}, CheckpointError, "other stages"),
        ({"backbone_config": backbone(out_features=3)}, CheckpointError, "out_features is 3; the stages are stem"),
        ({"backbone_config": {"model_type": "vit"}}, UnsupportedModel, "ViT as a backbone is not supported"),
        ({"heads": 5}, UnsupportedModel, "heads = 5"),
    ],
)
def test_configurations_without_meaning_are_refused(
    changes: dict[str, Any], kind: type[IsoformError], message: str
) -> None:
    with pytest.raises(kind, match=message), torch.device("meta"):
        config = config_of("rt_detr_v2", **changes)
        load_family("rt_detr_v2").tasks[0].built(config)


def test_settings_of_the_second_version_are_refused_in_the_first() -> None:
    with pytest.raises(UnsupportedModel, match="are of rt_detr_v2, not rt_detr"):
        config_of("rt_detr_b", decoder_method="discrete")


def test_the_backbone_of_a_file_without_one_is_the_formats_default() -> None:
    config: Any = load_family("rt_detr_v2").config.from_dict({"model_type": "rt_detr_v2", "decoder_n_levels": 3})
    assert (config.stages, config.widths, config.strides) == (
        ("stage2", "stage3", "stage4"),
        (512, 1024, 2048),
        (8, 16, 32),
    )
    assert config.unit == 64  # three by four units of 32 pixels have no 300 cells
