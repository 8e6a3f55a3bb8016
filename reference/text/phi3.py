"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: Llama whose q, k and v are one matrix, and so are gate and up.

Abdin et al. 2024, https://arxiv.org/abs/2404.14219; Phi-4, https://arxiv.org/abs/2412.08905. Models for long texts
scale their positions by LongRoPE; Phi-4-mini rotates three quarters of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from isoform.errors import UnsupportedModel
from isoform.reference.card import Family, Gguf
from isoform.reference.config import RopeConfig, read_rope
from isoform.reference.modules.decoder_plan import DecoderPlan
from isoform.reference.rules import Rename, Rule
from isoform.reference.text.causal import (
    HEADS,
    NORMS,
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
class Phi3Config(DecoderConfig):
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "attention_bias": (False, None),
        "full_attn_mod": (1, None),
        "interpolate_factor": (1, None),
        "lm_head_bias": (False, None),
        "mlp_bias": (False, None),
    }

    vocab_size: int = 32064
    hidden_size: int = 3072
    intermediate_size: int = 8192
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096
    original_max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    sliding_window: int | None = None
    tie_word_embeddings: bool = False
    num_labels: int = 2
    pad_token_id: int | None = 32000
    rope: RopeConfig = field(default_factory=RopeConfig)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        found = {**with_head(data)}
        original = found.get("original_max_position_embeddings")
        for name in ("rope_scaling", "rope_parameters"):
            if isinstance(settings := found.get(name), Mapping):
                original = original or settings.get("original_max_position_embeddings")
                if (settings.get("rope_type") or settings.get("type")) in ("su", "yarn"):  # LongRoPE's first names
                    found[name] = {**settings, "rope_type": "longrope"}
        found["original_max_position_embeddings"] = original or 4096
        rope = read_rope(found, partial=1.0, context=4096)
        if rope.kind not in ("default", "longrope"):
            raise UnsupportedModel(f"Phi-3 has no rotary scaling {rope.kind!r}, only longrope")
        return super(Phi3Config, cls).from_dict({**found, "rope": rope})


def plan(c: Phi3Config) -> DecoderPlan:
    return plain_decoder(c, windows=[c.sliding_window] * c.num_hidden_layers, merged=True)


RULES: tuple[Rule, ...] = (
    Rename("model.embed_tokens", "embed"),
    Rename("model.layers.*.self_attn.qkv_proj", "layers.*.attn.qkv"),
    Rename("model.layers.*.self_attn.o_proj", "layers.*.attn.out"),
    Rename("model.layers.*.mlp.gate_up_proj", "layers.*.mlp.gate_up"),
    Rename("model.layers.*.mlp.down_proj", "layers.*.mlp.down"),
    *NORMS,
    Rename("lm_head", "head"),
    Rename("score", "classifier"),
)


def facts(c: Phi3Config) -> dict[str, Any]:
    """Beyond the original length every token has other angles, those before too: the Hub's code begins anew there."""
    return {"recompute_beyond": c.rope.original_max_position_embeddings} if c.rope.kind == "longrope" else {}


def gguf_fields(c: Phi3Config) -> dict[str, Any]:
    fields = decoder_fields(c)
    for name in ("attention.key_length", "attention.value_length"):
        fields.pop(name, None)
    return {
        **fields,
        "attention.sliding_window": c.sliding_window or 0,
        "rope.dimension_count": int(c.head_size * c.rope.partial),
        "rope.scaling.original_context_length": c.original_max_position_embeddings,
    }


def from_gguf(fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    config = decoder_config("Phi3ForCausalLM", "phi3", fields, shapes)
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    return {
        **config,
        "sliding_window": fields.get("attention.sliding_window") or None,
        "original_max_position_embeddings": fields["rope.scaling.original_context_length"],
        "partial_rotary_factor": fields.get("rope.dimension_count", head_dim) / head_dim,
    }


def refuse(c: Phi3Config) -> str:
    if c.head_size * c.num_attention_heads != c.hidden_size:
        return (
            f"llama.cpp wants hidden_size = heads x head_dim for this architecture, and the model has {c.hidden_size} "
            f"and {c.num_attention_heads} x {c.head_size}"
        )
    return decoder_refusal(c, [c.sliding_window])


FAMILY = Family(
    name="phi3",
    title="Phi-3, Phi-4",
    model_types=("phi3",),
    config=Phi3Config,
    rules=RULES,
    tasks=causal_tasks(
        plan,
        ("Phi3ForCausalLM",),
        ("Phi3Model",),
        sequence=("Phi3ForSequenceClassification",),
        token=("Phi3ForTokenClassification",),
        facts=facts,
    ),
    parts=causal_parts(plan),
    prefix="model",
    heads=HEADS,
    tied=tied_head,
    gguf=Gguf(
        arch="phi3",
        fields=gguf_fields,
        config=from_gguf,
        refuse=refuse,
        tasks=("text-generation",),
        names={"layers.*.mlp.gate_up": "blk.*.ffn_up"},
    ),
)
