"""Attention that knows how far apart two positions are: a bias by distance, and disentangled attention.

Axis letters: B batch, T positions, H heads, D head size, C channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isoform.reference.modules.attention import Heads, Projections, attend
from isoform.reference.modules.layers import Linear


class DistanceTable(nn.Module):
    """A number for every distance from -far to far, which goes on beyond them: what `numbers` has, of shape (2·far+1,).

    The numbers are computed once, because a logarithm that a backend rounds another way falls into another bucket.
    """

    numbers: Tensor

    def __init__(self, numbers: Tensor) -> None:
        super().__init__()
        self.register_buffer("numbers", numbers, persistent=False)
        self.far = len(numbers) // 2

    def forward(self, length: int, past: int = 0) -> Tensor:
        """For queries i and keys j, `past` of them before the first query, the number of j - i: int64 (T, P+T)."""
        queries = torch.arange(length, device=self.numbers.device)
        keys = torch.arange(length + past, device=self.numbers.device) - past
        distances = keys.unsqueeze(0) - queries.unsqueeze(1)
        table = self.numbers.unsqueeze(0).expand(distances.shape[0], -1)
        return table.gather(1, distances.clamp(-self.far, self.far) + self.far)


def two_sided_buckets(count: int, farthest: int = 128) -> Tensor:
    """T5's buckets, one half for each direction: the near distances alone, the far ones on a logarithmic scale.

    Raffel et al. 2019, https://arxiv.org/abs/1910.10683. `count` buckets in all. Shape (2·farthest+1,), int64.
    """
    half, exact = count // 2, count // 4
    distances = torch.arange(-farthest, farthest + 1, device="cpu")
    size = distances.abs()
    scaled = torch.log(size.clamp(min=1).float() / exact) / math.log(farthest / exact) * (half - exact)
    large = (exact + scaled.to(torch.int64)).clamp(max=half - 1)
    return torch.where(size < exact, size, large) + (distances > 0) * half


def one_sided_buckets(count: int, farthest: int = 128) -> Tensor:
    """T5's buckets of a decoder, whose keys are not behind the query: all of them for the one direction.

    Raffel et al. 2019, https://arxiv.org/abs/1910.10683. A key behind the query counts as at its place. Shape
    (2·farthest+1,), int64.
    """
    exact = count // 2
    size = (-torch.arange(-farthest, farthest + 1, device="cpu")).clamp(min=0)
    scaled = torch.log(size.clamp(min=1).float() / exact) / math.log(farthest / exact) * (count - exact)
    large = (exact + scaled.to(torch.int64)).clamp(max=count - 1)
    return torch.where(size < exact, size, large)


def log_buckets(buckets: int, farthest: int) -> Tensor:
    """DeBERTa's buckets of query minus key, by key minus query: the near distances alone, the far ones by logarithm.

    He et al. 2021, https://arxiv.org/abs/2111.09543. Numbers from 0 to 2·buckets-1, of which `buckets` is distance 0.
    Without buckets (0) every distance up to `farthest` has a number of its own. int64 of an odd length.
    """
    span = buckets or farthest
    reach = max(farthest, span) + span
    while True:
        distances = torch.arange(-reach, reach + 1, device="cpu")  # key minus query
        places = -distances
        if buckets:
            middle, size = buckets // 2, distances.abs()
            slope = torch.log(torch.tensor((farthest - 1) / middle, device="cpu"))
            far = torch.ceil(torch.log(size.clamp(min=1) / middle) / slope * (middle - 1)) + middle
            places = torch.where(size <= middle, places, (far * places.sign()).to(torch.int64))
        if int(places[0]) >= span or reach > 2**24:
            return (places + span).clamp(0, 2 * span - 1)
        reach *= 2


@dataclass(frozen=True, slots=True)
class Disentangled:
    """Which scores by distance are added: of the query's content with the key's distance, and the other way round.

    With `shared` the projections of the content serve the distances too.
    """

    content_to_place: bool
    place_to_content: bool
    shared: bool

    @property
    def terms(self) -> int:
        """How many scores are added up, that of the contents among them."""
        return 1 + self.content_to_place + self.place_to_content


class DisentangledAttention(Projections):
    """Attention over contents and distances. He et al. 2020, https://arxiv.org/abs/2006.03654."""

    def __init__(self, dim: int, heads: Heads, kind: Disentangled, relative: bool) -> None:
        super().__init__(dim, heads, bias=True, out_bias=True)
        self.kind, self.relative = kind, relative
        width = heads.count * heads.dim
        if relative and not kind.shared:
            if kind.content_to_place:
                self.place_k = Linear(dim, width)
            if kind.place_to_content:
                self.place_q = Linear(dim, width)

    def forward(self, x: Tensor, bias: Tensor, table: Tensor | None = None, places: Tensor | None = None) -> Tensor:
        """Shapes: x (B, T, C), bias (B, 1, 1, T), table (places, C), places (T, T) of rows of it -> (B, T, C)."""
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.relative and self.kind.terms > 1:
            assert table is not None and places is not None
            bias = bias + self._by_distance(q, k, table, places) * self._scale
        out: Tensor = self.out(attend(q, k, v, bias, self._scaled))
        return out

    @property
    def _scale(self) -> float:
        return (self.heads.dim * self.kind.terms) ** -0.5

    @property
    def _scaled(self) -> Heads:
        return Heads(self.heads.count, self.heads.kv, self.heads.dim, self._scale)

    def _by_distance(self, q: Tensor, k: Tensor, table: Tensor, places: Tensor) -> Tensor:
        """The scores (B, H, T, T) that depend on where a key is."""
        scores: list[Tensor] = []
        if self.kind.content_to_place:
            keys = self._columns((self.k if self.kind.shared else self.place_k)(table))
            scores.append(_picked(self._rows(q) @ keys, places))
        if self.kind.place_to_content:
            queries = self._columns((self.q if self.kind.shared else self.place_q)(table))
            scores.append(_picked(self._rows(k) @ queries, places.transpose(0, 1)).transpose(-1, -2))
        return scores[0] if len(scores) == 1 else scores[0] + scores[1]

    def _rows(self, x: Tensor) -> Tensor:
        """(B, T, H*D) -> (B, H, T, D)."""
        return x.unflatten(-1, (self.heads.count, -1)).transpose(1, 2)

    def _columns(self, x: Tensor) -> Tensor:
        """(places, H*D) -> (H, D, places)."""
        return x.unflatten(-1, (self.heads.count, -1)).permute(1, 2, 0)


def _picked(scores: Tensor, places: Tensor) -> Tensor:
    """Of scores (B, H, T, all places) those at `places` (T, T): (B, H, T, T)."""
    return scores.gather(-1, places.expand(scores.shape[0], scores.shape[1], -1, -1))
