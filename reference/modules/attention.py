"""Attention layers over one body, `attend`, and the caches of keys and values that a decoder gives them.

Axis letters: B batch, T new positions, P cached positions, S slots that are attended to, C channels, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isoform.errors import CheckpointError
from isoform.reference.modules import ops
from isoform.reference.modules.layers import Linear, RMSNorm


@dataclass(frozen=True, slots=True)
class Heads:
    """`count` query heads of size `dim` over `kv` key and value heads; `scale` defaults to 1/sqrt(dim).

    `softcap` caps the scores (0: not). Raises CheckpointError where the query heads cannot share the others.
    """

    count: int
    kv: int
    dim: int
    scale: float | None = None
    softcap: float = 0.0

    def __post_init__(self) -> None:
        if self.count % self.kv:
            raise CheckpointError(
                f"config.json: {self.count} attention heads cannot share {self.kv} key and value heads"
            )

    @property
    def settings(self) -> tuple[int, int, float, float]:
        """The last arguments of `ops.attention`."""
        return self.count, self.kv, self.dim**-0.5 if self.scale is None else self.scale, self.softcap


class GrowingCache:
    """Keys and values of one layer, (B, kv_heads, P, D) each, which the new slots extend; the bias hides the future.

    `attend` puts what the step gives for them, (B, kv_heads, P+T, D) each, into `present`.
    """

    def __init__(self, key: Tensor, value: Tensor, switch: Tensor | None = None) -> None:
        self.past = key, value, switch
        self.present: tuple[Tensor, ...] = ()


class SwitchedCache(GrowingCache):
    """The same without padding: the future is hidden without a bias. While `switch` is off the past counts as empty."""


class EncoderStatesCache(GrowingCache):
    """Keys and values of the encoder states, (B, kv_heads, S, D) each, computed while `switch` is off, then kept.

    What a later step gives for them is empty.
    """


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    heads: Heads,
    cache: GrowingCache | None = None,
    projections: tuple[Linear, Linear] | None = None,
) -> Tensor:
    """`ops.attention` over a cache or none: q (B, T, heads*D), k and v (B, S or T, kv_heads*D) -> (B, T, heads*D).

    `bias` is (B or 1, 1 or heads, T or 1, slots): one for all heads, or one for each (relative positions). With an
    `EncoderStatesCache` k and v are the encoder states and `projections` the layers that make keys and values of them.
    """
    past = (None, None, None) if cache is None else cache.past
    layers = () if projections is None else projections
    weights: list[Tensor | None] = [tensor for layer in layers for tensor in (layer.weight, layer.bias)]
    y, key, value = ops.attention(q, k, v, bias, *past, *(weights or [None] * 4), *heads.settings)
    if cache is not None:
        cache.present = key, value
    return y


class Projections(nn.Module):
    """The four matrices of an attention layer. Keys and values come from `kv_dim` channels, or as many as queries.

    `k_bias` defaults to `bias`.
    """

    def __init__(
        self,
        dim: int,
        heads: Heads,
        *,
        kv_dim: int | None = None,
        bias: bool = False,
        k_bias: bool | None = None,
        out_bias: bool = False,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.q = Linear(dim, heads.count * heads.dim, bias)
        self.k = Linear(kv_dim or dim, heads.kv * heads.dim, bias if k_bias is None else k_bias)
        self.v = Linear(kv_dim or dim, heads.kv * heads.dim, bias)
        self.out = Linear(heads.count * heads.dim, dim, out_bias)


class Attention(Projections):
    """Self-attention, with optional norms on q and k, each head or `whole`, and optional rotary positions."""

    def __init__(
        self,
        dim: int,
        heads: Heads,
        *,
        bias: bool = False,
        k_bias: bool | None = None,
        out_bias: bool = False,
        norm_eps: float | None = None,
        whole: bool = False,
    ) -> None:
        super().__init__(dim, heads, bias=bias, k_bias=k_bias, out_bias=out_bias)
        if norm_eps is not None:
            self.q_norm = RMSNorm(heads.dim * (heads.count if whole else 1), norm_eps)
            self.k_norm = RMSNorm(heads.dim * (heads.kv if whole else 1), norm_eps)
        self.normed, self.whole = norm_eps is not None, whole

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`attend` without a cache. A call of the module is a place of its own in graphs and in bisection."""
        return self.attend(x, bias)

    def attend(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        cache: GrowingCache | None = None,
        angles: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Shapes: x (B, T, C), bias as in the function `attend`, angles (B, T, D/2) each -> (B, T, C)."""
        q, k, v = self.project(x, angles)
        out: Tensor = self.out(attend(q, k, v, bias, self.heads, cache))
        return out

    def project(self, x: Tensor, angles: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x, normed and rotated."""
        q, k, v = self.q(x), self.k(x), self.v(x)
        heads = self.heads
        if self.normed and self.whole:
            q, k = self.q_norm(q), self.k_norm(k)
        elif self.normed:
            q = self.q_norm(q.unflatten(-1, (heads.count, heads.dim))).flatten(-2)
            k = self.k_norm(k.unflatten(-1, (heads.kv, heads.dim))).flatten(-2)
        if angles is not None:
            q, k = ops.rotary(q, *angles, heads.count), ops.rotary(k, *angles, heads.kv)
        return q, k, v


class MergedAttention(nn.Module):
    """Self-attention with rotary positions whose q, k and v are one matrix, over shared key and value heads."""

    def __init__(self, dim: int, heads: Heads, *, bias: bool = False, out_bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(dim, (heads.count + 2 * heads.kv) * heads.dim, bias)
        self.out = Linear(heads.count * heads.dim, dim, out_bias)

    def attend(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        cache: GrowingCache | None = None,
        angles: tuple[Tensor, Tensor] | None = None,
        window: int | None = None,
    ) -> Tensor:
        """As `Attention.attend`. With a `window`, to both sides of every token, the bias is `ops.local_bias`."""
        heads = self.heads
        q, k, v = self.qkv(x).split([count * heads.dim for count in (heads.count, heads.kv, heads.kv)], -1)
        if angles is not None:
            q, k = ops.rotary(q, *angles, heads.count), ops.rotary(k, *angles, heads.kv)
        if window is None or bias is None:
            y = attend(q, k, v, bias, heads, cache)
        else:
            y = ops.local_attention(q, k, v, bias, window, heads.count, heads.settings[2])
        out: Tensor = self.out(y)
        return out


class PackedAttention(nn.Module):
    """Self-attention whose q, k and v are one matrix, as the checkpoint has it."""

    def __init__(self, dim: int, heads: Heads) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(dim, 3 * heads.count * heads.dim)
        self.out = Linear(heads.count * heads.dim, dim)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`attend` without a cache."""
        return self.attend(x, bias)

    def attend(self, x: Tensor, bias: Tensor | None = None, cache: GrowingCache | None = None) -> Tensor:
        """Shapes: x (B, T, C), bias as in the function `attend` -> (B, T, C)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, -1)).unbind(-2)
        y: Tensor = self.out(attend(q, k, v, bias, self.heads, cache))
        return y


class CrossAttention(Projections):
    """Attention to encoder states."""

    def attend(
        self, x: Tensor, states: Tensor, bias: Tensor | None = None, cache: EncoderStatesCache | None = None
    ) -> Tensor:
        """Shapes: x (B, T, C), encoder states (B, S, M), bias (B or 1, 1 or heads, T or 1, S) -> (B, T, C)."""
        q = self.q(x)
        if cache is None:
            y = attend(q, self.k(states), self.v(states), bias, self.heads)
        else:
            y = attend(q, states, states, bias, self.heads, cache, (self.k, self.v))
        out: Tensor = self.out(y)
        return out

    def weights(self, x: Tensor, states: Tensor, heads: Sequence[int]) -> Tensor:
        """The attention weights of some heads: x (B, T, C), states (B, S, M) -> (B, heads, T, S), softmax over S."""
        count, kv, scale, _ = self.heads.settings
        q = self.q(x).unflatten(-1, (count, -1)).transpose(1, 2)
        k = self.k(states).unflatten(-1, (kv, -1)).transpose(1, 2)
        shared = count // kv
        scores = [q[:, n] @ k[:, n // shared].transpose(-1, -2) for n in heads]
        return torch.softmax(torch.stack(scores, 1) * scale, -1)


@dataclass(frozen=True, slots=True)
class DecoderStep:
    """One step of a decoder that attends to encoder states: the caches of its layers, and the positions (T,)."""

    caches: tuple[tuple[SwitchedCache, EncoderStatesCache], ...]
    positions: Tensor

    @classmethod
    def begin(
        cls, input_ids: Tensor, states: Tensor, given: Sequence[Tensor], layers: int, heads: Heads
    ) -> DecoderStep:
        """`given`: four tensors per layer and the switch, as the signature has them; nothing for an empty past.

        Shapes: input_ids (B, T), states (B, S, M).
        """
        if not given:
            empty = states.new_zeros(input_ids.shape[0], heads.kv, 0, heads.dim)
            given = [empty] * (4 * layers) + [torch.zeros(1, dtype=torch.bool, device=input_ids.device)]
        *past, switch = given
        start = switch.to(torch.int64).squeeze(0) * past[0].shape[2]
        positions = torch.arange(input_ids.shape[1], device=input_ids.device) + start
        caches = tuple(
            (SwitchedCache(past[n], past[n + 1], switch), EncoderStatesCache(past[n + 2], past[n + 3], switch))
            for n in range(0, 4 * layers, 4)
        )
        return cls(caches, positions)

    @property
    def present(self) -> tuple[Tensor, ...]:
        """What the step gives for the past, in the signature's order, after every layer has run."""
        return tuple(tensor for pair in self.caches for cache in pair for tensor in cache.present)
