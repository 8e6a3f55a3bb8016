"""wav2vec 2.0 computes what the Hub's own code computes, whatever else is in the batch."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.model import Model, open_model
from isoform.reference.rules import WeightNorm
from tests.oracle import tiny

NAMES = ("wav2vec2", "wav2vec2_ctc", "wav2vec2_large", "wav2vec2_b", "wav2vec2_base_b", "wav2vec2_ctc_b")
MASKED = ("wav2vec2_large", "wav2vec2_b", "wav2vec2_ctc_b")
ORDER = 1e-5  # of the largest value: float32 sums in another order
ROUNDING = 1e-6  # of the largest weight: one product and one quotient in float32


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
    if architecture.endswith("PreTraining"):
        architecture = "Wav2Vec2Model"
    return getattr(transformers, architecture).from_pretrained(tiny(name), dtype=torch.float32).eval()


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    worst = float((found.double() - expected.double()).abs().max() / expected.double().abs().max())
    assert worst <= ORDER, f"off by {worst:.2e} of the largest value"


def noise(rows: int, samples: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
def test_outputs_equal_those_of_transformers(name: str) -> None:
    golden = load_file(tiny(name) / "golden.safetensors")
    inputs = {key[3:]: value for key, value in golden.items() if key.startswith("in.")}
    close(module(name)(**inputs)[0], golden[f"out.{model(name).signature.outputs[0].name}"])
    unit: int = model(name).config.field  # type: ignore[attr-defined]
    for samples in (unit, unit + 1, 3 * unit - 1, 5003):
        x = noise(2, samples, samples)
        with torch.no_grad():
            close(module(name)(x)[0], theirs(name)(x)[0])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "wav2vec2_ctc_b"])
def test_padded_rows_equal_those_of_transformers(name: str) -> None:
    mask = torch.ones(3, 4000, dtype=torch.long)
    mask[1, 2719:] = 0
    mask[2, 801:] = 0
    x = noise(3, 4000) * mask
    with torch.no_grad():
        found, expected = module(name)(x, mask)[0], theirs(name)(x, attention_mask=mask)[0]
    close(found, expected)


@pytest.mark.parametrize("name", MASKED)
def test_padding_changes_no_row(name: str) -> None:
    """Of the adapter's convolutions too, whose end transformers lets see the padding."""
    lengths = (4000, 2719, 1600)
    x, mask = noise(3, 4000), torch.zeros(3, 4000, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    together = module(name)(x, mask)[0]
    for row, length in enumerate(lengths):
        alone = module(name)(x[row : row + 1, :length], mask[row : row + 1, :length])[0][0]
        found = together[row, : alone.shape[0]] if alone.dim() > 1 else together[row]
        close(found, alone)


def test_a_mask_is_asked_for_only_where_the_model_learned_one() -> None:
    for name in NAMES:
        ports = [port.name for port in model(name).signature.inputs]
        assert ports == (["input_values", "attention_mask"] if name in MASKED else ["input_values"])


@pytest.mark.parametrize("name", ["wav2vec2_ctc", "wav2vec2_b"])
def test_weight_norm_is_folded_and_comes_back(name: str, tmp_path: Path) -> None:
    """In torch's older spelling and its newer one; what was changed gets a length of its own."""
    stored = load_file(tiny(name) / "model.safetensors")
    weight = model(name).weights["position_conv.weight"].load()
    expected = theirs(name).wav2vec2.encoder.pos_conv_embed.conv.weight.detach()
    assert torch.allclose(weight, expected, rtol=0, atol=ROUNDING * float(expected.abs().max()))
    open_model(tiny(name)).save(tmp_path / "same")
    saved = load_file(tmp_path / "same" / "model.safetensors")
    assert saved.keys() == stored.keys()
    assert all(torch.equal(saved[key], stored[key]) for key in stored)
    changed = open_model(tiny(name)).module()
    with torch.no_grad():
        changed.position_conv.weight.mul_(torch.linspace(0.5, 2, weight.shape[2]))  # type: ignore[union-attr, operator]
    open_model(tiny(name)).save(tmp_path / "changed", changed)
    again = open_model(tmp_path / "changed").weights["position_conv.weight"].load()
    assert torch.allclose(again, changed.position_conv.weight, atol=ROUNDING)  # type: ignore[arg-type, union-attr]


def test_half_a_weight_is_refused(tmp_path: Path) -> None:
    shutil.copytree(tiny("wav2vec2_ctc"), tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    del tensors["wav2vec2.encoder.pos_conv_embed.conv.weight_g"]
    save_file(tensors, path)
    with pytest.raises(
        CheckpointError, match=r"lacks wav2vec2\.encoder\.pos_conv_embed\.conv\.weight_g, the counterpart"
    ):
        _ = open_model(tmp_path / "model").weights
    del tensors["wav2vec2.encoder.pos_conv_embed.conv.weight_v"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"lacks wav2vec2\.encoder\.pos_conv_embed\.conv\.weight_v"):
        _ = open_model(tmp_path / "model").weights


def test_taking_weight_norm_apart_and_together_is_the_identity() -> None:
    rule = WeightNorm("a", "b", 2)
    weight = noise(4, 15).view(4, 3, 5)
    length, direction = rule.save(weight)
    assert torch.allclose(rule.load(length, direction)[0], weight, rtol=0, atol=ROUNDING * 4)
    assert length.shape == (1, 1, 5)


def test_configurations_without_meaning_are_refused() -> None:
    config = model("wav2vec2").checkpoint.config
    kind = type(model("wav2vec2").config)
    for change, error, message in (
        ({"conv_stride": [5, 2]}, CheckpointError, "have 7, 2 and 7 entries"),
        ({"feat_extract_norm": "batch"}, UnsupportedModel, "feat_extract_norm='batch'"),
    ):
        with pytest.raises(error, match=message):
            kind.from_dict({**config, **change})
