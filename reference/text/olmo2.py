"""OLMo 2: norms after attention and MLP instead of before them, and on all of q and of k.

OLMo Team 2024, https://arxiv.org/abs/2501.00656.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from isoform.reference.card import Family, Gguf
from isoform.reference.config import RopeConfig, read_rope
from isoform.reference.modules.decoder_plan import DecoderPlan
from isoform.reference.rules import Rename, Rule
from isoform.reference.text.causal import (
    HEAD_NORMS,
    HEADS,
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
class Olmo2Config(DecoderConfig):
    vocab_size: int = 50304
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    num_labels: int = 2
    pad_token_id: int | None = 1
    rope: RopeConfig = field(default_factory=RopeConfig)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return super(Olmo2Config, cls).from_dict({**with_head(data), "rope": read_rope(data)})


def plan(c: Olmo2Config) -> DecoderPlan:
    return plain_decoder(
        c,
        qkv_bias=c.attention_bias,
        out_bias=c.attention_bias,
        pre_norms=False,
        post_norms=True,
        whole_norms=True,
    )


RULES: tuple[Rule, ...] = (
    *TRUNK,
    *HEAD_NORMS,
    Rename("model.layers.*.post_attention_layernorm", "layers.*.attn_post_norm"),
    Rename("model.layers.*.post_feedforward_layernorm", "layers.*.mlp_post_norm"),
    Rename("model.norm", "norm"),
)


def refuse(c: Olmo2Config) -> str:
    if c.tie_word_embeddings:
        return "llama.cpp wants a separate head for this architecture (tie_word_embeddings is true)"
    if c.attention_bias:
        return "llama.cpp has no bias in the attention of this architecture (attention_bias is true)"
    if c.head_size * c.num_attention_heads != c.hidden_size:
        return (
            f"llama.cpp wants hidden_size = heads x head_dim for this architecture, and the model has {c.hidden_size} "
            f"and {c.num_attention_heads} x {c.head_size}"
        )
    return decoder_refusal(c)


FAMILY = Family(
    name="olmo2",
    title="OLMo 2",
    model_types=("olmo2",),
    config=Olmo2Config,
    rules=RULES,
    tasks=causal_tasks(plan, ("Olmo2ForCausalLM",), ("Olmo2Model",), sequence=("Olmo2ForSequenceClassification",)),
    parts=causal_parts(plan),
    prefix="model",
    heads=HEADS,
    tied=tied_head,
    gguf=Gguf(
        arch="olmo2",
        fields=decoder_fields,
        config=lambda fields, shapes: decoder_config("Olmo2ForCausalLM", "olmo2", fields, shapes),
        refuse=refuse,
        tasks=("text-generation",),
    ),
)
