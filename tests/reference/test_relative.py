"""Laws of the layers that know distances, and of the tables that number them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.model import open_model
from isoform.reference.modules.attention import Heads
from isoform.reference.modules.relative import (
    Disentangled,
    DisentangledAttention,
    DistanceTable,
    log_buckets,
    two_sided_buckets,
)
from tests.oracle import tiny


@pytest.mark.parametrize("length", [1, 2, 9, 300])
def test_buckets_are_those_of_transformers(length: int) -> None:
    places = torch.arange(length)
    expected = MPNetEncoder.relative_position_bucket(places[None, :] - places[:, None])
    assert torch.equal(DistanceTable(two_sided_buckets(32))(length), expected)


@pytest.mark.parametrize(("buckets", "farthest"), [(256, 512), (8, 130), (16, 40), (0, 12), (0, 512)])
@pytest.mark.parametrize("length", [1, 7, 130, 1200])
def test_buckets_of_logarithms_are_those_of_transformers(buckets: int, farthest: int, length: int) -> None:
    rows = torch.zeros(1, length, 1)
    relative = build_relative_position(rows, rows, buckets or -1, farthest)[0]
    span = buckets or farthest
    expected = (relative + span).clamp(0, 2 * span - 1)
    assert torch.equal(DistanceTable(log_buckets(buckets, farthest))(length), expected)


@pytest.mark.parametrize("kind", [Disentangled(True, True, False), Disentangled(True, False, True)])
def test_a_table_of_zeros_leaves_plain_attention(kind: Disentangled) -> None:
    torch.manual_seed(0)
    layer = DisentangledAttention(12, Heads(3, 3, 4), kind, True).double().requires_grad_(False)
    for parameter in layer.parameters():
        parameter.normal_()
    for name, parameter in layer.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
    x, bias, places = torch.randn(2, 5, 12).double(), torch.zeros(2, 1, 1, 5).double(), torch.zeros(5, 5).long()
    found = layer(x, bias, torch.zeros(8, 12).double(), places)
    split = (x @ w.weight.T for w in (layer.q, layer.k, layer.v))
    q, k, v = (part.view(2, 5, 3, 4).transpose(1, 2) for part in split)
    weights = (q @ k.transpose(-1, -2) / (4 * kind.terms) ** 0.5).softmax(-1)
    expected = (weights @ v).transpose(1, 2).reshape(2, 5, 12) @ layer.out.weight.T
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------ DeBERTa's files
def changed(tmp_path: Path, name: str, tensors: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    folder = tmp_path / name
    shutil.copytree(tiny(name), folder)
    settings = {**json.loads((folder / "config.json").read_text()), **config}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if v is not ...}))
    if tensors:
        held = load_file(folder / "model.safetensors")
        save_file({**held, **tensors}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"pos_att_type": "c2p|p2p"}, UnsupportedModel, "pos_att_type has 'p2p'; isoform knows c2p, p2c"),
        ({"pooler_hidden_size": 16}, UnsupportedModel, "pooler_hidden_size 16"),
        ({"position_buckets": 2}, CheckpointError, "2 position_buckets for distances up to 130"),
        ({"position_buckets": 300}, CheckpointError, "300 position_buckets for distances up to 130"),
        ({"max_relative_positions": 2**30}, CheckpointError, "for distances up to 1073741824"),
        ({"position_buckets": "8"}, CheckpointError, "position_buckets is '8'"),
        ({"conv_act": "mish", "conv_kernel_size": 3}, UnsupportedModel, "activation 'mish'"),
        ({"conv_kernel_size": 4}, CheckpointError, "over 4 positions has no middle"),
        ({"share_att_key": False}, CheckpointError, "pos_key_proj"),
        ({"norm_rel_ebd": "none"}, CheckpointError, "deberta.encoder.LayerNorm"),
        ({"legacy": False, "embedding_size": 16}, CheckpointError, "legacy=false needs embeddings as wide"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    config: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        open_model(changed(tmp_path, "deberta", **config)).module()


def test_a_trunk_beside_every_head_of_the_pretraining_opens(tmp_path: Path) -> None:
    """Like microsoft/deberta-v3-base, whose config.json names no class."""
    heads = {
        "lm_predictions.lm_head.dense.weight": torch.ones(32, 32),
        "lm_predictions.lm_head.bias": torch.ones(381),
        "mask_predictions.dense.weight": torch.ones(32, 32),
        "deberta.embeddings.position_embeddings.weight": torch.ones(130, 32),
    }
    model = open_model(changed(tmp_path, "deberta", heads, architectures=...))
    assert model.task.name == "feature-extraction"
    ids = torch.arange(5, 14).unsqueeze(0)
    trunk = open_model(tiny("deberta"), "feature-extraction").module()
    assert torch.equal(model.module()(ids)[0], trunk(ids)[0])
    whole = open_model(tmp_path / "deberta", "fill-mask").module()
    assert torch.equal(whole(ids)[0], open_model(tiny("deberta")).module()(ids)[0])
