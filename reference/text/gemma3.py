"""Gemma 3 (text): five windowed layers to one that sees all, each kind with its own rotary base; q and k normed.

Gemma Team 2025, https://arxiv.org/abs/2503.19786. The stored norms are one less than what multiplies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from isoform.errors import UnsupportedModel
from isoform.reference.card import Family, Gguf
from isoform.reference.config import RopeConfig, read_rope
from isoform.reference.modules.decoder_plan import DecoderPlan, Kind
from isoform.reference.rules import Fold, Rule
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
from isoform.reference.text.rope_scaling import MORE, rope_scaling_fields
from isoform.reference.text.sandwich import (
    SANDWICH,
    sandwich_decoder,
    sandwich_refusal,
    score_divisor,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemma3Config(DecoderConfig):
    reads = frozenset(("rope_local_base_freq",))
    harmless = frozenset(("_sliding_window_pattern", "hidden_act"))  # layer_types says the pattern

    vocab_size: int = 262208
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    query_pre_attn_scalar: float = 256
    sliding_window: int = 4096
    sliding_window_pattern: int = 6
    layer_types: tuple[str, ...] = ()
    final_logit_softcapping: float | None = None
    attn_logit_softcapping: float | None = None
    use_bidirectional_attention: bool = False
    tie_word_embeddings: bool = True
    num_labels: int = 2
    pad_token_id: int | None = 0
    rope: RopeConfig = field(default_factory=lambda: RopeConfig(theta=1e6))
    local_rope: RopeConfig = field(default_factory=RopeConfig)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        rope = read_rope(data, "full_attention", theta=1e6, context=131072)
        windowed = {**data, "rope_theta": data.get("rope_local_base_freq"), "rope_scaling": None}
        local = read_rope(windowed, "sliding_attention", context=131072)
        return super(Gemma3Config, cls).from_dict({**with_head(data), "rope": rope, "local_rope": local})


def plan(c: Gemma3Config) -> DecoderPlan:
    if c.use_bidirectional_attention:
        raise UnsupportedModel("Gemma 3 with use_bidirectional_attention gives vectors of texts, and no next tokens")
    kinds = kinds_of(c, Kind("rope"), Kind("local_rope", c.sliding_window))
    return sandwich_decoder(c, kinds, {"rope": c.rope, "local_rope": c.local_rope}, head_norms=True)


def kinds_of(c: Gemma3Config, full: Kind, sliding: Kind) -> list[Kind]:
    """The kind of each layer, of these two."""
    kinds = {"full_attention": full, "sliding_attention": sliding}
    return [kinds[kind] for kind in layer_types(c, lambda n: (n + 1) % c.sliding_window_pattern != 0)]


RULES: tuple[Rule, ...] = (
    *TRUNK,
    *SANDWICH,
    Fold("model.layers.*.self_attn.q_norm", "layers.*.attn.q_norm", 1.0),
    Fold("model.layers.*.self_attn.k_norm", "layers.*.attn.k_norm", 1.0),
)


def gguf_fields(c: Gemma3Config) -> dict[str, Any]:
    fields = {
        **decoder_fields(c),
        "attention.sliding_window": c.sliding_window,
        "rope.freq_base_swa": c.local_rope.theta,
    }
    if c.final_logit_softcapping:
        fields["final_logit_softcapping"] = c.final_logit_softcapping
    if (every := period(c)) != 6:
        fields["attention.sliding_window_pattern"] = every
    return fields


def period(c: Gemma3Config) -> int:
    """Every how many layers one sees all; 0 when the layers follow no such rule."""

    def types(every: int) -> tuple[str, ...]:
        return layer_types(replace(c, layer_types=()), lambda n: (n + 1) % every != 0)

    wanted = layer_types(c, lambda n: (n + 1) % c.sliding_window_pattern != 0)
    return next((every for every in (6, *range(1, len(wanted) + 2)) if types(every) == wanted), 0)


def from_gguf(fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    config = decoder_config("Gemma3ForCausalLM", "gemma3_text", fields, shapes)
    return {
        **config,
        "query_pre_attn_scalar": score_divisor(Gemma3Config.from_dict(config), 62),
        "sliding_window": fields["attention.sliding_window"],
        "rope_local_base_freq": fields.get("rope.freq_base_swa", 10000.0),
        "sliding_window_pattern": fields.get("attention.sliding_window_pattern", 6),
        "final_logit_softcapping": fields.get("final_logit_softcapping"),
    }


def window_refusal(c: Gemma3Config) -> str:
    """Why llama.cpp would compute another attention, whichever side its tokens see."""
    if c.attn_logit_softcapping:
        return "llama.cpp does not cap the scores of this architecture (attn_logit_softcapping is set)"
    if c.local_rope.kind != "default":
        return "llama.cpp does not scale the rotary positions of this architecture's windowed layers"
    if MORE in rope_scaling_fields(c.rope):
        return "llama.cpp would multiply the angles of the windowed layers by YaRN's attention factor as well"
    return ""


def refuse(c: Gemma3Config) -> str:
    if reason := window_refusal(c):
        return reason
    if not period(c):
        return "llama.cpp wants windowed layers in a regular pattern (layer_types follows none)"
    return sandwich_refusal(c, 62)


FAMILY = Family(
    name="gemma3",
    title="Gemma 3 (text)",
    model_types=("gemma3_text",),
    config=Gemma3Config,
    rules=RULES,
    tasks=causal_tasks(
        plan,
        ("Gemma3ForCausalLM",),
        ("Gemma3TextModel",),
        sequence=("Gemma3TextForSequenceClassification",),
    ),
    parts=causal_parts(plan),
    prefix="model",
    heads=HEADS,
    tied=tied_head,
    gguf=Gguf(arch="gemma3", fields=gguf_fields, config=from_gguf, refuse=refuse, tasks=("text-generation",)),
)
