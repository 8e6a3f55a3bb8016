"""Attention, over new slots, over a KV cache that grows, and over encoder states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from isoform.errors import UnsupportedExport
from isoform.exporters.onnx.graph import MICROSOFT, Graph, Value
from isoform.exporters.onnx.operators.operands import Lowering, Types
from isoform.exporters.tracing import Type
from isoform.signature import LENGTH, TOTAL, Axis


def whole_bias(graph: Graph, q: Value, bias: Value) -> Value:
    """A bias with a row per query: no kernel broadcasts along the queries."""
    shape = bias.type.shape
    return graph.expand(bias, (*shape[:2], q.type.shape[1], shape[3]))


def grouped_query_attention(
    graph: Graph,
    out: Types,
    q: Value,
    k: Value,
    v: Value,
    past_k: Value,
    past_v: Value,
    bias: Value,
    heads: int,
    kv_heads: int,
    scale: float,
    softcap: float,
) -> tuple[Value, ...]:
    """The kernel's own mask is causal by slot and as long as the longest row; padding is the bias' affair alone.

    The soft-cap comes before the bias, as in the reference. `seqlens_k` is the last slot of every row.
    The kernel takes heads of a multiple of 8 channels only; on the CPU it refuses several new tokens in several rows
    after a past (a runtime feeds those row by row).
    """
    batch, total, dim = q.type.shape[0], bias.type.shape[3], past_k.type.shape[3]
    if not isinstance(dim, int) or dim % 8:
        return portable_attention(graph, out, q, k, v, bias, heads, kv_heads, scale, softcap, (past_k, past_v))
    int32, scope, graph.scope = torch.int32, graph.scope, ""
    slots = graph.cast(graph.shape([total]), int32)
    last = graph.one("Sub", (slots, graph.number(1, int32)), slots.type)
    lengths = graph.expand(last, (batch,))
    count = graph.one("Squeeze", (slots,), Type(int32, ()))
    graph.scope = scope
    inputs = (q, k, v, past_k, past_v, lengths, count, None, None, None, whole_bias(graph, q, bias))
    settings = {"num_heads": heads, "kv_num_heads": kv_heads, "scale": scale, "softcap": softcap, "do_rotary": 0}
    return graph.op("GroupQueryAttention", inputs, *out, domain=MICROSOFT, attributes=settings)


def standard_attention(
    graph: Graph,
    out: Types,
    q: Value,
    k: Value,
    v: Value,
    bias: Value | None,
    heads: int,
    kv_heads: int,
    scale: float,
    softcap: float,
    past: tuple[Value, ...] = (),
) -> tuple[Value, ...]:
    """ONNX' Attention. It may not soft-cap: opset 23 leaves open whether the cap comes before or after the bias."""
    settings = {"q_num_heads": heads, "kv_num_heads": kv_heads, "scale": scale}
    mask = None if bias is None else whole_bias(graph, q, bias)
    return graph.op("Attention", (q, k, v, mask, *past), *out, attributes=settings)


def plain_attention(
    graph: Graph,
    out: Types,
    q: Value,
    k: Value,
    v: Value,
    bias: Value | None,
    heads: int,
    kv_heads: int,
    scale: float,
    softcap: float,
    past: tuple[Value, ...] = (),
) -> tuple[Value, ...]:
    """The reference body, step by step, with softmax in float32. Heads that share a key are an axis of their own."""
    dtype, (batch, length, width) = q.type.dtype, q.type.shape
    if not isinstance(width, int):
        raise UnsupportedExport(f"{graph.scope}: attention over {width} channels; the width must be fixed")
    dim, groups, slots = width // heads, heads // kv_heads, k.type.shape[1] if bias is None else bias.type.shape[3]

    def op(kind: str, inputs: Sequence[Value], *shape: Axis, **attributes: Any) -> Value:
        return graph.one(kind, inputs, Type(dtype, shape), **attributes)

    def split(x: Value, *parts: int) -> Value:
        return graph.reshape(x, Type(dtype, (batch, x.type.shape[1], *parts, dim)))

    query = op("Transpose", (split(q, kv_heads, groups),), batch, kv_heads, groups, length, dim, perm=[0, 2, 3, 1, 4])
    cache = [
        op("Transpose", (split(x, kv_heads),), batch, kv_heads, x.type.shape[1], dim, perm=[0, 2, 1, 3]) for x in (k, v)
    ]
    if past:
        cache = [op("Concat", pair, batch, kv_heads, slots, dim, axis=2) for pair in zip(past, cache, strict=True)]
    key, value = (op("Unsqueeze", (x, graph.indices(2)), batch, kv_heads, 1, slots, dim) for x in cache)
    key = op("Transpose", (key,), batch, kv_heads, 1, dim, slots, perm=[0, 1, 2, 4, 3])
    sizes = (batch, kv_heads, groups, length, slots)
    scores = op("MatMul", (query, key), *sizes)
    scores = op("Mul", (scores, graph.number(scale / softcap if softcap else scale, dtype)), *sizes)
    if softcap:
        scores = op("Mul", (op("Tanh", (scores,), *sizes), graph.number(softcap, dtype)), *sizes)
    if bias is not None:
        hide = op("Unsqueeze", (bias, graph.indices(2)), batch, 1, 1, bias.type.shape[2], slots)
        scores = op("Add", (scores, hide), *sizes)
    scores = graph.cast(scores, torch.float32)
    weights = graph.cast(graph.one("Softmax", (scores,), scores.type, axis=-1), dtype)
    mixed = op("MatMul", (weights, value), batch, kv_heads, groups, length, dim)
    mixed = op("Transpose", (mixed,), batch, length, kv_heads, groups, dim, perm=[0, 3, 1, 2, 4])
    return graph.reshape(mixed, out[0]), *(cache if past else ())


def runtime_attention(
    graph: Graph,
    out: Types,
    q: Value,
    k: Value,
    v: Value,
    bias: Value | None,
    heads: int,
    kv_heads: int,
    scale: float,
    cap: float,
) -> tuple[Value, ...]:
    """On the CPU provider Attention is a third faster in float32, MultiHeadAttention twice as fast in float16.

    Without a bias MultiHeadAttention keeps no table of scores.
    """
    if (q.type.dtype == torch.float16 or bias is None) and heads == kv_heads and not cap:
        inputs = (q, k, v, None, None, None if bias is None else whole_bias(graph, q, bias))
        settings = {"num_heads": heads, "scale": scale}
        return graph.op("MultiHeadAttention", inputs, *out, domain=MICROSOFT, attributes=settings)
    return portable_attention(graph, out, q, k, v, bias, heads, kv_heads, scale, cap)


def portable_attention(
    graph: Graph,
    out: Types,
    q: Value,
    k: Value,
    v: Value,
    bias: Value | None,
    heads: int,
    kv_heads: int,
    scale: float,
    softcap: float,
    past: tuple[Value, ...] = (),
) -> tuple[Value, ...]:
    lower = plain_attention if softcap else standard_attention
    return lower(graph, out, q, k, v, bias, heads, kv_heads, scale, softcap, past)


def portable_cached_attention(
    graph: Graph,
    out: Types,
    q: Value,
    k: Value,
    v: Value,
    past_k: Value,
    past_v: Value,
    bias: Value,
    heads: int,
    kv_heads: int,
    scale: float,
    softcap: float,
) -> tuple[Value, ...]:
    return portable_attention(graph, out, q, k, v, bias, heads, kv_heads, scale, softcap, (past_k, past_v))


def runtime_causal_attention(
    graph: Graph,
    out: Types,
    q: Value,
    k: Value,
    v: Value,
    past_k: Value,
    past_v: Value,
    use_cache: Value,
    heads: int,
    kv_heads: int,
    scale: float,
) -> tuple[Value, ...]:
    """The kernel hides the future by itself. It takes the whole past or none of it, so a branch chooses."""
    dim = past_k.type.shape[3]
    if not isinstance(dim, int) or dim % 8:
        return portable_causal_attention(graph, out, q, k, v, past_k, past_v, use_cache, heads, kv_heads, scale)
    int32, types = torch.int32, _with_present(out, past_k)
    settings = {"num_heads": heads, "kv_num_heads": kv_heads, "scale": scale, "do_rotary": 0}

    def over(slots: Value, *past: Value | None) -> tuple[Value, ...]:
        scope, graph.scope = graph.scope, ""
        slots = graph.cast(slots, int32)
        last = graph.one("Sub", (slots, graph.number(1, int32)), slots.type)
        lengths = graph.expand(last, (q.type.shape[0],))
        count = graph.one("Squeeze", (slots,), Type(int32, ()))
        graph.scope = scope
        return graph.op(
            "GroupQueryAttention", (q, k, v, *past, lengths, count), *types, domain=MICROSOFT, attributes=settings
        )

    new, old = (graph.shape([x]) for x in (q.type.shape[1], past_k.type.shape[2]))
    both = graph.one("Add", (old, new), new.type)
    return graph.branch(use_cache, lambda: over(both, past_k, past_v), lambda: over(new, None, None))


def portable_causal_attention(
    graph: Graph,
    out: Types,
    q: Value,
    k: Value,
    v: Value,
    past_k: Value,
    past_v: Value,
    use_cache: Value,
    heads: int,
    kv_heads: int,
    scale: float,
) -> tuple[Value, ...]:
    int64, scope, graph.scope = torch.int64, graph.scope, ""
    used, slots = _used(graph, past_k, use_cache), _all_slots(graph, q, past_k, use_cache)
    zero, one = graph.number(0, int64), graph.number(1, int64)
    ends = [graph.one("Squeeze", (x,), Type(int64, ())) for x in (used, slots)]
    queries = graph.one("Range", (*ends, one), Type(int64, (LENGTH,)))
    keys = graph.one("Range", (zero, ends[1], one), Type(int64, (TOTAL,)))
    rows = graph.one("Unsqueeze", (queries, graph.indices(1)), Type(int64, (LENGTH, 1)))
    hidden = graph.one("Less", (rows, keys), Type(torch.bool, (LENGTH, TOTAL)))
    dtype = q.type.dtype
    low, none = graph.number(torch.finfo(dtype).min / 2, dtype), graph.number(0, dtype)
    bias = graph.one("Where", (hidden, low, none), Type(dtype, (LENGTH, TOTAL)))
    bias = graph.one("Unsqueeze", (bias, graph.indices(0, 1)), Type(dtype, (1, 1, LENGTH, TOTAL)))
    graph.scope = scope
    bounds = graph.indices(0), used, graph.indices(2)
    pasts = [graph.one("Slice", (x, *bounds), x.type) for x in (past_k, past_v)]
    settings = {"q_num_heads": heads, "kv_num_heads": kv_heads, "scale": scale}
    return graph.op("Attention", (q, k, v, bias, *pasts), *_with_present(out, past_k), attributes=settings)


def _used(graph: Graph, past: Value, use_cache: Value) -> Value:
    """How many slots of the past count: int64 (1,)."""
    switch = graph.cast(use_cache, torch.int64)
    return graph.one("Mul", (graph.shape([past.type.shape[2]]), switch), Type(torch.int64, (1,)))


def _all_slots(graph: Graph, q: Value, past: Value, use_cache: Value) -> Value:
    """How many slots there are with the new ones: int64 (1,)."""
    return graph.one("Add", (_used(graph, past, use_cache), graph.shape([q.type.shape[1]])), Type(torch.int64, (1,)))


def _with_present(out: Types, past: Value) -> tuple[Type, ...]:
    """The types of the output and of the extended cache, which is traced without its past."""
    batch, heads, _, dim = past.type.shape
    present = Type(past.type.dtype, (batch, heads, TOTAL, dim))
    return out[0], present, present


def cross_attention(linear: Lowering, portable: bool) -> Lowering:
    """A branch holds all of it, so that a cache that is there is read where it lies; `linear` lowers projections."""

    def lower(
        graph: Graph,
        out: Types,
        q: Value,
        memory: Value,
        k_weight: Value,
        k_bias: Value | None,
        v_weight: Value,
        v_bias: Value | None,
        past_k: Value,
        past_v: Value,
        use_cache: Value,
        bias: Value | None,
        heads: int,
        kv_heads: int,
        scale: float,
    ) -> tuple[Value, ...]:
        dtype, (batch, slots, _) = q.type.dtype, memory.type.shape
        dim, width = past_k.type.shape[3], k_weight.type.shape[0]

        def attend(q: Value, key: Value, value: Value) -> Value:
            mask = None if bias is None else whole_bias(graph, q, bias)
            if not portable and heads == kv_heads:
                settings = {"num_heads": heads, "scale": scale}
                inputs = (q, key, value, None, None, mask)
                return graph.one("MultiHeadAttention", inputs, out[0], MICROSOFT, **settings)
            length = q.type.shape[1]
            query = graph.reshape(q, Type(dtype, (batch, length, heads, dim)))
            query = graph.one("Transpose", (query,), Type(dtype, (batch, heads, length, dim)), perm=[0, 2, 1, 3])
            mixed = graph.one("Attention", (query, key, value, mask), query.type, scale=scale)
            mixed = graph.one("Transpose", (mixed,), Type(dtype, (batch, length, heads, dim)), perm=[0, 2, 1, 3])
            return graph.reshape(mixed, out[0])

        def project(weight: Value, shift: Value | None) -> Value:
            x = linear(graph, [Type(dtype, (batch, slots, width))], memory, weight, shift)
            x = graph.reshape(x, Type(dtype, (batch, slots, kv_heads, dim)))
            return graph.one("Transpose", (x,), Type(dtype, (batch, kv_heads, slots, dim)), perm=[0, 2, 1, 3])

        def recalled() -> tuple[Value, ...]:
            nothing = graph.indices(0), graph.indices(0), graph.indices(2)
            empty = (graph.one("Slice", (x, *nothing), x.type) for x in (past_k, past_v))
            if bias is not None:
                return attend(q, past_k, past_v), *empty
            # Rows that share a memory, such as beams, become more queries of one row.
            rows = graph.one("Shape", (past_k,), Type(torch.int64, (1,)), start=0, end=1)
            plan = (rows, graph.indices(-1), graph.shape([q.type.shape[2]]))
            together = graph.one("Reshape", (q, graph.one("Concat", plan, Type(torch.int64, (3,)), axis=0)), q.type)
            mixed = attend(together, past_k, past_v)
            return graph.one("Reshape", (mixed, graph.one("Shape", (q,), Type(torch.int64, (3,)))), mixed.type), *empty

        def projected() -> tuple[Value, ...]:
            key, value = project(k_weight, k_bias), project(v_weight, v_bias)
            return attend(q, key, value), key, value

        return graph.branch(use_cache, recalled, projected)

    return lower
