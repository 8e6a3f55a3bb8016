"""Granite: Llama with four multipliers, on the embeddings, the scores, what every layer adds, and the logits.

IBM 2024, https://github.com/ibm-granite/granite-3.0-language-models; the multipliers follow maximal update
parametrization, https://arxiv.org/abs/2203.03466.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

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
)
from isoform.reference.text.decoder_config import DecoderConfig

MULTIPLIERS = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}
"""config.json's names -> llama.cpp's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraniteConfig(DecoderConfig):
    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    embedding_multiplier: float = 1.0
    logits_scaling: float = 1.0
    residual_multiplier: float = 1.0
    attention_multiplier: float = 1.0
    rope: RopeConfig = field(default_factory=RopeConfig)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return super(GraniteConfig, cls).from_dict({**data, "rope": read_rope(data)})


def plan(c: GraniteConfig) -> DecoderPlan:
    return plain_decoder(
        c,
        qkv_bias=c.attention_bias,
        out_bias=c.attention_bias,
        mlp_bias=c.mlp_bias,
        embed_scale=c.embedding_multiplier,
        score_scale=c.attention_multiplier,
        residual_scale=c.residual_multiplier,
        logit_divisor=c.logits_scaling,
    )


def gguf_fields(c: GraniteConfig) -> dict[str, Any]:
    fields = decoder_fields(c)
    for name in ("attention.key_length", "attention.value_length"):
        fields.pop(name, None)
    return {
        **fields,
        "vocab_size": c.vocab_size,
        "rope.dimension_count": c.head_size,
        **{name: getattr(c, key) for key, name in MULTIPLIERS.items()},
    }


def from_gguf(fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    config = decoder_config("GraniteForCausalLM", "granite", fields, shapes)
    bias = {"attention_bias": "blk.0.attn_output.bias", "mlp_bias": "blk.0.ffn_down.bias"}
    config |= {key: tensor in shapes for key, tensor in bias.items()}
    return config | {key: fields[name] for key, name in MULTIPLIERS.items()}


def refuse(c: GraniteConfig) -> str:
    if c.head_size * c.num_attention_heads != c.hidden_size:
        return (
            f"llama.cpp wants hidden_size = heads x head_dim for this architecture, and the model has {c.hidden_size} "
            f"and {c.num_attention_heads} x {c.head_size}"
        )
    return decoder_refusal(c)


FAMILY = Family(
    name="granite",
    title="Granite 3",
    model_types=("granite",),
    config=GraniteConfig,
    rules=(*TRUNK, *NORMS),
    tasks=causal_tasks(plan, ("GraniteForCausalLM",), ("GraniteModel",)),
    parts=causal_parts(plan),
    prefix="model",
    heads=HEADS,
    tied=tied_head,
    gguf=Gguf(
        arch="granite",
        fields=gguf_fields,
        config=from_gguf,
        interleaved_rope=True,
        refuse=refuse,
        tasks=("text-generation",),
    ),
)
