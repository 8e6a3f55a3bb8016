"""Gemma: Llama's layer with a GELU gate, heads of 256 channels, scaled embeddings and a tied head.

Gemma Team 2024, https://arxiv.org/abs/2403.08295. The stored norms are one less than what multiplies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from isoform.reference.card import Family, Gguf
from isoform.reference.config import RopeConfig, read_rope
from isoform.reference.modules.decoder_plan import DecoderPlan
from isoform.reference.rules import Fold, Rule
from isoform.reference.text.causal import (
    HEADS,
    TRUNK,
    causal_parts,
    causal_tasks,
    decoder_config,
    decoder_fields,
    plain_decoder,
    tied_head,
    with_head,
)
from isoform.reference.text.decoder_config import DecoderConfig
from isoform.reference.text.rope_scaling import rope_refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmaConfig(DecoderConfig):
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "hidden_activation": (None, "gelu_pytorch_tanh"),  # what an older reader preferred to hidden_act
    }

    vocab_size: int = 256000
    hidden_size: int = 3072
    intermediate_size: int = 24576
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    head_dim: int = 256
    hidden_act: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    tie_word_embeddings: bool = True
    num_labels: int = 2
    pad_token_id: int | None = 0
    rope: RopeConfig = field(default_factory=RopeConfig)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        found = {**with_head(data), "rope": read_rope(data, context=8192)}
        if found.get("hidden_act") == "gelu":  # the first releases say so and mean the approximation
            found["hidden_act"] = "gelu_pytorch_tanh"
        return super(GemmaConfig, cls).from_dict(found)


def plan(c: GemmaConfig) -> DecoderPlan:
    return plain_decoder(c, qkv_bias=c.attention_bias, out_bias=c.attention_bias, embed_scale=c.hidden_size**0.5)


RULES: tuple[Rule, ...] = (
    *TRUNK,
    Fold("model.layers.*.input_layernorm", "layers.*.attn_norm", 1.0),
    Fold("model.layers.*.post_attention_layernorm", "layers.*.mlp_norm", 1.0),
    Fold("model.norm", "norm", 1.0),
)


def gguf_fields(c: GemmaConfig) -> dict[str, Any]:
    fields = decoder_fields(c)
    if c.rope.theta == 10000:  # llama.cpp's default, which its converter leaves out
        del fields["rope.freq_base"]
    return fields


def refuse(c: GemmaConfig) -> str:
    if not c.tie_word_embeddings:
        return "llama.cpp has no separate head for this architecture (tie_word_embeddings is false)"
    if c.hidden_act not in ("gelu_pytorch_tanh", "gelu_new"):
        return f"llama.cpp has only the activation gelu_pytorch_tanh for this architecture, not {c.hidden_act}"
    if c.attention_bias:
        return "llama.cpp has no bias on the attention's output for this architecture (attention_bias is true)"
    return rope_refusal(c.rope)


FAMILY = Family(
    name="gemma",
    title="Gemma",
    model_types=("gemma",),
    config=GemmaConfig,
    rules=RULES,
    tasks=causal_tasks(
        plan,
        ("GemmaForCausalLM",),
        ("GemmaModel",),
        sequence=("GemmaForSequenceClassification",),
        token=("GemmaForTokenClassification",),
    ),
    parts=causal_parts(plan),
    prefix="model",
    heads=HEADS,
    tied=tied_head,
    gguf=Gguf(
        arch="gemma",
        fields=gguf_fields,
        config=lambda fields, shapes: decoder_config("GemmaForCausalLM", "gemma", fields, shapes),
        refuse=refuse,
        tasks=("text-generation",),
    ),
)
