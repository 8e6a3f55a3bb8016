"""Attention for the CPU: over caches that are extended in place, and in blocks whose products oneDNN takes in bf16."""

from __future__ import annotations

from collections.abc import Callable
from math import frexp
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from isoform.reference.modules import ops
from isoform.runtimes.backends.torch.linear import PackedLinear
from isoform.runtimes.backends.torch.spread import by_rows

Arguments = ops.AttentionArguments[Any]
Result = tuple[Tensor, Tensor, Tensor]
Lowering = Callable[..., Any]

SCORES = 2**20  # of a block: two bytes each, so that they stay in the cache of a core
SMALLEST = 16  # queries of a block
FEW = 16  # queries that share a key head, up to which they are rows of one product


def in_place(attention: Lowering) -> Lowering:
    """`attention` whose growing past is a view (B, kv_heads, P, D) of a buffer (B, capacity, kv_heads, D)."""

    def attend(*arguments: Any) -> Result:
        a: Arguments = ops.AttentionArguments(*arguments)
        if a.past_k is None or a.past_v is None or a.switch is not None:
            result: Result = attention(*arguments)
            return result
        if isinstance(attention, BlockAttention) and (one := attention.one_query(a)) is not None:
            return one, a.past_k, a.past_v
        k, v = _append(a.past_k, a.k), _append(a.past_v, a.v)
        out, _, _ = attention(*a._replace(k=k, v=v, past_k=None, past_v=None))
        return out, a.past_k, a.past_v

    return attend


def _append(past: Tensor, new: Tensor) -> Tensor:
    """Write new slots (B, T, H*D) behind the past in its buffer -> all slots (B, P+T, H*D), a view."""
    past = past.transpose(1, 2)
    batch, slots, heads, dim = past.shape
    whole = past.as_strided((batch, slots + new.shape[1], heads, dim), past.stride())
    whole[:, slots:] = new.unflatten(-1, (heads, dim))
    return whole.flatten(2)


class BlockAttention:
    """`ops.attention` of one pass: few queries through torch's fused kernel, many in blocks that skip the future.

    All layers of a pass share their biases, so that what one hides is looked up once: nothing, the future, or more.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, str]] = {}

    def __call__(self, *arguments: Any) -> Result:
        a: Arguments = ops.AttentionArguments(*arguments)
        k, v, new_k, new_v = _slots(a)
        q, bias, shape = a.q, a.bias, a.q.shape
        if a.k_weight is not None and bias is None:  # rows that share encoder states can be one
            q = q.reshape(k.shape[0], -1, shape[-1])
        if bias is not None and a.switch is not None and a.k_weight is None:
            bias = bias[..., bias.shape[-1] - k.shape[2] :]
        q = q.unflatten(-1, (a.heads, -1)).transpose(1, 2)
        causal = a.switch is not None and a.k_weight is None and q.shape[2] > 1
        if a.softcap != 0:
            out = _capped(q, k, v, bias, causal, a.scale, a.softcap)
        else:
            out = self._attend(q, k, v, bias, causal, a.scale)
        return out.transpose(1, 2).flatten(-2).reshape(shape), new_k, new_v

    def one_query(self, a: Arguments) -> Tensor | None:
        """Of one new slot over a cache in a buffer, by a kernel that extends it; None where that does not serve."""
        if a.q.shape[1] != 1 or a.softcap != 0 or a.q.dtype != torch.bfloat16:
            return None
        bias = a.bias
        if bias is not None and self._hidden(bias, 1) == "nothing":
            bias = None
        if bias is not None and (bias.shape[1] != 1 or bias.dtype != a.q.dtype or bias.stride(3) != 1):
            return None
        return _one_query(a, bias)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, scale: float) -> Tensor:
        """Shapes: q (B, H, T, D), k and v (B, KV, S, D) -> (B, H, T, D). `causal` hides the future besides the bias."""
        hides = "nothing" if bias is None else self._hidden(bias, q.shape[2])
        if hides != "more":
            bias, causal = None, causal or hides == "future"
        batch, heads, length, dim = q.shape
        shared = heads // k.shape[1]
        if length == 1 and shared <= FEW and (bias is None or bias.shape[1] == 1):
            grouped = q.reshape(batch, k.shape[1], shared, dim)
            return F.scaled_dot_product_attention(grouped, k, v, bias, scale=scale).reshape(q.shape)
        return _blocks(q, k, v, bias, causal, scale)

    def _hidden(self, bias: Tensor, length: int) -> str:
        """What a bias hides from `length` queries: "nothing", the "future" of those at the end, or "more"."""
        found = self._known.get(id(bias))
        if found is None or found[0] is not bias:
            found = self._known[id(bias)] = bias, _hides(bias, length)
        return found[1]


def _one_query(a: Arguments, bias: Tensor | None) -> Tensor:
    from isoform.runtimes.backends.torch.kernels.one_query import attend_one

    (q, q_row), (k, k_row), (v, v_row) = (_first(x) for x in (a.q, a.k, a.v))
    past_k, past_v = cast(Tensor, a.past_k), cast(Tensor, a.past_v)
    slots, dim, row = past_k.shape[2], past_k.shape[3], past_k.stride(0)
    sizes = a.heads, a.kv_heads, dim, a.scale
    hidden, bias_row = (0, 0) if bias is None else (bias.data_ptr(), bias.stride(0) if bias.shape[0] > 1 else 0)
    keys, values = past_k.data_ptr(), past_v.data_ptr()
    rows, width, made = a.q.shape[0], a.heads * dim, torch.empty_like(a.q, memory_format=torch.contiguous_format)
    out = made.data_ptr()

    def some(n: int, count: int) -> None:
        given = q + 2 * n * q_row, q_row, k + 2 * n * k_row, k_row, v + 2 * n * v_row, v_row
        cache = keys + 2 * n * row, values + 2 * n * row, row, slots
        attend_one(*given, *cache, hidden and hidden + 2 * n * bias_row, bias_row, count, *sizes, out + 2 * n * width)

    by_rows(rows, rows * (slots + 1) * width, some)
    return made


def _first(x: Tensor) -> tuple[int, int]:
    """The address of x (B, 1, C), and what lies between its rows."""
    x = x if x.stride(2) == 1 else x.contiguous()
    return x.data_ptr(), x.stride(0)


def _hides(bias: Tensor, length: int) -> str:
    if bias.shape[1] != 1:
        return "more"
    hidden = bias != 0
    if not bool(hidden.any()):
        return "nothing"
    if bias.shape[2] != length or length == 1:
        return "more"
    slots = bias.shape[3]
    future = torch.ones((length, slots), dtype=torch.bool, device=bias.device).triu(slots - length + 1)
    if not torch.equal(hidden, future.expand_as(hidden)):
        return "more"
    return "future" if bool((bias.amin() < LOW) & ((bias == 0) | (bias < LOW)).all()) else "more"


LOW = -1e4  # what hides a score is far below this


def _slots(a: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The keys and values that are attended to, and those that the step gives, (B, kv_heads, slots, D) each."""
    if a.past_k is None or a.past_v is None:
        k, v = _split(a.k, a.kv_heads), _split(a.v, a.kv_heads)
        return k, v, k, v
    past_k, past_v = a.past_k, a.past_v
    on = a.switch is None or bool(a.switch)
    if a.k_weight is not None:
        if on:
            return past_k, past_v, past_k[:, :, :0], past_v[:, :, :0]
        k = _split(_projected(a.k, a.k_weight, a.k_bias), a.kv_heads)
        v = _split(_projected(a.v, a.v_weight, a.v_bias), a.kv_heads)
        return k, v, k, v
    if not on:
        past_k, past_v = past_k[:, :, :0], past_v[:, :, :0]
    k = torch.cat((past_k, _split(a.k, a.kv_heads)), 2)
    v = torch.cat((past_v, _split(a.v, a.kv_heads)), 2)
    return k, v, k, v


def _projected(x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
    """`weight` is a matrix, or the packed layer that stands for it."""
    y: Tensor = weight(x) if isinstance(weight, PackedLinear) else F.linear(x, weight, bias)
    return y


def _split(x: Tensor, heads: int) -> Tensor:
    """(B, T, heads*D) -> (B, heads, T, D)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _blocks(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, scale: float) -> Tensor:
    """Some queries after others, so that their scores stay in the cache, over the keys that they may see."""
    batch, heads, length, dim = q.shape
    kv, slots = k.shape[1:3]
    if exact := frexp(scale)[0] == 0.5:  # a power of two, by which q is as good multiplied as the scores
        q = q * scale
    q = q.reshape(batch, kv, heads // kv, length, dim)
    k, v = k.reshape(batch * kv, slots, dim), v.reshape(batch * kv, slots, v.shape[-1])
    k = k.transpose(1, 2)
    size = max(SCORES // (batch * heads * slots), SMALLEST)
    out = q.new_empty(batch, heads, length, v.shape[-1])
    for start in range(0, length, size):
        end = min(start + size, length)
        count, seen = end - start, slots - length + end if causal else slots
        part = q[:, :, :, start:end].reshape(batch * kv, -1, dim)
        scores = torch.bmm(part, k[:, :, :seen]).view(batch, heads, count, seen)
        if not exact:
            scores *= scale
        if causal and count > 1:
            scores[..., seen - count :].add_(_future(count, q.dtype))
        if bias is not None:
            scores += bias[..., slice(start, end) if bias.shape[2] == length else slice(None), :seen]
        weights = torch.softmax(scores, -1).view(batch * kv, -1, seen)
        out[:, :, start:end] = torch.bmm(weights, v[:, :seen]).view(batch, heads, count, -1)
    return out


def _future(count: int, dtype: torch.dtype) -> Tensor:
    """What hides the future of `count` queries from each other, (count, count)."""
    return torch.full((count, count), float("-inf"), dtype=dtype).triu(1)


def _capped(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, scale: float, softcap: float) -> Tensor:
    """With scores that a tanh caps, as the body of `ops.attention` computes them."""
    length, slots, shared = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    scores = softcap * torch.tanh(q @ k.transpose(-1, -2) * scale / softcap)
    if bias is not None:
        scores = scores + bias
    if causal:
        scores[..., slots - length :] += _future(length, scores.dtype)
    return torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype) @ v
