"""The post-norm encoder of BERT and its relatives: embeddings, layers, and one head of five kinds.

What differs between families (attention, sharing of layers, widths, activations) comes in as modules and plain
arguments. Axis letters: B batch, T positions, C channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isoform.reference.modules.attention import Attention, Heads
from isoform.reference.modules.layers import (
    MLP,
    Embedding,
    Linear,
    activation,
    first_token,
    padding_bias,
    true_positions,
)


class EncoderLayer(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)). `attn` also gets whatever else `forward` is given: a bias."""

    def __init__(self, attn: nn.Module, dim: int, hidden: int, act: str, eps: float) -> None:
        super().__init__()
        self.attn = attn
        self.attn_out_norm = nn.LayerNorm(dim, eps)
        self.mlp = MLP(dim, hidden, act)
        self.out_norm = nn.LayerNorm(dim, eps)

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        """Shapes: x (B, T, C) -> (B, T, C)."""
        x = self.attn_out_norm(x + self.attn(x, *context))
        y: Tensor = self.out_norm(x + self.mlp(x))
        return y


def encoder_layer(dim: int, heads: int, head_dim: int, hidden: int, act: str, eps: float) -> EncoderLayer:
    """The layer of BERT: plain attention with a bias on all four matrices."""
    attn = Attention(dim, Heads(heads, heads, head_dim), bias=True, out_bias=True)
    return EncoderLayer(attn, dim, hidden, act, eps)


class MaskedHead(nn.Module):
    """Dense, activation and norm before the vocabulary: (B, T, `dim`) -> (B, T, `width`)."""

    def __init__(self, dim: int, width: int, act: str, eps: float) -> None:
        super().__init__()
        self.dense = Linear(dim, width)
        self.norm = nn.LayerNorm(width, eps)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.act(self.dense(x)))
        return y


class DeepClassifier(nn.Module):
    """Two layers over the first token's state, which RoBERTa has in place of a pooler: (B, C) -> (B, `labels`)."""

    def __init__(self, dim: int, labels: int, act: str) -> None:
        super().__init__()
        self.dense, self.out = Linear(dim, dim), Linear(dim, labels)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.act(self.dense(x)))
        return y


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """The sizes of the embeddings: rows of each table (0 positions or types: none) and their `width`.

    `dim` is the layers' width; with `projected` a matrix leads from the one to the other.
    """

    vocab: int
    positions: int
    types: int
    width: int
    dim: int
    projected: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadPlan:
    """Which head: "none", "mask", "token", "sequence" or "span", how many labels it has, and its activations.

    `act` is that of the masked head, `pooled_act` that of the first token's state before the last layer of "sequence".
    `deep`: that state goes through a `DeepClassifier`, and not through the trunk's pooler and a classifier.
    """

    kind: str
    labels: int
    act: str
    pooled_act: str = "tanh"
    deep: bool = False


class TextEncoder(nn.Module):
    """Token ids in, the outputs of one head out.

    `order`: the layers in the order in which they run; one that is named twice runs twice, with the same weights.
    Without it each runs once.
    """

    def __init__(
        self,
        tables: Tables,
        layers: Sequence[nn.Module],
        head: HeadPlan,
        eps: float,
        order: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        dim, width = tables.dim, tables.width
        self.embed = Embedding(tables.vocab, width)
        self.position_embed = Embedding(tables.positions, width) if tables.positions else None
        self.type_embed = Embedding(tables.types, width) if tables.types else None
        self.embed_norm = nn.LayerNorm(width, eps)
        self.project = Linear(width, dim) if tables.projected else None
        self.layers = nn.ModuleList(layers)
        self.order = tuple(range(len(layers)) if order is None else order)
        self.kind, self.deep = head.kind, head.deep
        if head.kind == "mask":
            self.mlm = MaskedHead(dim, width, head.act, eps)
            self.head = Linear(width, tables.vocab)
        elif head.kind == "sequence" and head.deep:
            self.classifier: nn.Module = DeepClassifier(dim, head.labels, head.pooled_act)
        elif head.kind == "sequence":
            self.pooler = Linear(dim, dim)
            self.pooled_act = activation(head.pooled_act)
            self.classifier = Linear(dim, head.labels)
        elif head.kind == "token":
            self.classifier = Linear(dim, head.labels)
        elif head.kind == "span":
            self.qa = Linear(dim, 2)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Shapes: all inputs (B, T); omitted ones mean no padding, one segment.

        Returns the last hidden state (B, T, C), logits (B, T, V) or (B, T, labels), logits (B, labels), or start and
        end logits (B, T) each.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        # Positions count the real tokens, so that padding on the left changes nothing.
        positions = true_positions(attention_mask)
        x = self.embed(input_ids)
        if self.type_embed is not None:
            x = x + self.type_embed(torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids)
        if self.position_embed is not None:
            x = x + self.position_embed(positions)
        x = self.embed_norm(x)
        if self.project is not None:
            x = self.project(x)
        context = self.context(attention_mask, positions, x.dtype)
        for n in self.order:
            x = self.layers[n](x, *context)
        return self.answer(x, attention_mask)

    def context(self, attention_mask: Tensor, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """What the attention of every layer gets besides the states: a bias (B, 1, 1, T) that hides the padding."""
        return (padding_bias(attention_mask, dtype),)

    def answer(self, x: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """The outputs of the head for the last hidden state."""
        if self.kind == "mask":
            return (self.head(self.mlm(x)),)
        if self.kind == "token":
            return (self.classifier(x),)
        if self.kind == "sequence":
            first = first_token(x, attention_mask)
            return (self.classifier(first if self.deep else self.pooled_act(self.pooler(first))),)
        if self.kind == "span":
            start, end = self.qa(x).unbind(-1)
            return start, end
        return (x,)
