"""Gemma 2: four norms per layer, soft-capped scores and logits, a window on every other layer.

Gemma Team 2024, https://arxiv.org/abs/2408.00118. The stored norms are one less than what multiplies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from isoform.reference.card import Family, Gguf
from isoform.reference.config import RopeConfig, read_rope
from isoform.reference.modules.decoder_plan import DecoderPlan, Kind
from isoform.reference.rules import Rule
from isoform.reference.text.causal import (
    HEADS,
    TRUNK,
    causal_parts,
    causal_tasks,
    decoder_config,
    decoder_fields,
    layer_types,
    tied_head,
    with_head,
)
from isoform.reference.text.decoder_config import DecoderConfig
from isoform.reference.text.sandwich import (
    SANDWICH,
    sandwich_decoder,
    sandwich_refusal,
    score_divisor,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemma2Config(DecoderConfig):
    harmless = frozenset(("hidden_act",))  # an old name, which the Hub's code does not read

    vocab_size: int = 256000
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    query_pre_attn_scalar: float = 256
    sliding_window: int = 4096
    layer_types: tuple[str, ...] = ()
    final_logit_softcapping: float | None = 30.0
    attn_logit_softcapping: float | None = 50.0
    tie_word_embeddings: bool = True
    num_labels: int = 2
    pad_token_id: int | None = 0
    rope: RopeConfig = field(default_factory=RopeConfig)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return super(Gemma2Config, cls).from_dict({**with_head(data), "rope": read_rope(data, context=8192)})


def plan(c: Gemma2Config) -> DecoderPlan:
    kinds = {"full_attention": Kind(), "sliding_attention": Kind(window=c.sliding_window)}
    return sandwich_decoder(c, [kinds[kind] for kind in layer_types(c, lambda n: n % 2 == 0)], {"rope": c.rope})


RULES: tuple[Rule, ...] = (*TRUNK, *SANDWICH)


def gguf_fields(c: Gemma2Config) -> dict[str, Any]:
    fields = decoder_fields(c)
    if c.rope.theta == 10000:  # llama.cpp's default, which its converter leaves out
        del fields["rope.freq_base"]
    return {
        **fields,
        "attn_logit_softcapping": c.attn_logit_softcapping,
        "final_logit_softcapping": c.final_logit_softcapping,
        "attention.sliding_window": c.sliding_window,
    }


def from_gguf(fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    config = decoder_config("Gemma2ForCausalLM", "gemma2", fields, shapes)
    return {
        **config,
        "query_pre_attn_scalar": score_divisor(Gemma2Config.from_dict(config), 46),
        "sliding_window": fields.get("attention.sliding_window", 4096),
        "attn_logit_softcapping": fields.get("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": fields.get("final_logit_softcapping", 30.0),
    }


def refuse(c: Gemma2Config) -> str:
    if not c.attn_logit_softcapping or not c.final_logit_softcapping:
        return "llama.cpp always caps the scores and logits of this architecture, and the model leaves a cap out"
    if not c.tie_word_embeddings:
        return "llama.cpp has no separate head for this architecture (tie_word_embeddings is false)"
    if layer_types(c, lambda n: n % 2 == 0) != layer_types(replace(c, layer_types=()), lambda n: n % 2 == 0):
        return "llama.cpp has a window on every other layer of this architecture, starting with the first"
    return sandwich_refusal(c, 46)


FAMILY = Family(
    name="gemma2",
    title="Gemma 2",
    model_types=("gemma2",),
    config=Gemma2Config,
    rules=RULES,
    tasks=causal_tasks(
        plan,
        ("Gemma2ForCausalLM",),
        ("Gemma2Model",),
        sequence=("Gemma2ForSequenceClassification",),
        token=("Gemma2ForTokenClassification",),
    ),
    parts=causal_parts(plan),
    prefix="model",
    heads=HEADS,
    tied=tied_head,
    gguf=Gguf(arch="gemma2", fields=gguf_fields, config=from_gguf, refuse=refuse, tasks=("text-generation",)),
)
