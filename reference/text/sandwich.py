"""Gemma's layer: norms before and after attention and MLP, stored as one less than they multiply by."""

from __future__ import annotations

from typing import Any

from isoform.reference.decoder import DecoderLayer
from isoform.reference.layers import Attention, GatedMLP, RMSNorm
from isoform.reference.weights import Fold, Rule

SANDWICH: tuple[Rule, ...] = (
    Fold("model.layers.*.input_layernorm", "layers.*.attn_norm", 1.0),
    Fold("model.layers.*.post_attention_layernorm", "layers.*.attn_post_norm", 1.0),
    Fold("model.layers.*.pre_feedforward_layernorm", "layers.*.mlp_norm", 1.0),
    Fold("model.layers.*.post_feedforward_layernorm", "layers.*.mlp_post_norm", 1.0),
    Fold("model.norm", "norm", 1.0),
)


def sandwich_layer(c: Any, *, softcap: float = 0.0, head_norms: bool = False) -> DecoderLayer:
    """One layer; scores are scaled by query_pre_attn_scalar instead of the head size."""

    def norm() -> RMSNorm:
        return RMSNorm(c.hidden_size, c.rms_norm_eps)

    return DecoderLayer(
        norm(),
        Attention(
            c.hidden_size,
            c.num_attention_heads,
            c.kv_heads,
            c.head_size,
            bias=c.attention_bias,
            out_bias=c.attention_bias,
            norm_eps=c.rms_norm_eps if head_norms else None,
            scale=c.query_pre_attn_scalar**-0.5,
            softcap=softcap,
        ),
        norm(),
        GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_activation),
        norm(),
        norm(),
    )
