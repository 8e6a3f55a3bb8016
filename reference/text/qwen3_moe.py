"""Qwen3-MoE: Qwen3 whose MLPs are many small experts, of which every token takes a few.

Qwen Team 2025, https://arxiv.org/abs/2505.09388.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from isoform.reference.card import Family, Gguf
from isoform.reference.config import RopeConfig, read_rope
from isoform.reference.modules.decoder_plan import DecoderPlan, Routing
from isoform.reference.rules import Alias, Rename, Rule, SplitStack, Stack
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
    with_head,
)
from isoform.reference.text.decoder_config import DecoderConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen3MoeConfig(DecoderConfig):
    harmless = frozenset(
        (
            "max_window_layers",  # of Qwen3: here a window is for all layers or none
            *("output_router_logits", "router_aux_loss_coef"),
        )
    )
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {"hidden_act": ("silu",)}
    aliases: ClassVar[Mapping[str, str]] = {"num_local_experts": "num_experts"}

    vocab_size: int = 151936
    hidden_size: int = 2048
    intermediate_size: int = 6144
    moe_intermediate_size: int = 768
    num_hidden_layers: int = 24
    num_attention_heads: int = 32
    num_key_value_heads: int = 4
    head_dim: int | None = None
    num_experts: int = 128
    num_experts_per_tok: int = 8
    norm_topk_prob: bool = False
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] = ()
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    tie_word_embeddings: bool = False
    num_labels: int = 2
    pad_token_id: int | None = None
    rope: RopeConfig = field(default_factory=RopeConfig)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return super(Qwen3MoeConfig, cls).from_dict({**with_head(data), "rope": read_rope(data)})

    @property
    def hidden_act(self) -> str:
        return "silu"

    @property
    def windows(self) -> list[int | None]:
        return [self.sliding_window if self.use_sliding_window else None] * self.num_hidden_layers

    @property
    def routed(self) -> list[bool]:
        """Which layers have experts; the others have one MLP of `intermediate_size`."""
        return [
            n not in self.mlp_only_layers and (n + 1) % self.decoder_sparse_step == 0
            for n in range(self.num_hidden_layers)
        ]


def plan(c: Qwen3MoeConfig) -> DecoderPlan:
    made = plain_decoder(c, qkv_bias=c.attention_bias, out_bias=c.attention_bias, head_norms=True, windows=c.windows)
    kinds = tuple(replace(kind, routed=routed) for kind, routed in zip(made.kinds, c.routed, strict=True))
    experts = Routing(
        count=c.num_experts,
        used=c.num_experts_per_tok,
        hidden=c.moe_intermediate_size,
        normalize=c.norm_topk_prob,
    )
    return replace(made, kinds=kinds, experts=experts)


RULES: tuple[Rule, ...] = (
    *TRUNK,
    *NORMS,
    *HEAD_NORMS,
    Rename("model.layers.*.mlp.gate", "layers.*.mlp.router"),
    Stack("model.layers.*.mlp.experts.*.gate_proj", "layers.*.mlp.experts.gate"),
    Stack("model.layers.*.mlp.experts.*.up_proj", "layers.*.mlp.experts.up"),
    Stack("model.layers.*.mlp.experts.*.down_proj", "layers.*.mlp.experts.down"),
    # As transformers 5 holds them in memory.
    SplitStack(
        "model.layers.*.mlp.experts.gate_up_proj",
        ("layers.*.mlp.experts.gate.weight", "layers.*.mlp.experts.up.weight"),
    ),
    Alias("model.layers.*.mlp.experts.down_proj", "layers.*.mlp.experts.down.weight"),
)


def gguf_fields(c: Qwen3MoeConfig) -> dict[str, Any]:
    return {
        **decoder_fields(c),
        "expert_count": c.num_experts,
        "expert_used_count": c.num_experts_per_tok,
        "expert_feed_forward_length": c.moe_intermediate_size,
    }


def from_gguf(fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    config = decoder_config("Qwen3MoeForCausalLM", "qwen3_moe", fields, shapes)
    return {
        **config,
        "num_experts": fields["expert_count"],
        "num_experts_per_tok": fields["expert_used_count"],
        "moe_intermediate_size": fields["expert_feed_forward_length"],
        "norm_topk_prob": True,
    }


def refuse(c: Qwen3MoeConfig) -> str:
    if c.attention_bias:
        return "llama.cpp has no bias on the attention's output for this architecture (attention_bias is true)"
    if not c.norm_topk_prob:
        return "llama.cpp divides the weights of the chosen experts by their sum, which norm_topk_prob = false does not"
    if not all(c.routed):
        return (
            f"llama.cpp wants experts in every layer of this architecture, and layer {c.routed.index(False)} has none"
        )
    return decoder_refusal(c, c.windows)


FAMILY = Family(
    name="qwen3_moe",
    title="Qwen3-MoE",
    model_types=("qwen3_moe",),
    config=Qwen3MoeConfig,
    rules=RULES,
    tasks=causal_tasks(
        plan,
        ("Qwen3MoeForCausalLM",),
        ("Qwen3MoeModel",),
        sequence=("Qwen3MoeForSequenceClassification",),
        token=("Qwen3MoeForTokenClassification",),
        span=("Qwen3MoeForQuestionAnswering",),
    ),
    parts=causal_parts(plan),
    prefix="model",
    other_prefix="transformer",
    heads=HEADS,
    tied=tied_head,
    gguf=Gguf(arch="qwen3moe", fields=gguf_fields, config=from_gguf, refuse=refuse, tasks=("text-generation",)),
)
