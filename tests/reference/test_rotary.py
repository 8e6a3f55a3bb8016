"""Rotary scaling against transformers' own modules, at lengths on both sides of the original one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.gemma2.modeling_gemma2 import Gemma2RotaryEmbedding
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.mistral.modeling_mistral import MistralRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding, apply_rotary_pos_emb
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from isoform.errors import CheckpointError, IsoformError, UnsupportedModel
from isoform.reference.families import load_family
from isoform.reference.modules import ops
from isoform.reference.modules.rotary import Rope
from isoform.reference.rope import RopeConfig, read_rope

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 16,
}
LONG = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.0, 4.5]}
KINDS: dict[str, dict[str, Any]] = {
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 500.0}},
    "dynamic, old": {"rope_scaling": {"type": "dynamic", "factor": 2.5}, "rope_theta": 500.0},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}},
    "longrope": {
        "rope_parameters": {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 12, **LONG}
    },
    "longrope, ratio of the lengths": {
        "rope_scaling": {"type": "longrope", "factor": None, **LONG},
        "original_max_position_embeddings": 10,
    },
    "longrope, attention factor": {"rope_parameters": {"rope_type": "longrope", "attention_factor": 1.2, **LONG}},
    "yarn": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 12}},
    "yarn, old": {"rope_scaling": {"type": "yarn", "factor": 4.0}, "rope_theta": 500.0},
    "yarn, every key": {
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 12,
            "rope_theta": 500.0,
            "beta_fast": 4,
            "beta_slow": 0.5,
            "mscale": 0.8,
            "mscale_all_dim": 0.6,
            "truncate": False,
        }
    },
    "yarn, attention factor": {
        "rope_parameters": {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.3, "rope_theta": 500.0}
    },
    "yarn, ratio of the lengths": {
        "rope_parameters": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 4}
    },
    "two spellings": {
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "linear", "factor": 4.0},
        "rope_theta": 300.0,
    },
    "plain, partial": {"partial_rotary_factor": 0.5},
}
HUB = {
    "gemma2": Gemma2RotaryEmbedding,
    "llama": LlamaRotaryEmbedding,
    "mistral": MistralRotaryEmbedding,
    "qwen2": Qwen2RotaryEmbedding,
    "qwen3": Qwen3RotaryEmbedding,
}


def rotary(model_type: str, settings: Mapping[str, Any], name: str = "rope") -> Rope:
    """The module that isoform's decoder has for a file with these settings."""
    card = load_family(model_type)
    config = card.config.from_dict({"model_type": model_type, **SIZES, **settings})
    module: Any = card.parts["decoder"].build(config)
    found: Rope = module.ropes[name]
    return found


def close(ours: tuple[torch.Tensor, ...], theirs: tuple[torch.Tensor, ...]) -> None:
    """Theirs repeat the angles for both halves of a head."""
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other[..., : one.shape[-1]], rtol=0, atol=2e-6)


@pytest.mark.parametrize("model_type", HUB)
@pytest.mark.parametrize("name", KINDS)
def test_angles_are_those_of_transformers(model_type: str, name: str) -> None:
    """Within one text, which only grows: transformers remembers the longest call for the kind "dynamic"."""
    settings = KINDS[name]
    theirs = HUB[model_type](CONFIG_MAPPING[model_type](**SIZES, **json.loads(json.dumps(settings))))
    ours = rotary(model_type, settings)
    for start, stop in ((0, 9), (9, 16), (16, 17), (17, 18), (18, 70)):
        positions = torch.arange(start, stop).expand(2, -1).clone()
        positions[1] -= min(start, 3)  # a row with padding
        x = torch.zeros(1)
        close(ours(positions, torch.float32), theirs(x, positions))
    if "plain" not in name:
        plain = rotary(model_type, {"rope_theta": settings.get("rope_theta", 1e4)})
        assert any(
            not torch.equal(a, b) for a, b in zip(ours(positions, x.dtype), plain(positions, x.dtype), strict=True)
        )


@pytest.mark.parametrize("name", [name for name in KINDS if "rope_parameters" in KINDS[name] and "two" not in name])
def test_each_kind_of_layer_has_its_own_scaling(name: str) -> None:
    """Gemma 3: the windowed layers are scaled by their own settings, and `truncate` of one kind is passed over."""
    local = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 100.0, "original_max_position_embeddings": 12}
    settings = {"rope_parameters": {"full_attention": KINDS[name]["rope_parameters"], "sliding_attention": local}}
    sizes = {**SIZES, "num_hidden_layers": 6}
    theirs = Gemma3RotaryEmbedding(CONFIG_MAPPING["gemma3_text"](**sizes, **json.loads(json.dumps(settings))))
    for ours, kind in (("rope", "full_attention"), ("local_rope", "sliding_attention")):
        for length in (9, 16, 17, 40):
            positions = torch.arange(length)[None]
            found = rotary("gemma3_text", {**settings, "num_hidden_layers": 6}, ours)(positions, torch.float32)
            close(found, theirs(torch.zeros(1), positions, kind))


def test_an_old_file_of_gemma3_scales_the_layers_that_see_all() -> None:
    settings = {
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "rope_local_base_freq": 50.0,
        "rope_theta": 900.0,
    }
    config: Any = load_family("gemma3_text").config.from_dict({**SIZES, **settings})
    assert (config.rope.kind, config.rope.theta) == ("linear", 900.0)
    assert (config.local_rope.kind, config.local_rope.theta) == ("default", 50.0)
    for scaling in ({"type": "linear", "factor": 8.0}, {"rope_type": "linear", "factor": 8.0}):
        theirs = CONFIG_MAPPING["gemma3_text"](**SIZES, rope_scaling=dict(scaling)).rope_parameters["full_attention"]
        if "rope_type" in scaling:
            assert theirs["rope_type"] == "linear"
            continue
        assert theirs["rope_type"] == "default", "transformers passes over it"
        with pytest.raises(UnsupportedModel, match="call it 'rope_type'"):
            load_family("gemma3_text").config.from_dict({**SIZES, "rope_scaling": scaling})


def test_the_length_is_that_of_the_longest_row() -> None:
    layer = Rope(8, RopeConfig(kind="dynamic", factor=2.0, original_max_position_embeddings=8))
    alone, _ = layer(torch.arange(4)[None], torch.float64)
    beside, _ = layer(torch.stack((torch.arange(4), torch.arange(20, 24))), torch.float64)
    assert not torch.equal(alone[0], beside[0])
    assert torch.equal(beside[0], layer(torch.tensor([[0, 1, 2, 3, 23]]), torch.float64)[0][0, :4])


def test_a_part_of_each_head_is_rotated_as_phi3_does_it() -> None:
    settings = {**SIZES, "hidden_size": 64, "partial_rotary_factor": 0.5, "pad_token_id": 0}
    del settings["head_dim"]
    config = CONFIG_MAPPING["phi3"](**settings)
    positions, x = torch.arange(30)[None], torch.randn(1, 30, 4 * 16)
    cos, sin = Phi3RotaryEmbedding(config)(x, positions)
    heads = x.unflatten(-1, (4, 16)).transpose(1, 2)
    wanted, _ = apply_rotary_pos_emb(heads, heads, cos, sin)
    rope = read_rope(settings, partial=1.0)
    assert rope.partial == 0.5
    cos, sin = Rope(8, rope)(positions, x.dtype)
    turned = ops.rotary(x, cos, sin, 4)
    torch.testing.assert_close(turned, wanted.transpose(1, 2).flatten(-2))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"rope_scaling": {"type": "su"}}, UnsupportedModel, "rotary scaling 'su' is not supported"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, UnsupportedModel, r"\['yarn'\] is not supported"),
        ({"rope_scaling": {"type": "yarn"}}, CheckpointError, "has no 'factor', which the rotary scaling 'yarn' needs"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, CheckpointError, "has no 'long_factor'"),
        ({"rope_scaling": {"type": "dynamic", "factor": -1}}, CheckpointError, "make no sense"),
        ({"rope_scaling": {"type": "yarn", "factor": "four"}}, CheckpointError, "malformed rotary settings"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "beta_fast": [1]}}, CheckpointError, "malformed rotary"),
        ({"rope_scaling": {"type": "yarn", "factor": 2}, "rope_theta": 1}, CheckpointError, "make no sense"),
        ({"rope_scaling": {"type": "longrope", "short_factor": 3, "long_factor": 3}}, CheckpointError, "malformed"),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
            CheckpointError,
            "short_factor of the rotary settings has 1 entries for 4 rotary pairs",
        ),
        ({"rope_scaling": {"factor": 2, "swirl": 3}}, UnsupportedModel, r"rope_scaling\.swirl is 3: .* not known"),
        ({"rope_parameters": {"mrope_section": [1, 1]}}, UnsupportedModel, r"rope_parameters\.mrope_section is"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "partial_rotary_factor": 0.5},
            UnsupportedModel,
            r"partial rotary embedding \(0.5 of each head\) with scaling 'linear'",
        ),
        ({"partial_rotary_factor": 1.5}, CheckpointError, "partial_rotary_factor is 1.5, which is no share"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, UnsupportedModel, "full_attention is"),
    ],
)
def test_settings_that_make_no_rotation_are_refused(
    settings: Mapping[str, Any], error: type[IsoformError], message: str
) -> None:
    with pytest.raises(error, match=message):
        rotary("llama", settings)


def test_gemma3_wants_settings_for_each_kind_of_layer() -> None:
    with pytest.raises(CheckpointError, match="for each kind of layer"):
        rotary("gemma3_text", {"rope_parameters": {"rope_type": "linear", "factor": 8.0}})
