"""Semantic operations: the few that every fast backend has as one kernel.

Each is a plain function with a plain torch body; that body is the ground truth. An exporter that wants one node per
operation registers its own operator for each name in `OPS` and installs it with `lowered_by` while it traces; then
the same call emits that node. Without a lowering (eager runs, TorchScript) the body runs.

Heads are packed: a tensor of H heads of size D is (B, T, H*D), head-major, as a projection leaves it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

_F = TypeVar("_F", bound=Callable[..., Any])
_lowering: ContextVar[Mapping[str, Callable[..., Any]] | None] = ContextVar("lowering", default=None)

OPS: dict[str, Callable[..., Any]] = {}
"""Name -> body, for exporters to register; every argument is a tensor, an int or a float, and positional."""


@contextmanager
def lowered_by(table: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Within this block (and thread) a call of a semantic operation goes to `table[name]` instead of its body."""
    token = _lowering.set(table)
    try:
        yield
    finally:
        _lowering.reset(token)


def semantic(body: _F) -> _F:
    name = body.__name__
    OPS[name] = body

    @wraps(body)
    def call(*args: Any) -> Any:
        table = _lowering.get()
        return body(*args) if table is None else table[name](*args)

    return call  # type: ignore[return-value]


@semantic
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square norm over the last axis, computed in float32 or wider. https://arxiv.org/abs/1910.07467

    Shapes: x (..., C), weight (C,) -> (..., C), in x's dtype.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * weight).to(x.dtype)


@semantic
def rotary(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Rotate the two halves of every head by an angle per position ("half-split", as the Hub stores it).

    Su et al. 2021, https://arxiv.org/abs/2104.09864. Shapes: x (B, T, heads*D), cos and sin (B, T, D/2) in x's dtype.
    """
    a, b = x.unflatten(-1, (heads, 2, -1)).unbind(-2)
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    return torch.stack((a * cos - b * sin, b * cos + a * sin), -2).flatten(-3)


@semantic
def attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, heads: int, kv_heads: int, scale: float, softcap: float
) -> Tensor:
    """Scaled dot-product attention with grouped heads and an additive bias; `softcap` 0 means none.

    Scores become softcap * tanh(scores / softcap) before the bias is added (Gemma 2, arXiv 2408.00118).
    Shapes: q (B, T, heads*D), k and v (B, S, kv_heads*D), bias (B, 1, T, S) in q's dtype -> (B, T, heads*D).
    """
    k, v = (x.unflatten(-1, (kv_heads, -1)).transpose(1, 2) for x in (k, v))
    return _attend(q, k, v, bias, heads, kv_heads, scale, softcap)


@semantic
def cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past_k: Tensor,
    past_v: Tensor,
    bias: Tensor,
    heads: int,
    kv_heads: int,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`attention` over a past of P slots and the T new ones; `bias` must hide the future (backends may assume it does).

    Shapes: q (B, T, heads*D), k and v (B, T, kv_heads*D), past (B, kv_heads, P, D), bias (B, 1, T, P+T)
    -> (B, T, heads*D), and key and value of shape (B, kv_heads, P+T, D).
    """
    k = torch.cat((past_k, k.unflatten(-1, (kv_heads, -1)).transpose(1, 2)), 2)
    v = torch.cat((past_v, v.unflatten(-1, (kv_heads, -1)).transpose(1, 2)), 2)
    return _attend(q, k, v, bias, heads, kv_heads, scale, softcap), k, v


def _attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, heads: int, kv_heads: int, scale: float, softcap: float
) -> Tensor:
    q = q.unflatten(-1, (heads, -1)).transpose(1, 2)
    if softcap == 0:
        out = F.scaled_dot_product_attention(q, k, v, bias, scale=scale, enable_gqa=kv_heads != heads)
    else:
        if kv_heads != heads:
            k, v = (x.repeat_interleave(heads // kv_heads, 1) for x in (k, v))
        scores = softcap * torch.tanh(q @ k.transpose(-1, -2) * scale / softcap) + bias
        wide = torch.promote_types(scores.dtype, torch.float32)
        out = torch.softmax(scores, -1, dtype=wide).to(q.dtype) @ v
    return out.transpose(1, 2).flatten(-2)
