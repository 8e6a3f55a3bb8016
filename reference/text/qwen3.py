"""Qwen3: Qwen2 without the biases, with a norm on every head of q and k.

Qwen Team 2025, https://arxiv.org/abs/2505.09388.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from isoform.reference.card import Family, Gguf
from isoform.reference.config import RopeConfig, read_rope
from isoform.reference.modules.decoder_plan import DecoderPlan
from isoform.reference.text.causal import (
    HEAD_NORMS,
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
    upper_windows,
    with_head,
)
from isoform.reference.text.decoder_config import DecoderConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen3Config(DecoderConfig):
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = 32
    head_dim: int = 128
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    layer_types: tuple[str, ...] = ()
    tie_word_embeddings: bool = False
    num_labels: int = 2
    pad_token_id: int | None = None
    rope: RopeConfig = field(default_factory=RopeConfig)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return super(Qwen3Config, cls).from_dict({**with_head(data), "rope": read_rope(data, context=32768)})


def plan(c: Qwen3Config) -> DecoderPlan:
    return plain_decoder(
        c,
        qkv_bias=c.attention_bias,
        out_bias=c.attention_bias,
        head_norms=True,
        windows=upper_windows(c),
    )


def refuse(c: Qwen3Config) -> str:
    if c.attention_bias:
        return "llama.cpp has no bias on the attention's output for this architecture (attention_bias is true)"
    return decoder_refusal(c, upper_windows(c))


FAMILY = Family(
    name="qwen3",
    title="Qwen3",
    model_types=("qwen3",),
    config=Qwen3Config,
    rules=(*TRUNK, *NORMS, *HEAD_NORMS),
    tasks=causal_tasks(
        plan,
        ("Qwen3ForCausalLM",),
        ("Qwen3Model",),
        sequence=("Qwen3ForSequenceClassification",),
        token=("Qwen3ForTokenClassification",),
        span=("Qwen3ForQuestionAnswering",),
    ),
    parts=causal_parts(plan),
    prefix="model",
    other_prefix="transformer",
    heads=HEADS,
    tied=tied_head,
    gguf=Gguf(
        arch="qwen3",
        fields=decoder_fields,
        config=lambda fields, shapes: decoder_config("Qwen3ForCausalLM", "qwen3", fields, shapes),
        refuse=refuse,
        tasks=("text-generation",),
    ),
)
