"""Semantic operations: the few that every fast backend has as one kernel.

Each is a plain function with a plain torch body; that body is the ground truth. An exporter that wants one node per
operation registers its own operator for each name in `OPS` and installs it with `lowered_by` while it traces; then
the same call emits that node. Without a lowering (eager runs, TorchScript) the body runs.

Heads are packed: a tensor of H heads of size D is (B, T, H*D), head-major, as a projection leaves it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

_F = TypeVar("_F", bound=Callable[..., Any])
_lowering: ContextVar[Mapping[str, Callable[..., Any]] | None] = ContextVar("lowering", default=None)

OPS: dict[str, Callable[..., Any]] = {}
"""Name -> body, for exporters to register; every argument is a tensor (or None), an int or a float, and positional."""


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
def partial_rotary(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Rotate neighbouring channels by an angle per position, of every head as many as there are angles for.

    Shapes: x (B, T, heads*D), cos and sin (B, T, R) in x's dtype, 2 R at most D.
    """
    each = x.unflatten(-1, (heads, -1))
    count = 2 * cos.shape[-1]
    a, b = each[..., 0:count:2], each[..., 1:count:2]
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    rotated = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    return torch.cat((rotated, each[..., count:]), -1).flatten(-2)


@semantic
def attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, heads: int, kv_heads: int, scale: float, softcap: float
) -> Tensor:
    """Scaled dot-product attention with grouped heads and an additive bias, if any; `softcap` 0 means none.

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


@semantic
def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past_k: Tensor,
    past_v: Tensor,
    use_cache: Tensor,
    heads: int,
    kv_heads: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`cached_attention` of slots that stand one after another, none of them padding; the future is hidden.

    While `use_cache` (bool, of one value) is false, the past counts as empty. Shapes and results as there.
    """
    return _branch(_causal)(q, k, v, past_k, past_v, use_cache, heads, kv_heads, scale)


@semantic
def cross_attention(
    q: Tensor,
    memory: Tensor,
    k_weight: Tensor,
    k_bias: Tensor | None,
    v_weight: Tensor,
    v_bias: Tensor | None,
    past_k: Tensor,
    past_v: Tensor,
    use_cache: Tensor,
    bias: Tensor | None,
    heads: int,
    kv_heads: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention to a memory, whose keys and values are computed once.

    While `use_cache` (bool, of one value) is false, they are projected from `memory` and returned; then they are taken
    from the past, and what is returned for them is empty.
    Shapes: q (B, T, heads*D), memory (B, S, M), weights (kv_heads*D, M), past (B, kv_heads, S, D), bias (B, 1, 1, S)
    -> (B, T, heads*D), and key and value of shape (B, kv_heads, S or 0, D). Without a bias the past may have B/n rows,
    each of which n rows of q share that stand side by side, as beams do.
    """
    attend = _branch(_cross)
    return attend(
        q, memory, k_weight, k_bias, v_weight, v_bias, past_k, past_v, use_cache, bias, heads, kv_heads, scale
    )


def _branch(body: _F) -> _F:
    """`body`, or its script while torch traces: a trace follows one side of an `if`, a script keeps both."""
    return _scripted(body) if torch._C._is_tracing() else body


@cache
def _scripted(body: Callable[..., Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there is no other writer of this format
        return torch.jit.script(body)


def _causal(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past_k: Tensor,
    past_v: Tensor,
    use_cache: Tensor,
    heads: int,
    kv_heads: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    if not bool(use_cache):
        past_k, past_v = past_k[:, :, :0], past_v[:, :, :0]
    k = torch.cat((past_k, k.unflatten(-1, (kv_heads, -1)).transpose(1, 2)), 2)
    v = torch.cat((past_v, v.unflatten(-1, (kv_heads, -1)).transpose(1, 2)), 2)
    length, slots = q.shape[1], k.shape[2]
    q = q.unflatten(-1, (heads, -1)).transpose(1, 2)
    if length == 1:
        out = F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=kv_heads != heads)
    else:
        seen = torch.ones((length, slots), dtype=torch.bool, device=q.device).tril(slots - length)
        out = F.scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=kv_heads != heads)
    return out.transpose(1, 2).flatten(-2), k, v


def _cross(
    q: Tensor,
    memory: Tensor,
    k_weight: Tensor,
    k_bias: Tensor | None,
    v_weight: Tensor,
    v_bias: Tensor | None,
    past_k: Tensor,
    past_v: Tensor,
    use_cache: Tensor,
    bias: Tensor | None,
    heads: int,
    kv_heads: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    if bool(use_cache):
        k, v = past_k, past_v
        new_k, new_v = past_k[:, :, :0], past_v[:, :, :0]
    else:
        k = F.linear(memory, k_weight, k_bias).unflatten(-1, (kv_heads, -1)).transpose(1, 2)
        v = F.linear(memory, v_weight, v_bias).unflatten(-1, (kv_heads, -1)).transpose(1, 2)
        new_k, new_v = k, v
    shape = q.shape
    if bias is None:
        q = q.reshape(k.shape[0], -1, shape[-1])  # nothing is hidden from a query, so rows can be one
    q = q.unflatten(-1, (heads, -1)).transpose(1, 2)
    out = F.scaled_dot_product_attention(q, k, v, bias, scale=scale, enable_gqa=kv_heads != heads)
    return out.transpose(1, 2).flatten(-2).reshape(shape), new_k, new_v


def _attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, heads: int, kv_heads: int, scale: float, softcap: float
) -> Tensor:
    q = q.unflatten(-1, (heads, -1)).transpose(1, 2)
    if softcap == 0:
        out = F.scaled_dot_product_attention(q, k, v, bias, scale=scale, enable_gqa=kv_heads != heads)
    else:
        if kv_heads != heads:
            k, v = (x.repeat_interleave(heads // kv_heads, 1) for x in (k, v))
        scores = softcap * torch.tanh(q @ k.transpose(-1, -2) * scale / softcap)
        scores = scores if bias is None else scores + bias
        wide = torch.promote_types(scores.dtype, torch.float32)
        out = torch.softmax(scores, -1, dtype=wide).to(q.dtype) @ v
    return out.transpose(1, 2).flatten(-2)
