"""Mixtral: Mistral whose MLPs are a few large experts, of which every token takes two.

Jiang et al. 2024, https://arxiv.org/abs/2401.04088.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from isoform.reference.card import Family, Gguf
from isoform.reference.config import RopeConfig, read_rope
from isoform.reference.modules.decoder_plan import DecoderPlan, Kind, Routing
from isoform.reference.rules import Alias, Rename, Rule, SplitStack, Stack
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
class MixtralConfig(DecoderConfig):
    harmless = frozenset(
        (
            "router_jitter_noise",  # noise of training
            *("output_router_logits", "router_aux_loss_coef"),
        )
    )
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {"hidden_act": ("silu",)}
    aliases: ClassVar[Mapping[str, str]] = {"num_experts": "num_local_experts"}

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    head_dim: int | None = None
    num_local_experts: int = 8
    num_experts_per_tok: int = 2
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-5
    sliding_window: int | None = None
    tie_word_embeddings: bool = False
    num_labels: int = 2
    pad_token_id: int | None = None
    rope: RopeConfig = field(default_factory=lambda: RopeConfig(theta=1e6))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return super(MixtralConfig, cls).from_dict({**with_head(data), "rope": read_rope(data, theta=1e6)})

    @property
    def hidden_act(self) -> str:
        return "silu"


def plan(c: MixtralConfig) -> DecoderPlan:
    kinds = (Kind(window=c.sliding_window, routed=True),) * c.num_hidden_layers
    experts = Routing(count=c.num_local_experts, used=c.num_experts_per_tok, hidden=c.intermediate_size, normalize=True)
    return replace(plain_decoder(c, kinds=kinds), experts=experts)


RULES: tuple[Rule, ...] = (
    *TRUNK,
    *NORMS,
    Rename("model.layers.*.block_sparse_moe.gate", "layers.*.mlp.router"),
    Stack("model.layers.*.block_sparse_moe.experts.*.w1", "layers.*.mlp.experts.gate"),
    Stack("model.layers.*.block_sparse_moe.experts.*.w3", "layers.*.mlp.experts.up"),
    Stack("model.layers.*.block_sparse_moe.experts.*.w2", "layers.*.mlp.experts.down"),
    # As transformers 5 holds them in memory.
    Alias("model.layers.*.mlp.gate", "layers.*.mlp.router"),
    SplitStack(
        "model.layers.*.mlp.experts.gate_up_proj",
        ("layers.*.mlp.experts.gate.weight", "layers.*.mlp.experts.up.weight"),
    ),
    Alias("model.layers.*.mlp.experts.down_proj", "layers.*.mlp.experts.down.weight"),
)


def gguf_fields(c: MixtralConfig) -> dict[str, Any]:
    return {
        **decoder_fields(c),
        "vocab_size": c.vocab_size,
        "rope.dimension_count": c.head_size,
        "expert_count": c.num_local_experts,
        "expert_used_count": c.num_experts_per_tok,
    }


def from_gguf(fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    return {
        **decoder_config("MixtralForCausalLM", "mixtral", fields, shapes),
        "num_local_experts": fields["expert_count"],
        "num_experts_per_tok": fields["expert_used_count"],
    }


FAMILY = Family(
    name="mixtral",
    title="Mixtral",
    model_types=("mixtral",),
    config=MixtralConfig,
    rules=RULES,
    tasks=causal_tasks(
        plan,
        ("MixtralForCausalLM",),
        ("MixtralModel",),
        sequence=("MixtralForSequenceClassification",),
        token=("MixtralForTokenClassification",),
        span=("MixtralForQuestionAnswering",),
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
        holds=("blk.0.ffn_gate_inp.weight",),
        refuse=lambda c: decoder_refusal(c, [c.sliding_window]),
        tasks=("text-generation",),
    ),
)
