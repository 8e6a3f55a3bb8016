"""Queries that attend to a picture where their own mask is: the decoder of mask transformers.

Cheng et al. 2021, https://arxiv.org/abs/2112.01527. Axis letters: B batch, Q queries, S cells of a map, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoform.reference.modules.attention import Heads, Projections, attend
from isoform.reference.modules.layers import MLP, Linear, head_size, hidden
from isoform.reference.rules import Rename, Rule, Split

LEVELS = 3
EPS = 1e-5  # of the norms, where no config says another
SHOWN = 0.5
"""The chance from which a cell belongs to a query's mask."""


class Between(Projections):
    """Attention of queries to keys and values that differ: what is compared has positions, what is taken has none."""

    def __init__(self, dim: int, heads: int) -> None:
        size = head_size(dim, heads, "the mask decoder's width")
        super().__init__(dim, Heads(heads, heads, size), bias=True, out_bias=True)

    def between(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        """Shapes: query (B, Q, C), key and value (B, S, C), bias (B, 1, Q, S) -> (B, Q, C)."""
        y: Tensor = self.out(attend(self.q(query), self.k(key), self.v(value), bias, self.heads))
        return y


class MaskLayer(nn.Module):
    """Attention to a map, to each other, and an MLP; norms after each, or with `pre_norm` before."""

    def __init__(self, dim: int, heads: int, inner: int, act: str, eps: float, pre_norm: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.cross, self.cross_norm = Between(dim, heads), nn.LayerNorm(dim, eps)
        self.attn, self.attn_norm = Between(dim, heads), nn.LayerNorm(dim, eps)
        self.mlp, self.mlp_norm = MLP(dim, inner, act), nn.LayerNorm(dim, eps)

    def forward(self, x: Tensor, places: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """Shapes: x (B, Q, C), places (1, Q, C), key and value (B, S, C), bias (B, 1, Q, S) -> (B, Q, C)."""
        if self.pre_norm:
            x = x + self.cross.between(self.cross_norm(x) + places, key, value, bias)
            y = self.attn_norm(x)
            x = x + self.attn.between(y + places, y + places, y)
            return x + self.mlp(self.mlp_norm(x))
        x = self.cross_norm(x + self.cross.between(x + places, key, value, bias))
        x = self.attn_norm(x + self.attn.between(x + places, x + places, x))
        z: Tensor = self.mlp_norm(x + self.mlp(x))
        return z


class Perceptron(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        for n, layer in enumerate(self.layers):
            x = layer(F.relu(x) if n else x)
        return x


class MaskDecoder(nn.Module):
    """Layers over three maps in turn, each with the mask of its queries so far, and what the queries are in the end."""

    def __init__(
        self,
        dim: int,
        mask_dim: int,
        labels: int,
        *,
        layers: int,
        heads: int,
        inner: int,
        act: str,
        eps: float,
        pre_norm: bool,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MaskLayer(dim, heads, inner, act, eps, pre_norm) for _ in range(layers))
        self.shown = SHOWN
        self.norm = nn.LayerNorm(dim, eps)
        self.mask = Perceptron((dim, dim, dim, mask_dim))
        self.classifier = Linear(dim, labels + 1)

    def forward(
        self, x: Tensor, places: Tensor, maps: Sequence[tuple[Tensor, Tensor]], sizes: Sequence[Tensor], fine: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Queries and their positions (B, Q, C), keys and values (B, S, C) of each map, and the map of the masks.

        `sizes`: a tensor (B, C, H, W) of each map's size. Returns scores of classes (B, Q, labels + 1) and mask logits
        (B, Q, H, W) of the size of `fine`.
        """
        # A mask is interpolated linearly, so the map of which it is made may be: once for each size.
        coarse = [
            F.interpolate(fine, size=like.shape[2:], mode="bilinear", align_corners=False).flatten(2) for like in sizes
        ]
        for n, layer in enumerate(self.layers):
            key, value = maps[n % LEVELS]
            chances = (self.mask(self.norm(x)) @ coarse[n % LEVELS]).sigmoid()
            # A query whose mask is empty sees all of the map.
            shown = (chances >= self.shown) | (chances.amax(-1, keepdim=True) < self.shown)
            bias = torch.where(shown, torch.zeros_like(chances), torch.full_like(chances, hidden(x.dtype)))
            x = layer(x, places, key, value, bias.unsqueeze(1))
        x = self.norm(x)
        masks = self.mask(x) @ fine.flatten(2)
        return self.classifier(x), masks.reshape(x.shape[0], x.shape[1], fine.shape[2], fine.shape[3])


def merged(hub: str, canonical: str) -> tuple[Rule, ...]:
    """The rules of a `Between` that the Hub stores as torch's nn.MultiheadAttention."""
    parts = (
        Split(f"{hub}.in_proj_{leaf}", tuple(f"{canonical}.{name}.{leaf}" for name in "qkv"))
        for leaf in ("weight", "bias")
    )
    return (*parts, Rename(f"{hub}.out_proj", f"{canonical}.out"))


def apart(hub: str, canonical: str) -> tuple[Rule, ...]:
    """The rules of a `Between` that the Hub stores as four matrices."""
    return tuple(Rename(f"{hub}.{name}_proj", f"{canonical}.{name}") for name in ("q", "k", "v", "out"))
