"""Attention whose queries and keys, but not its values, are told their places."""

from __future__ import annotations

from torch import Tensor

from isoform.reference.modules.attention import Heads, Projections, attend
from isoform.reference.modules.layers import head_size


class PlacedAttention(Projections):
    """Queries of C channels attend to keys and values, which are given apart: what is compared has places."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, Heads(heads, heads, head_size(dim, heads)), bias=True, out_bias=True)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        """Shapes: query (B, T, C), key and value (B, S, C), bias (B, 1, 1 or T, S) -> (B, T, C)."""
        y: Tensor = self.out(attend(self.q(query), self.k(key), self.v(value), bias, self.heads))
        return y
