"""`ops.attention` over new slots, over a cache that grows or is switched, and over encoder states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from isoform.errors import UnsupportedExport
from isoform.exporters.onnx.graph import MICROSOFT, Graph, Value
from isoform.exporters.onnx.operators.operands import END, Lowering, Types
from isoform.exporters.tracing import Type
from isoform.reference.modules.ops import AttentionArguments
from isoform.signature import TOTAL, Axis

Arguments = AttentionArguments[Value]


def attention(linear: Lowering, portable: bool) -> Lowering:
    """The form of each kind of cache: ONNX Runtime's kernels, or standard ONNX; `linear` lowers projections."""

    def lower(graph: Graph, out: Types, *arguments: Any) -> tuple[Value | None, ...]:
        a = AttentionArguments[Value](*arguments)
        if a.past_k is None or a.past_v is None:
            made = (portable_attention if portable else runtime_attention)(graph, out, a)
            return made[0], None, None  # nobody keeps the keys and values
        if a.switch is None:
            return (portable_attention if portable else grouped_query_attention)(graph, out, a)
        if a.k_weight is None or a.v_weight is None:
            return (portable_switched if portable else grouped_query_switched)(graph, out, a)
        return encoder_states(graph, out, a, linear, portable)

    return lower


def whole_bias(graph: Graph, a: Arguments) -> Value | None:
    """A bias with a row per query: no kernel broadcasts along the queries. All do along rows and heads."""
    if a.bias is None:
        return None
    shape = a.bias.type.shape
    return graph.expand(a.bias, (*shape[:2], a.q.type.shape[1], shape[3]))


def _past(a: Arguments) -> tuple[Value, ...]:
    return () if a.past_k is None or a.past_v is None else (a.past_k, a.past_v)


def grouped_query_attention(graph: Graph, out: Types, a: Arguments) -> tuple[Value, ...]:
    """The kernel's own mask is causal by slot and as long as the longest row; padding is the bias' affair alone.

    The soft-cap comes before the bias, as in the reference. `seqlens_k` is the last slot of every row.
    The kernel takes heads of a multiple of 8 channels only; on the CPU it refuses several new tokens in several rows
    after a past (a runtime feeds those row by row).
    """
    past, bias = _past(a), a.bias
    dim = past[0].type.shape[3]
    if bias is None or not isinstance(dim, int) or dim % 8:
        return portable_attention(graph, out, a)
    slots = graph.shape([bias.type.shape[3]])
    return _grouped(graph, out, a, slots, past, whole_bias(graph, a))


def _grouped(
    graph: Graph, out: Types, a: Arguments, slots: Value, past: Sequence[Value | None], bias: Value | None
) -> tuple[Value, ...]:
    """GroupQueryAttention over so many slots (1,) of every row."""
    int32, scope, graph.scope = torch.int32, graph.scope, ""
    slots = graph.cast(slots, int32)
    last = graph.one("Sub", (slots, graph.number(1, int32)), slots.type)
    lengths = graph.expand(last, (a.q.type.shape[0],))
    count = graph.one("Squeeze", (slots,), Type(int32, ()))
    graph.scope = scope
    inputs = (a.q, a.k, a.v, *past, lengths, count, None, None, None, bias)
    settings = {"num_heads": a.heads, "kv_num_heads": a.kv_heads, "scale": a.scale, "do_rotary": 0}
    if a.switch is None or a.softcap:
        settings["softcap"] = a.softcap
    return graph.op("GroupQueryAttention", inputs, *out, domain=MICROSOFT, attributes=settings)


def standard_attention(graph: Graph, out: Types, a: Arguments) -> tuple[Value, ...]:
    """ONNX' Attention. It may not soft-cap: opset 23 leaves open whether the cap comes before or after the bias."""
    settings = {"q_num_heads": a.heads, "kv_num_heads": a.kv_heads, "scale": a.scale}
    inputs = (a.q, a.k, a.v, whole_bias(graph, a), *_past(a))
    return graph.op("Attention", inputs, *(out if _past(a) else out[:1]), attributes=settings)


def plain_attention(graph: Graph, out: Types, a: Arguments) -> tuple[Value, ...]:
    """The reference body, step by step, with softmax in float32. Heads that share a key are an axis of their own."""
    dtype, (batch, length, width) = a.q.type.dtype, a.q.type.shape
    heads, kv_heads, bias = a.heads, a.kv_heads, a.bias
    if not isinstance(width, int):
        raise UnsupportedExport(f"{graph.scope}: attention over {width} channels; the width must be fixed")
    dim, groups, slots = width // heads, heads // kv_heads, a.k.type.shape[1] if bias is None else bias.type.shape[3]

    def op(kind: str, inputs: Sequence[Value], *shape: Axis, **attributes: Any) -> Value:
        return graph.one(kind, inputs, Type(dtype, shape), **attributes)

    def split(x: Value, *parts: int) -> Value:
        return graph.reshape(x, Type(dtype, (batch, x.type.shape[1], *parts, dim)))

    query = op("Transpose", (split(a.q, kv_heads, groups),), batch, kv_heads, groups, length, dim, perm=[0, 2, 3, 1, 4])
    cache = [
        op("Transpose", (split(x, kv_heads),), batch, kv_heads, x.type.shape[1], dim, perm=[0, 2, 1, 3])
        for x in (a.k, a.v)
    ]
    if past := _past(a):
        cache = [op("Concat", pair, batch, kv_heads, slots, dim, axis=2) for pair in zip(past, cache, strict=True)]
    key, value = (op("Unsqueeze", (x, graph.indices(2)), batch, kv_heads, 1, slots, dim) for x in cache)
    key = op("Transpose", (key,), batch, kv_heads, 1, dim, slots, perm=[0, 1, 2, 4, 3])
    sizes = (batch, kv_heads, groups, length, slots)
    scores = op("MatMul", (query, key), *sizes)
    scale, softcap = a.scale, a.softcap
    scores = op("Mul", (scores, graph.number(scale / softcap if softcap else scale, dtype)), *sizes)
    if softcap:
        scores = op("Mul", (op("Tanh", (scores,), *sizes), graph.number(softcap, dtype)), *sizes)
    if bias is not None:
        rows, each, queries, _ = bias.type.shape
        if each == 1:
            hide = op("Unsqueeze", (bias, graph.indices(2)), rows, 1, 1, queries, slots)
        else:
            before, behind = (
                graph.one("Shape", (bias,), Type(torch.int64, (end - start,)), start=start, end=end)
                for start, end in ((0, 1), (2, 4))
            )
            parts = (before, graph.indices(kv_heads, groups), behind)
            plan = graph.one("Concat", parts, Type(torch.int64, (5,)), axis=0)
            hide = op("Reshape", (bias, plan), rows, kv_heads, groups, queries, slots)
        scores = op("Add", (scores, hide), *sizes)
    scores = graph.cast(scores, torch.float32)
    weights = graph.cast(graph.one("Softmax", (scores,), scores.type, axis=-1), dtype)
    mixed = op("MatMul", (weights, value), batch, kv_heads, groups, length, dim)
    mixed = op("Transpose", (mixed,), batch, length, kv_heads, groups, dim, perm=[0, 3, 1, 2, 4])
    return graph.reshape(mixed, out[0]), *(cache if past else ())


def runtime_attention(graph: Graph, out: Types, a: Arguments) -> tuple[Value, ...]:
    """On the CPU provider Attention is a third faster in float32, MultiHeadAttention twice as fast in float16.

    Without a bias MultiHeadAttention keeps no table of scores.
    """
    if (a.q.type.dtype == torch.float16 or a.bias is None) and a.heads == a.kv_heads and not a.softcap:
        inputs = (a.q, a.k, a.v, None, None, whole_bias(graph, a))
        settings = {"num_heads": a.heads, "scale": a.scale}
        return graph.op("MultiHeadAttention", inputs, out[0], domain=MICROSOFT, attributes=settings)
    return portable_attention(graph, out, a)


def portable_attention(graph: Graph, out: Types, a: Arguments) -> tuple[Value, ...]:
    return (plain_attention if a.softcap else standard_attention)(graph, out, a)


def grouped_query_switched(graph: Graph, out: Types, a: Arguments) -> tuple[Value, ...]:
    """The kernel hides the future by itself. It takes the whole past or none of it, so a branch chooses."""
    switch, (past_k, past_v) = _switch(a), _past(a)
    dim, types = past_k.type.shape[3], _with_present(out, past_k)
    if not isinstance(dim, int) or dim % 8:
        return portable_switched(graph, out, a)
    new, old = (graph.shape([x]) for x in (a.q.type.shape[1], past_k.type.shape[2]))
    both = graph.one("Add", (old, new), new.type)
    bias = whole_bias(graph, a)

    def with_past() -> tuple[Value, ...]:
        return _grouped(graph, types, a, both, (past_k, past_v), bias)

    def without() -> tuple[Value, ...]:
        return _grouped(graph, types, a, new, (None, None), None if bias is None else _columns(graph, bias, old))

    return graph.branch(switch, with_past, without)


def portable_switched(graph: Graph, out: Types, a: Arguments) -> tuple[Value, ...]:
    """As much of the past as the switch lets count, and a bias that hides the future."""
    switch, (past_k, past_v) = _switch(a), _past(a)
    int64, scope, graph.scope = torch.int64, graph.scope, ""
    length = a.q.type.shape[1]
    old = graph.shape([past_k.type.shape[2]])
    used = graph.one("Mul", (old, graph.cast(switch, int64)), Type(int64, (1,)))
    slots = graph.one("Add", (used, graph.shape([length])), Type(int64, (1,)))
    zero, one = graph.number(0, int64), graph.number(1, int64)
    ends = [graph.one("Squeeze", (x,), Type(int64, ())) for x in (used, slots)]
    queries = graph.one("Range", (*ends, one), Type(int64, (length,)))
    keys = graph.one("Range", (zero, ends[1], one), Type(int64, (TOTAL,)))
    rows = graph.one("Unsqueeze", (queries, graph.indices(1)), Type(int64, (length, 1)))
    hidden = graph.one("Less", (rows, keys), Type(torch.bool, (length, TOTAL)))
    dtype = a.q.type.dtype
    low, none = graph.number(torch.finfo(dtype).min / 2, dtype), graph.number(0, dtype)
    bias = graph.one("Where", (hidden, low, none), Type(dtype, (length, TOTAL)))
    bias = graph.one("Unsqueeze", (bias, graph.indices(0, 1)), Type(dtype, (1, 1, length, TOTAL)))
    if a.bias is not None:
        start = graph.one("Sub", (old, used), old.type)
        given = _columns(graph, a.bias, start)
        bias = graph.one("Add", (given, bias), Type(dtype, (*given.type.shape[:2], length, TOTAL)))
    graph.scope = scope
    bounds = graph.indices(0), used, graph.indices(2)
    pasts = [graph.one("Slice", (x, *bounds), x.type) for x in (past_k, past_v)]
    grown = a._replace(bias=bias, past_k=pasts[0], past_v=pasts[1])
    return portable_attention(graph, _with_present(out, past_k), grown)


def _columns(graph: Graph, bias: Value, start: Value) -> Value:
    """The columns of a bias from `start` (1,) on."""
    shape = (*bias.type.shape[:3], f"?{start.name}")
    return graph.one("Slice", (bias, start, graph.indices(END), graph.indices(3)), Type(bias.type.dtype, shape))


def _switch(a: Arguments) -> Value:
    assert a.switch is not None
    return a.switch


def _with_present(out: Types, past: Value) -> tuple[Type, ...]:
    """The types of the output and of the extended cache, which is traced without its past."""
    batch, heads, _, dim = past.type.shape
    present = Type(past.type.dtype, (batch, heads, TOTAL, dim))
    return out[0], present, present


def encoder_states(graph: Graph, out: Types, a: Arguments, linear: Lowering, portable: bool) -> tuple[Value, ...]:
    """A branch holds all of it, so that a cache that is there is read where it lies; `linear` lowers projections."""
    if a.softcap:
        raise UnsupportedExport(f"{graph.scope}: cross-attention with a soft-cap has no ONNX form yet")
    (past_k, past_v), heads, kv_heads, scale, bias = _past(a), a.heads, a.kv_heads, a.scale, a.bias
    dtype, (batch, slots, _) = a.q.type.dtype, a.k.type.shape
    dim = past_k.type.shape[3]

    def attend(q: Value, key: Value, value: Value, mask: Value | None) -> Value:
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

    def project(weight: Value | None, shift: Value | None) -> Value:
        assert weight is not None
        x = linear(graph, [Type(dtype, (batch, slots, weight.type.shape[0]))], a.k, weight, shift)
        x = graph.reshape(x, Type(dtype, (batch, slots, kv_heads, dim)))
        return graph.one("Transpose", (x,), Type(dtype, (batch, kv_heads, slots, dim)), perm=[0, 2, 1, 3])

    def hidden(q: Value) -> Value | None:
        """The bias with a row for each of these queries, which are as many as the value says."""
        if bias is None:
            return None
        int64 = torch.int64
        before = graph.one("Shape", (bias,), Type(int64, (2,)), start=0, end=2)
        queries = graph.one("Shape", (q,), Type(int64, (1,)), start=1, end=2)
        behind = graph.one("Shape", (bias,), Type(int64, (1,)), start=3, end=4)
        shape = graph.one("Concat", (before, queries, behind), Type(int64, (4,)), axis=0)
        return graph.one("Expand", (bias, shape), Type(dtype, (*bias.type.shape[:2], *q.type.shape[1:2], slots)))

    def recalled() -> tuple[Value, ...]:
        nothing = graph.indices(0), graph.indices(0), graph.indices(2)
        empty = (graph.one("Slice", (x, *nothing), x.type) for x in (past_k, past_v))
        # Rows that share encoder states, such as beams, become more queries of one row.
        rows = graph.one("Shape", (past_k,), Type(torch.int64, (1,)), start=0, end=1)
        plan = (rows, graph.indices(-1), graph.shape([a.q.type.shape[2]]))
        together = graph.one("Reshape", (a.q, graph.one("Concat", plan, Type(torch.int64, (3,)), axis=0)), a.q.type)
        mixed = attend(together, past_k, past_v, hidden(together))
        return graph.one("Reshape", (mixed, graph.one("Shape", (a.q,), Type(torch.int64, (3,)))), mixed.type), *empty

    def projected() -> tuple[Value, ...]:
        key, value = project(a.k_weight, a.k_bias), project(a.v_weight, a.v_bias)
        return attend(a.q, key, value, whole_bias(graph, a)), key, value

    assert a.switch is not None
    return graph.branch(a.switch, recalled, projected)
