"""Llama: pre-norm decoder with rotary positions, grouped-query attention and a gated MLP.

Touvron et al. 2023, https://arxiv.org/abs/2302.13971; Llama 3, https://arxiv.org/abs/2407.21783. Also serves Mistral
(sliding window, https://arxiv.org/abs/2310.06825).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from isoform.errors import UnsupportedModel
from isoform.reference.card import Family, Gguf
from isoform.reference.config import RopeConfig, read_rope
from isoform.reference.modules.decoder_plan import DecoderPlan
from isoform.reference.text.causal import (
    HEADS,
    NORMS,
    TRUNK,
    causal_parts,
    causal_tasks,
    decoder_config,
    decoder_fields,
    decoder_refusal,
    plain_decoder,
    tied_head,
    with_head,
)
from isoform.reference.text.decoder_config import DecoderConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig(DecoderConfig):
    model_type: str = "llama"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None
    tie_word_embeddings: bool = False
    num_labels: int = 2
    pad_token_id: int | None = None
    rope: RopeConfig = field(default_factory=RopeConfig)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        window = data.get("sliding_window") if data.get("model_type") == "mistral" else None
        return super(LlamaConfig, cls).from_dict({**with_head(data), "rope": read_rope(data), "sliding_window": window})


def plan(c: LlamaConfig) -> DecoderPlan:
    return plain_decoder(
        c,
        qkv_bias=c.attention_bias,
        out_bias=c.attention_bias,
        mlp_bias=c.mlp_bias,
        windows=[c.sliding_window] * c.num_hidden_layers,
    )


def gguf_fields(c: LlamaConfig) -> dict[str, Any]:
    return {
        **decoder_fields(c),
        "attention.key_length": c.head_size,
        "attention.value_length": c.head_size,
        "vocab_size": c.vocab_size,
        "rope.dimension_count": c.head_size,
    }


def rope_factors(c: LlamaConfig) -> dict[str, Sequence[float]]:
    """Llama 3's slowing of each frequency, which llama.cpp reads as a tensor."""
    if c.rope.kind != "llama3":
        return {}
    from isoform.reference.modules.rotary import inverse_frequencies, llama3_factors

    plain = inverse_frequencies(c.head_size, RopeConfig(theta=c.rope.theta))
    return {"rope_freqs.weight": llama3_factors(plain, c.rope).tolist()}


def from_gguf(fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    config = decoder_config("LlamaForCausalLM", "llama", fields, shapes)
    bias = {"attention_bias": "blk.0.attn_output.bias", "mlp_bias": "blk.0.ffn_down.bias"}
    config |= {key: tensor in shapes for key, tensor in bias.items()}
    if (factors := fields.get("rope_freqs.weight")) is not None:
        head_dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
        config["rope_scaling"] = _llama3_settings(factors, head_dim, config["rope_theta"])
    return config


def _llama3_settings(factors: Sequence[float], head_dim: int, theta: float) -> dict[str, Any]:
    """The settings that give these factors: a GGUF holds no others.

    Only original_max_position_embeddings over each of the two bounds counts, so low_freq_factor may be taken as 1. On
    the slope between the bounds 1/factor grows in a straight line with the frequency; that gives the two unknowns. With
    fewer than two factors on the slope, several settings are right and Llama's own high_freq_factor is tried.
    """
    import torch

    from isoform.reference.modules.rotary import inverse_frequencies, llama3_factors

    frequencies = inverse_frequencies(head_dim, RopeConfig(theta=theta))
    wanted, factor = torch.tensor(factors), max(factors)
    slope = [
        (frequency / (2 * math.pi), (1 / each - 1 / factor) / (1 - 1 / factor))
        for each, frequency in zip(factors, frequencies.tolist(), strict=False)
        if 1 < each < factor
    ]
    tries = [(length, 4.0) for length in (8192, *(2**n for n in range(4, 21)))]
    if len(slope) > 1:  # smooth = (length * x - 1) / (high - 1) is a line through two points
        (x1, y1), (x2, y2) = slope[0], slope[-1]
        steep = (y1 - y2) / (x1 - x2)
        rise = 1 / (steep * x1 - y1)
        tries.append((round(steep * rise), round(1 + rise, 4)))
    tries += [(round((1 + 3 * y) / x), 4.0) for x, y in slope]
    for length, high in tries:
        rope = RopeConfig(
            theta=theta,
            kind="llama3",
            factor=factor,
            low_freq_factor=1.0,
            high_freq_factor=high,
            original_max_position_embeddings=length,
        )
        found = llama3_factors(frequencies, rope)
        if found.shape == wanted.shape and torch.allclose(found, wanted, rtol=1e-5, atol=0):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": high,
                "original_max_position_embeddings": length,
            }
    raise UnsupportedModel("rope_freqs.weight holds other factors than Llama 3's rotary scaling gives")


FAMILY = Family(
    name="llama",
    title="Llama 2, Llama 3, Mistral",
    model_types=("llama", "mistral"),
    config=LlamaConfig,
    rules=(*TRUNK, *NORMS),
    tasks=causal_tasks(
        plan,
        ("LlamaForCausalLM", "MistralForCausalLM"),
        ("LlamaModel", "MistralModel"),
        sequence=("LlamaForSequenceClassification", "MistralForSequenceClassification"),
        token=("LlamaForTokenClassification", "MistralForTokenClassification"),
        span=("LlamaForQuestionAnswering", "MistralForQuestionAnswering"),
    ),
    parts=causal_parts(plan),
    prefix="model",
    other_prefix="transformer",
    heads=HEADS,
    tied=tied_head,
    gguf=Gguf(
        arch="llama",
        fields=gguf_fields,
        config=from_gguf,
        interleaved_rope=True,
        extra=rope_factors,
        refuse=lambda c: decoder_refusal(c, [c.sliding_window], llama3=True),
        large=lambda c: c.num_hidden_layers == 80 and c.kv_heads != c.num_attention_heads,
        tasks=("text-generation",),
    ),
)
