"""The decoder that the text families share: embedding, layers, norm, and one of several heads.

What differs between families (norms, projections, windows, rotary bases, caps) comes in as modules and plain arguments,
or as a plan, of which `decoder` builds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from isoform.reference.modules.attention import Attention, GrowingCache, Heads, MergedAttention
from isoform.reference.modules.decoder_plan import Classifier, DecoderPlan, Kind
from isoform.reference.modules.experts import RoutedMLP
from isoform.reference.modules.layers import (
    Embedding,
    GatedMLP,
    Linear,
    MergedMLP,
    RMSNorm,
    Rope,
    causal_bias,
    last_token,
    true_positions,
    window_bias,
)


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); what is added may be normed as well, or instead, and scaled."""

    def __init__(
        self,
        attn_norm: RMSNorm | None,
        attn: Attention | MergedAttention,
        mlp_norm: RMSNorm | None,
        mlp: GatedMLP | MergedMLP | RoutedMLP,
        attn_post_norm: RMSNorm | None = None,
        mlp_post_norm: RMSNorm | None = None,
        *,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.attn_norm: nn.Module = attn_norm or nn.Identity()
        self.attn = attn
        self.mlp_norm: nn.Module = mlp_norm or nn.Identity()
        self.mlp = mlp
        self.attn_post_norm: nn.Module = attn_post_norm or nn.Identity()
        self.mlp_post_norm: nn.Module = mlp_post_norm or nn.Identity()
        self.scale = scale

    def forward(
        self, x: Tensor, angles: tuple[Tensor, Tensor] | None, bias: Tensor, cache: GrowingCache | None
    ) -> Tensor:
        y = self.attn_post_norm(self.attn.attend(self.attn_norm(x), bias, cache, angles))
        x = x + self._scaled(y)
        z: Tensor = x + self._scaled(self.mlp_post_norm(self.mlp(self.mlp_norm(x))))
        return z

    def _scaled(self, y: Tensor) -> Tensor:
        return y if self.scale == 1 else y * self.scale


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


class DecoderTrunk(nn.Module):
    """Ids or embeddings in, the last hidden state out.

    `embeds`: the first input is embeddings (B, T, C) instead of ids, scaled already. `embed` is None then, or the table
    that the head shares. `both_sides`: tokens see what is behind them too.
    """

    def __init__(
        self,
        embed: Embedding | None,
        layers: Sequence[DecoderLayer],
        kinds: Sequence[Kind],
        ropes: dict[str, Rope],
        norm: RMSNorm,
        *,
        embed_scale: float = 1.0,
        embeds: bool = False,
        both_sides: bool = False,
    ) -> None:
        super().__init__()
        if embed is not None:
            self.embed = embed
        self.layers, self.norm = nn.ModuleList(layers), norm
        self.ropes = nn.ModuleDict(ropes)
        self.kinds = tuple(kinds)
        self.embeds, self.embed_scale, self.both_sides = embeds, embed_scale, both_sides

    def states(
        self,
        tokens: Tensor,
        mask: Tensor,
        position_ids: Tensor | None = None,
        caches: Sequence[GrowingCache | None] | None = None,
    ) -> Tensor:
        """Shapes: tokens (B, T) or (B, T, C), mask (B, P+T), position_ids (B, T) -> (B, T, C).

        `caches`: one per layer, which gets its key and value. Omitted: nothing is kept, and P is 0.
        """
        # What hides what is a matter of the mask alone: position_ids may count from 1, as some programs do.
        counted = true_positions(mask)
        if caches is not None:
            counted = counted[:, mask.shape[1] - tokens.shape[1] :]
        if position_ids is None:
            position_ids = counted
        x = tokens if self.embeds else scaled(self.embed(tokens), self.embed_scale)
        angles = {name: rope(position_ids, x.dtype) for name, rope in self.ropes.items()}
        windows = sorted({kind.window for kind in self.kinds}, key=lambda w: w or 0)
        if self.both_sides:
            bias = {w: window_bias(mask, w, x.dtype) for w in windows}
        else:
            bias = {w: causal_bias(mask, counted, w, x.dtype) for w in windows}
        caches = caches or [None] * len(self.layers)
        for layer, kind, cache in zip(self.layers, self.kinds, caches, strict=True):
            x = layer(x, None if kind.rope is None else angles[kind.rope], bias[kind.window], cache)
        y: Tensor = self.norm(x)
        return y


class DecoderLM(DecoderTrunk):
    """Ids or embeddings in, logits (or with no head the last hidden state) and the extended cache out."""

    def __init__(
        self, *trunk: Any, head: Linear | None, divisor: float = 1.0, softcap: float = 0.0, **options: Any
    ) -> None:
        super().__init__(*trunk, **options)
        self.head = head
        self.logit_divisor, self.logit_softcap = divisor, softcap
        self._heads: Heads = self.layers[0].attn.heads  # type: ignore[assignment, union-attr]

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
        caches = [GrowingCache(*pair) for pair in zip(past[::2], past[1::2], strict=True)]
        x = self.states(input_ids, attention_mask, position_ids, caches)
        if self.head is not None:
            x = self.head(x)
            if self.logit_divisor != 1:
                x = x / self.logit_divisor
            if self.logit_softcap:
                x = torch.tanh(x / self.logit_softcap) * self.logit_softcap
        return x, *(tensor for cache in caches for tensor in cache.present)


class DecoderEncoder(DecoderTrunk):
    """Ids in, the last hidden state out, in one pass without a cache."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Shapes: both inputs (B, T) -> (B, T, C); without a mask there is no padding."""
        return (self.states(input_ids, torch.ones_like(input_ids) if attention_mask is None else attention_mask),)


class DecoderClassifier(DecoderTrunk):
    """Ids in, the logits of a classifier out, in one pass without a cache."""

    def __init__(self, *trunk: Any, head: Classifier, dim: int, **options: Any) -> None:
        super().__init__(*trunk, **options)
        self.kind, self.pad = head.kind, head.pad
        if head.kind == "span":
            self.qa = Linear(dim, 2)
        else:
            self.classifier = Linear(dim, head.labels, head.bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Shapes: both inputs (B, T); without a mask there is no padding.

        Returns logits (B, labels) or (B, T, labels), or start and end logits (B, T) each.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        x = self.states(input_ids, attention_mask)
        if self.kind == "span":
            start, end = self.qa(x).unbind(-1)
            return start, end
        if self.kind == "sequence":
            real = attention_mask
            if self.pad is not None:  # such a token does not count even where the mask shows it
                real = real * (input_ids != self.pad).to(real.dtype)
            x = last_token(x, real)
        return (self.classifier(x),)


def token_embedding(plan: DecoderPlan) -> TokenEmbedding:
    """The module before a decoder over embeddings."""
    return TokenEmbedding(Embedding(plan.vocab, plan.dim), plan.embed_scale)


def decoder(plan: DecoderPlan, head: bool, embeds: bool = False) -> DecoderLM:
    """The language model of a plan; `head`: with one over the vocabulary; `embeds`: over embeddings instead of ids."""
    return DecoderLM(
        Embedding(plan.vocab, plan.dim) if plan.has_table(head, embeds) else None,
        *_layers(plan),
        head=Linear(plan.dim, plan.vocab, False) if head else None,
        divisor=plan.logit_divisor,
        softcap=plan.logit_softcap,
        embed_scale=plan.embed_scale,
        embeds=embeds,
    )


def classifier(plan: DecoderPlan, head: Classifier) -> DecoderClassifier:
    """The trunk of a plan with a classifier instead of the head over the vocabulary."""
    embed = Embedding(plan.vocab, plan.dim)
    return DecoderClassifier(embed, *_layers(plan), head=head, dim=plan.dim, embed_scale=plan.embed_scale)


def encoder(plan: DecoderPlan) -> DecoderEncoder:
    """The trunk of a plan alone, whose states nothing is kept of."""
    embed = Embedding(plan.vocab, plan.dim)
    return DecoderEncoder(embed, *_layers(plan), embed_scale=plan.embed_scale, both_sides=plan.both_sides)


def _layers(plan: DecoderPlan) -> tuple[list[DecoderLayer], tuple[Kind, ...], dict[str, Rope], RMSNorm]:
    """What the trunk has after its embedding."""

    heads = Heads(plan.heads, plan.kv_heads, plan.head_dim, plan.score_scale, plan.score_softcap)

    def norm() -> RMSNorm:
        return RMSNorm(plan.dim, plan.eps)

    def norms(wanted: bool) -> tuple[RMSNorm | None, RMSNorm | None]:
        return (norm(), norm()) if wanted else (None, None)

    def attention() -> Attention | MergedAttention:
        if plan.merged:
            return MergedAttention(plan.dim, heads, bias=plan.qkv_bias, out_bias=plan.out_bias)
        return Attention(
            plan.dim,
            heads,
            bias=plan.qkv_bias,
            out_bias=plan.out_bias,
            norm_eps=plan.eps if plan.head_norms or plan.whole_norms else None,
            whole=plan.whole_norms,
        )

    def layer(kind: Kind) -> DecoderLayer:
        mlp: GatedMLP | MergedMLP | RoutedMLP
        if kind.routed and (experts := plan.experts) is not None:
            mlp = RoutedMLP(plan.dim, experts.hidden, experts.count, experts.used, experts.normalize)
        else:
            mlp = (MergedMLP if plan.merged else GatedMLP)(plan.dim, plan.hidden, plan.act, plan.mlp_bias)
        before, after = norms(plan.pre_norms), norms(plan.post_norms)
        return DecoderLayer(before[0], attention(), before[1], mlp, *after, scale=plan.residual_scale)

    ropes = {name: Rope(int(plan.head_dim * rope.partial), rope) for name, rope in plan.ropes.items()}
    return [layer(kind) for kind in plan.kinds], plan.kinds, ropes, norm()
