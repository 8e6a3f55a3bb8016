"""OneFormer computes what transformers' code computes, of pictures of every size and for every task."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.families import load_family
from isoform.reference.model import Model, open_model
from isoform.reference.vision.mask_decoder import MaskDecoder
from isoform.runtimes.open import open_path
from tests.exports import exported
from tests.oracle import tiny

ORDER = 1e-5  # of the largest value: float32 sums in another order


def close(found: torch.Tensor, expected: torch.Tensor, order: float = ORDER) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= order * float(expected.abs().max())


@cache
def model(name: str) -> Model:
    return open_model(tiny(name))


@cache
def theirs(name: str) -> Any:
    import transformers
    from transformers.models.oneformer import modeling_oneformer

    modeling_oneformer.requires_backends = lambda *_: None  # its loss asks for scipy
    # `is_training` would drop some values at random, whatever the module's mode.
    return transformers.OneFormerForUniversalSegmentation.from_pretrained(tiny(name), is_training=False).eval()


def inputs(name: str, batch: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(height)
    length = json.loads((tiny(name) / "config.json").read_text())["task_seq_len"]
    ids = torch.randint(0, model(name).config.vocabulary or 1, (batch, length), generator=random)
    return torch.randn(batch, 3, height, width, generator=random), ids


@pytest.mark.parametrize("name", ["oneformer", "oneformer_b"])
def test_pictures_of_every_size_equal_those_of_transformers(name: str) -> None:
    ours = model(name).module()
    for batch, height, width in ((1, 64, 64), (2, 50, 94), (1, 131, 37)):
        pixels, ids = inputs(name, batch, height, width)
        with torch.inference_mode():
            found, expected = ours(pixels, ids), theirs(name)(pixel_values=pixels, task_inputs=ids)
        close(found[0], expected.class_queries_logits)
        close(found[1], expected.masks_queries_logits)


def test_one_graph_reads_every_size_and_batch() -> None:
    session, _ = open_path(exported("oneformer"))
    module = model("oneformer").module()
    with session:
        for batch, height, width in ((1, 40, 100), (7, 64, 36)):
            pixels, ids = inputs("oneformer", batch, height, width)
            found = session.run({"pixel_values": pixels.numpy(), "task_inputs": ids.numpy()})
            with torch.inference_mode():
                for a, b in zip(found.values(), module(pixels, ids), strict=True):
                    close(torch.from_numpy(a), b, 3e-5)  # logits to 1e2, after six norms of small maps


def test_the_task_decides_what_is_segmented() -> None:
    module = model("oneformer").module()
    golden = load_file(tiny("oneformer") / "golden.safetensors")
    pixels, ids = golden["in.pixel_values"], golden["in.task_inputs"]
    with torch.inference_mode():
        one, other = module(pixels, ids), module(pixels, torch.zeros_like(ids))
    assert float((one[1] - other[1]).abs().max()) > 0.1


def test_a_task_of_large_ids_is_read_in_float16() -> None:
    """Their sums go beyond what a half holds, so the task's token is computed in float32."""
    ids = torch.full((1, 77), 49407)
    pixels = load_file(tiny("oneformer") / "golden.safetensors")["in.pixel_values"]
    with torch.inference_mode():
        half = model("oneformer").module(torch.float16)(pixels.half(), ids)
        whole = model("oneformer").module()(pixels, ids)
    assert all(torch.isfinite(x).all() for x in half)
    close(half[0].float(), whole[0], 0.2)


def test_a_query_whose_mask_is_empty_sees_the_whole_map() -> None:
    """As one whose mask is everywhere does; what another query sees changes nothing."""
    decoder = MaskDecoder(8, 8, 2, layers=1, heads=2, inner=8, act="relu", eps=1e-5, pre_norm=False).requires_grad_(
        False
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in decoder.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    x, key = torch.randn(1, 3, 8, generator=generator), torch.randn(1, 16, 8, generator=generator)
    fine = torch.randn(1, 8, 8, 8, generator=generator)
    sizes = [torch.zeros(1, 8, 4, 4)]
    bias: list[torch.Tensor] = []
    layer: Any = decoder.layers[0]
    last: Any = decoder.mask.layers[2]
    honest = layer.forward

    def forward(*given: torch.Tensor) -> torch.Tensor:
        bias.append(given[4])
        found: torch.Tensor = honest(*given)
        return found

    layer.forward = forward
    last.bias.zero_()
    for level in (-50.0, 0.0, 50.0):  # every logit of a query has one sign
        decoder(x, torch.zeros(1, 3, 8), [(key, key)], sizes, torch.zeros_like(fine) + level)
    decoder(x, torch.zeros(1, 3, 8), [(key, key)], sizes, fine)
    assert not any(one.any() for one in bias[:3])
    assert 0 < float((bias[3] != 0).float().mean()) < 1


def test_the_encoder_of_a_trainings_texts_is_carried(tmp_path: Path) -> None:
    opened = model("oneformer_b")
    assert any(name.startswith("text.layers.1") for name in opened.all_weights)
    assert not any(name.startswith(("text.", "loss.")) for name in opened.weights)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"conv_dim": 128}, "conv_dim is 128, mask_dim 256 and hidden_dim 256"),
        ({"decoder_layers": 1}, "decoder_layers and num_queries are 2 or more"),
        ({"backbone_config": {"model_type": "swin", "out_features": ["stage9"]}}, "the stages are stem, stage1"),
    ],
)
def test_configurations_without_meaning_are_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_family("oneformer").config.from_dict(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"backbone_config": {"model_type": "dinat"}}, "DiNAT backbone is not supported: .* NATTEN"),
        ({"backbone_config": {"model_type": "vit"}}, "ViT as a backbone is not supported"),
        ({"enforce_input_proj": True}, "enforce_input_proj"),
        ({"use_timm_backbone": True}, "use_timm_backbone"),
    ],
)
def test_what_is_not_supported_is_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        load_family("oneformer").config.from_dict(data)
