"""The pre-norm decoder that the text families share: embedding, layers, norm, and a head over the vocabulary.

What differs between families (norms, projections, windows, rotary bases, caps) comes in as modules and plain arguments,
or as a plan, of which `decoder` builds it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from isoform.reference.modules.attention import Attention, GrowingCache, Heads
from isoform.reference.modules.decoder_plan import DecoderPlan, Kind
from isoform.reference.modules.layers import Embedding, GatedMLP, Linear, RMSNorm, Rope, causal_bias, true_positions


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); Gemma also norms what is added."""

    def __init__(
        self,
        attn_norm: RMSNorm,
        attn: Attention,
        mlp_norm: RMSNorm,
        mlp: GatedMLP,
        attn_post_norm: RMSNorm | None = None,
        mlp_post_norm: RMSNorm | None = None,
    ) -> None:
        super().__init__()
        self.attn_norm, self.attn, self.mlp_norm, self.mlp = attn_norm, attn, mlp_norm, mlp
        self.attn_post_norm: nn.Module = attn_post_norm or nn.Identity()
        self.mlp_post_norm: nn.Module = mlp_post_norm or nn.Identity()

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], bias: Tensor, cache: GrowingCache) -> Tensor:
        y = self.attn.attend(self.attn_norm(x), bias, cache, angles)
        x = x + self.attn_post_norm(y)
        z: Tensor = x + self.mlp_post_norm(self.mlp(self.mlp_norm(x)))
        return z


class TokenEmbedding(nn.Module):
    """Token ids to the embeddings that a `DecoderLM` over embeddings takes: the graph before it, where it is apart."""

    def __init__(self, embed: Embedding, scale: float = 1.0) -> None:
        super().__init__()
        self.embed, self.scale = embed, scale

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """Shapes: input_ids (B, T) -> (B, T, C)."""
        return (scaled(self.embed(input_ids), self.scale),)


def scaled(x: Tensor, scale: float) -> Tensor:
    """Embeddings times Gemma's scale, which the Hub's code rounds to their dtype."""
    return x if scale == 1 else x * float(torch.tensor(scale, dtype=x.dtype, device="cpu"))


class DecoderLM(nn.Module):
    """Ids or embeddings in, logits (or with no head the last hidden state) and the extended cache out.

    `embeds`: the first input is embeddings (B, T, C) instead of ids, scaled already. `embed` is None then, or the table
    that the head shares.
    """

    def __init__(
        self,
        embed: Embedding | None,
        layers: Sequence[DecoderLayer],
        kinds: Sequence[Kind],
        ropes: dict[str, Rope],
        norm: RMSNorm,
        head: Linear | None,
        *,
        embed_scale: float = 1.0,
        logit_softcap: float = 0.0,
        embeds: bool = False,
    ) -> None:
        super().__init__()
        if embed is not None:
            self.embed = embed
        self.layers, self.norm = nn.ModuleList(layers), norm
        self.ropes = nn.ModuleDict(ropes)
        self.head = head
        self.kinds = tuple(kinds)
        self._heads = layers[0].attn.heads
        self.embeds, self.embed_scale, self.logit_softcap = embeds, embed_scale, logit_softcap

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *past: Tensor,
    ) -> tuple[Tensor, ...]:
        """One pass over T new tokens after P cached ones.

        Shapes: input_ids (B, T), or embeddings (B, T, C) in their place, attention_mask (B, P+T) of 0 and 1,
        position_ids (B, T), and per layer a past key and value (B, kv_heads, P, D). Returns logits (B, T, V) and per
        layer a key and value (B, kv_heads, P+T, D). Omitted: no padding, positions counted over the mask, an empty
        past.
        """
        if not past:
            empty = self.norm.weight.new_zeros(input_ids.shape[0], self._heads.kv, 0, self._heads.dim)
            past = (empty,) * (2 * len(self.layers))
        if attention_mask is None:
            slots = past[0].shape[2] + input_ids.shape[1]
            attention_mask = torch.ones(input_ids.shape[0], slots, dtype=torch.int64, device=input_ids.device)
        # What hides what is a matter of the mask alone: position_ids may count from 1, as some programs do.
        counted = true_positions(attention_mask)[:, attention_mask.shape[1] - input_ids.shape[1] :]
        if position_ids is None:
            position_ids = counted
        x = input_ids if self.embeds else scaled(self.embed(input_ids), self.embed_scale)
        angles = {name: rope(position_ids, x.dtype) for name, rope in self.ropes.items()}
        windows = {kind.window for kind in self.kinds}
        bias = {w: causal_bias(attention_mask, counted, w, x.dtype) for w in sorted(windows, key=lambda w: w or 0)}
        present: list[Tensor] = []
        for n, (layer, kind) in enumerate(zip(self.layers, self.kinds, strict=True)):
            cache = GrowingCache(past[2 * n], past[2 * n + 1])
            x = layer(x, angles[kind.rope], bias[kind.window], cache)
            present += cache.present
        x = self.norm(x)
        if self.head is not None:
            x = self.head(x)
            if self.logit_softcap:
                x = torch.tanh(x / self.logit_softcap) * self.logit_softcap
        return x, *present


def token_embedding(plan: DecoderPlan) -> TokenEmbedding:
    """The module before a decoder over embeddings."""
    return TokenEmbedding(Embedding(plan.vocab, plan.dim), plan.embed_scale)


def decoder(plan: DecoderPlan, head: bool, embeds: bool = False) -> DecoderLM:
    """The module of a plan; `head`: with one over the vocabulary; `embeds`: over embeddings instead of ids."""

    def norm() -> RMSNorm:
        return RMSNorm(plan.dim, plan.eps)

    def layer() -> DecoderLayer:
        attention = Attention(
            plan.dim,
            Heads(plan.heads, plan.kv_heads, plan.head_dim, plan.score_scale, plan.score_softcap),
            bias=plan.qkv_bias,
            out_bias=plan.out_bias,
            norm_eps=plan.eps if plan.head_norms else None,
        )
        mlp = GatedMLP(plan.dim, plan.hidden, plan.act, plan.mlp_bias)
        after = (norm(), norm()) if plan.post_norms else ()
        return DecoderLayer(norm(), attention, norm(), mlp, *after)

    return DecoderLM(
        Embedding(plan.vocab, plan.dim) if plan.has_table(head, embeds) else None,
        [layer() for _ in plan.kinds],
        plan.kinds,
        {name: Rope(plan.head_dim, rope) for name, rope in plan.ropes.items()},
        norm(),
        Linear(plan.dim, plan.vocab, False) if head else None,
        embed_scale=plan.embed_scale,
        logit_softcap=plan.logit_softcap,
        embeds=embeds,
    )
