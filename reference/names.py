"""The canonical vocabulary: every family names its modules with these, so one table serves each format.

| decoder (pre-norm)                                  | encoder (post-norm)                          | heads        |
|-----------------------------------------------------|----------------------------------------------|--------------|
| embed                                               | embed, position_embed, type_embed, embed_norm| head         |
| layers.N.attn_norm                                  | layers.N.attn.q, .k, .v, .out                | mlm.dense    |
| layers.N.attn.q, .k, .v, .out, .q_norm, .k_norm     | layers.N.attn_out_norm                       | mlm.norm     |
| layers.N.attn_post_norm (after attention, Gemma)    | layers.N.mlp.up, .down                       | pooler       |
| layers.N.mlp_norm, .mlp.gate, .mlp.up, .mlp.down    | layers.N.out_norm                            | classifier   |
| layers.N.mlp_post_norm                              |                                              | qa           |
| norm, head                                          |                                              | nsp          |

A model of several parts has these names below `encoder` and `decoder`. A pre-norm encoder is named like the decoder;
what it reads comes through `conv1`, `conv2`, ... and `position_embed`. A decoder with a memory adds
`layers.N.cross_norm` and `layers.N.cross.q, .k, .v, .out` between attention and MLP.

An encoder whose embeddings are narrower than its layers has `project` behind them. Layers that share their weights are
`layers.GROUP.inner.N`. A classifier of two layers is `classifier.dense, .out`.
A table of distances is `distance_embed` with `distance_norm`; `layers.N.attn.place_k, .place_q` project it.

A backbone of several stages has `stages.N.layers.M` with the names of a pre-norm layer, `merges.N.norm` and `.reduce`
between two stages, `attn.distance_embed` for its relative positions, and `map_norms.NAME` for the maps that are read.

A vision transformer is a pre-norm encoder after `patch_embed`, `class_token` (`register_tokens`) and `position_embed`.
A branch may end in a scale, `layers.N.attn_scale` and `.mlp_scale`, and a gated MLP may have one matrix for two,
`mlp.gate_up` and `mlp.gate_down`; a decoder's is `mlp.gate_up` and `mlp.down`, beside `attn.qkv` for three. Its heads
are `pooler.dense` and `classifier`. Two towers have these names below `text` and `vision`, then `text_projection`,
`vision_projection`, `logit_scale` and `logit_bias`; a picture that is pooled by attention adds `vision.pool.probe`,
`.qkv`, `.out`, `.norm` and `.mlp`.
"""

from __future__ import annotations

GGUF = {
    "embed": "token_embd",
    "position_embed": "position_embd",
    "type_embed": "token_types",
    "embed_norm": "token_embd_norm",
    "layers.*.attn_norm": "blk.*.attn_norm",
    "layers.*.attn.qkv": "blk.*.attn_qkv",
    "layers.*.attn.q": "blk.*.attn_q",
    "layers.*.attn.k": "blk.*.attn_k",
    "layers.*.attn.v": "blk.*.attn_v",
    "layers.*.attn.out": "blk.*.attn_output",
    "layers.*.attn.q_norm": "blk.*.attn_q_norm",
    "layers.*.attn.k_norm": "blk.*.attn_k_norm",
    "layers.*.attn_post_norm": "blk.*.post_attention_norm",
    "layers.*.attn_out_norm": "blk.*.attn_output_norm",
    "layers.*.mlp_norm": "blk.*.ffn_norm",
    "layers.*.mlp.gate": "blk.*.ffn_gate",
    "layers.*.mlp.up": "blk.*.ffn_up",
    "layers.*.mlp.down": "blk.*.ffn_down",
    "layers.*.mlp.router": "blk.*.ffn_gate_inp",
    "layers.*.mlp.experts.gate": "blk.*.ffn_gate_exps",
    "layers.*.mlp.experts.up": "blk.*.ffn_up_exps",
    "layers.*.mlp.experts.down": "blk.*.ffn_down_exps",
    "layers.*.mlp_post_norm": "blk.*.post_ffw_norm",
    "layers.*.out_norm": "blk.*.layer_output_norm",
    "norm": "output_norm",
    "head": "output",
}
"""Canonical module -> llama.cpp's tensor name, both without `.weight` or `.bias`; `*` is the layer.

Experts are stacked: (experts, out, in) in one tensor for all of a layer's gates, ups or downs.
"""


HEAD = "head"
"""The layer that gives the logits over a vocabulary."""

ROUTER = ".router.weight"
"""Ends the name of the matrix that scores experts. Its numbers are kept: a rounded score may choose another expert."""


def rename(name: str, table: dict[str, str]) -> str | None:
    """Translate a dotted parameter name by a table of modules with `*` for the layer number; None when unknown."""
    module, _, parameter = name.rpartition(".")
    parts = module.split(".")
    number = next((part for part in parts if part.isdigit()), "")
    pattern = ".".join("*" if part == number and number else part for part in parts)
    target = table.get(pattern)
    return target and f"{target.replace('*', number)}.{parameter}"
