"""Llama: pre-norm decoder with rotary positions, grouped-query attention and a gated MLP.

Touvron et al. 2023, https://arxiv.org/abs/2302.13971; Llama 3, https://arxiv.org/abs/2407.21783. Also serves Mistral
(sliding window, https://arxiv.org/abs/2310.06825).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from torch import nn

from isoform.reference.card import Family, Gguf
from isoform.reference.config import Config, RopeConfig, read_rope
from isoform.reference.layers import inverse_frequencies, llama3_factors
from isoform.reference.text.causal import (
    NORMS,
    TRUNK,
    causal_tasks,
    decoder_config,
    decoder_fields,
    plain_decoder,
    tied_head,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig(Config):
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
    rope: RopeConfig = field(default_factory=RopeConfig)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        window = data.get("sliding_window") if data.get("model_type") == "mistral" else None
        return super(LlamaConfig, cls).from_dict({**data, "rope": read_rope(data), "sliding_window": window})

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads


def build(c: LlamaConfig, head: bool) -> nn.Module:
    return plain_decoder(
        c,
        head,
        qkv_bias=c.attention_bias,
        out_bias=c.attention_bias,
        mlp_bias=c.mlp_bias,
        windows=[c.sliding_window] * c.num_hidden_layers,
    )


def gguf_fields(c: LlamaConfig) -> dict[str, Any]:
    return {**decoder_fields(c), "vocab_size": c.vocab_size, "rope.dimension_count": c.head_size}


def rope_factors(c: LlamaConfig) -> dict[str, Sequence[float]]:
    """Llama 3's slowing of each frequency, which llama.cpp reads as a tensor."""
    if c.rope.kind != "llama3":
        return {}
    plain = inverse_frequencies(c.head_size, RopeConfig(theta=c.rope.theta))
    return {"rope_freqs.weight": llama3_factors(plain, c.rope).tolist()}


FAMILY = Family(
    name="llama",
    title="Llama 2, Llama 3, Mistral",
    model_types=("llama", "mistral"),
    config=LlamaConfig,
    rules=(*TRUNK, *NORMS),
    tasks=causal_tasks(build, ("LlamaForCausalLM", "MistralForCausalLM"), ("LlamaModel", "MistralModel")),
    prefix="model",
    heads=("head",),
    tied=tied_head,
    gguf=Gguf(
        arch="llama",
        fields=gguf_fields,
        config=lambda fields, shapes: decoder_config("LlamaForCausalLM", "llama", fields, shapes),
        interleaved_rope=True,
        extra=rope_factors,
        tasks=("text-generation",),
    ),
)
