"""Gemma's layer: norms before and after attention and MLP, stored as one less than they multiply by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from isoform.reference.rules import Fold, Rule
from isoform.reference.text.causal import Shapes, decoder_shapes

if TYPE_CHECKING:
    from isoform.reference.decoder import DecoderLayer
    from isoform.reference.layers import RMSNorm

SANDWICH: tuple[Rule, ...] = (
    Fold("model.layers.*.input_layernorm", "layers.*.attn_norm", 1.0),
    Fold("model.layers.*.post_attention_layernorm", "layers.*.attn_post_norm", 1.0),
    Fold("model.layers.*.pre_feedforward_layernorm", "layers.*.mlp_norm", 1.0),
    Fold("model.layers.*.post_feedforward_layernorm", "layers.*.mlp_post_norm", 1.0),
    Fold("model.norm", "norm", 1.0),
)


def sandwich_layer(c: Any, *, softcap: float = 0.0, head_norms: bool = False) -> DecoderLayer:
    """One layer; scores are scaled by query_pre_attn_scalar instead of the head size."""
    from isoform.reference.decoder import DecoderLayer
    from isoform.reference.layers import Attention, GatedMLP, RMSNorm

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


def sandwich_shapes(c: Any, head: bool, *, head_norms: bool = False) -> Shapes:
    """The parameters of a decoder of these layers, in its order."""
    bias = c.attention_bias
    return decoder_shapes(c, head, qkv_bias=bias, out_bias=bias, head_norms=head_norms, post_norms=True)


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
    if c.rope.kind == "llama3":
        return "llama.cpp has no llama3 rotary scaling for this architecture"
    return ""
