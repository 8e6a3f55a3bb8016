"""Gemma's layer: norms before and after attention and MLP, stored as one less than they multiply by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from isoform.reference.config import RopeConfig
from isoform.reference.modules.decoder_plan import DecoderPlan, Kind
from isoform.reference.rules import Fold, Rule
from isoform.reference.text.rope_scaling import rope_refusal

SANDWICH: tuple[Rule, ...] = (
    Fold("model.layers.*.input_layernorm", "layers.*.attn_norm", 1.0),
    Fold("model.layers.*.post_attention_layernorm", "layers.*.attn_post_norm", 1.0),
    Fold("model.layers.*.pre_feedforward_layernorm", "layers.*.mlp_norm", 1.0),
    Fold("model.layers.*.post_feedforward_layernorm", "layers.*.mlp_post_norm", 1.0),
    Fold("model.norm", "norm", 1.0),
)


def sandwich_decoder(
    c: Any, kinds: Sequence[Kind], ropes: Mapping[str, RopeConfig], *, head_norms: bool = False
) -> DecoderPlan:
    """A decoder of such layers; scores are scaled by query_pre_attn_scalar instead of the head size."""
    return DecoderPlan(
        vocab=c.vocab_size,
        dim=c.hidden_size,
        hidden=c.intermediate_size,
        heads=c.num_attention_heads,
        kv_heads=c.kv_heads,
        head_dim=c.head_size,
        act=c.hidden_activation,
        eps=c.rms_norm_eps,
        kinds=tuple(kinds),
        ropes=ropes,
        qkv_bias=c.attention_bias,
        out_bias=c.attention_bias,
        head_norms=head_norms,
        post_norms=True,
        score_scale=c.query_pre_attn_scalar**-0.5,
        score_softcap=c.attn_logit_softcapping or 0.0,
        embed_scale=c.hidden_size**0.5,
        logit_softcap=c.final_logit_softcapping or 0.0,
        tied=c.tie_word_embeddings,
    )


def score_divisor(c: Any, largest: int) -> int:
    """The query_pre_attn_scalar that llama.cpp takes: the head size; in the model of `largest` layers, dim / heads."""
    size: int = c.hidden_size // c.num_attention_heads if c.num_hidden_layers == largest else c.head_dim
    return size


def sandwich_refusal(c: Any, largest: int) -> str:
    """Why llama.cpp would compute something else than the layers above."""
    if c.query_pre_attn_scalar != score_divisor(c, largest):
        return (
            f"llama.cpp divides scores by the root of {score_divisor(c, largest)} for this architecture, the model by "
            f"that of query_pre_attn_scalar = {c.query_pre_attn_scalar:g}"
        )
    if c.hidden_activation not in ("gelu_pytorch_tanh", "gelu_new"):
        return f"llama.cpp has only the activation gelu_pytorch_tanh for this architecture, not {c.hidden_activation}"
    if c.attention_bias:
        return "llama.cpp has no bias on the attention's output for this architecture (attention_bias is true)"
    return rope_refusal(c.rope)
