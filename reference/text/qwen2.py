"""Qwen2 and Qwen2.5: Llama's shape with biases on q, k and v, and a window on the upper layers when asked for.

Yang et al. 2024, https://arxiv.org/abs/2407.10671.
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
    upper_windows,
    with_head,
)
from isoform.reference.text.decoder_config import DecoderConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen2Config(DecoderConfig):
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = 32
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
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
        return super(Qwen2Config, cls).from_dict({**with_head(data), "rope": read_rope(data, context=32768)})


def plan(c: Qwen2Config) -> DecoderPlan:
    return plain_decoder(c, qkv_bias=True, windows=upper_windows(c))


def refuse(c: Qwen2Config) -> str:
    if c.head_size * c.num_attention_heads != c.hidden_size:
        return (
            f"llama.cpp wants hidden_size = heads x head_dim for this architecture, and the model has {c.hidden_size} "
            f"and {c.num_attention_heads} x {c.head_size}"
        )
    return decoder_refusal(c, upper_windows(c))


FAMILY = Family(
    name="qwen2",
    title="Qwen2, Qwen2.5",
    model_types=("qwen2",),
    config=Qwen2Config,
    rules=(*TRUNK, *NORMS),
    tasks=causal_tasks(
        plan,
        ("Qwen2ForCausalLM",),
        ("Qwen2Model",),
        sequence=("Qwen2ForSequenceClassification",),
        token=("Qwen2ForTokenClassification",),
        span=("Qwen2ForQuestionAnswering",),
    ),
    parts=causal_parts(plan),
    prefix="model",
    other_prefix="transformer",
    heads=HEADS,
    tied=tied_head,
    gguf=Gguf(
        arch="qwen2",
        fields=decoder_fields,
        config=lambda fields, shapes: decoder_config("Qwen2ForCausalLM", "qwen2", fields, shapes),
        refuse=refuse,
        large=lambda c: c.num_hidden_layers == 80,
        tasks=("text-generation",),
    ),
)
