"""`ops.local_bias` and `ops.local_attention`: attention to what is near, block by block in long texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from isoform.exporters.onnx.graph import Graph, Value
from isoform.exporters.onnx.operators.attention import portable_attention, runtime_attention
from isoform.exporters.onnx.operators.operands import END, Lowering, Types
from isoform.exporters.tracing import Type
from isoform.reference.modules.ops import AttentionArguments, block_of, dense_length

BLOCKS, ROWS = "?blocks", "?block rows"
"""The blocks of a text, and those of all texts of a batch."""


def local_bias(portable: bool) -> Lowering:
    """A branch by the length of the texts; `portable`: always as for short ones."""

    def lower(graph: Graph, out: Types, mask: Value, like: Value, window: int) -> Value:
        def dense() -> tuple[Value, ...]:
            return (_dense_bias(graph, out[0], mask, window),)

        if portable:
            return dense()[0]
        return graph.branch(_long(graph, mask, window), lambda: (_block_bias(graph, out[0], mask, window),), dense)[0]

    return lower


def local_attention(portable: bool) -> Lowering:
    """The same branch, over the bias of `local_bias`."""

    def lower(
        graph: Graph, out: Types, q: Value, k: Value, v: Value, bias: Value, window: int, heads: int, scale: float
    ) -> Value:
        attend: Callable[..., tuple[Value, ...]] = portable_attention if portable else runtime_attention

        def dense() -> tuple[Value, ...]:
            return (attend(graph, out[:1], _arguments(q, k, v, bias, heads, scale))[0],)

        def blocks() -> tuple[Value, ...]:
            dtype, (batch, length, width) = q.type.dtype, q.type.shape
            block = block_of(window)
            behind = _behind(graph, length, block)
            zero, size = graph.indices(0), graph.indices(block)
            queries = _padded(graph, q, (zero, zero, zero, zero, behind, zero), None)
            queries = graph.reshape(queries, Type(dtype, (ROWS, block, width)), [-1, block, width])
            pads = (zero, size, zero, zero, graph.one("Add", (behind, size), behind.type), zero)
            keys, values = (_beside(graph, _padded(graph, x, pads, None), block) for x in (k, v))
            hidden = Value(bias.name, Type(dtype, (ROWS, 1, block, 3 * block)))
            arguments = _arguments(queries, keys, values, hidden, heads, scale)
            made = attend(graph, [queries.type], arguments)[0]
            made = graph.reshape(made, Type(dtype, (batch, "?padded", width)), [batch, -1, width])
            return (graph.one("Slice", (made, zero, graph.shape([length]), graph.indices(1)), out[0]),)

        if portable:
            return dense()[0]
        return graph.branch(_long(graph, q, window), blocks, dense)[0]

    return lower


def _arguments(q: Value, k: Value, v: Value, bias: Value, heads: int, scale: float) -> AttentionArguments[Value]:
    return AttentionArguments[Value](q, k, v, bias, None, None, None, None, None, None, None, heads, heads, scale, 0.0)


def _long(graph: Graph, x: Value, window: int) -> Value:
    """Whether texts are computed block by block: bool (1,)."""
    length = graph.shape([x.type.shape[1]])
    return graph.one("Greater", (length, graph.indices(dense_length(window))), Type(torch.bool, (1,)))


def _hidden(mask: Value, dtype: torch.dtype, graph: Graph) -> Value:
    """How much is added to the scores of every slot: (B, T)."""
    shown = graph.cast(mask, torch.bool)
    low, none = graph.number(torch.finfo(dtype).min / 2, dtype), graph.number(0, dtype)
    return graph.one("Where", (shown, none, low), Type(dtype, mask.type.shape))


def _dense_bias(graph: Graph, out: Type, mask: Value, window: int) -> Value:
    dtype, int64, (batch, length) = out.dtype, torch.int64, mask.type.shape
    padding = _hidden(mask, dtype, graph)
    padding = graph.one("Unsqueeze", (padding, graph.indices(1, 2)), Type(dtype, (batch, 1, 1, length)))
    end = graph.one("Squeeze", (graph.shape([length]),), Type(int64, ()))
    slots = graph.one("Range", (graph.number(0, int64), end, graph.number(1, int64)), Type(int64, (length,)))
    rows = graph.one("Unsqueeze", (slots, graph.indices(1)), Type(int64, (length, 1)))
    apart = graph.one(
        "Abs", (graph.one("Sub", (rows, slots), Type(int64, (length, length))),), Type(int64, (length, length))
    )
    near = graph.one("Less", (apart, graph.number(window, int64)), Type(torch.bool, (length, length)))
    low, none = graph.number(torch.finfo(dtype).min / 2, dtype), graph.number(0, dtype)
    far = graph.one("Where", (near, none, low), Type(dtype, (length, length)))
    return graph.one("Add", (padding, far), out)


def _block_bias(graph: Graph, out: Type, mask: Value, window: int) -> Value:
    dtype, block = out.dtype, block_of(window)
    low = torch.finfo(dtype).min / 2
    zero, size, behind = graph.indices(0), graph.indices(block), _behind(graph, mask.type.shape[1], block)
    pads = (zero, size, zero, graph.one("Add", (behind, size), behind.type))
    padding = _padded(graph, _hidden(mask, dtype, graph), pads, graph.number(low, dtype))
    padding = _beside(graph, padding, block)
    padding = graph.one("Unsqueeze", (padding, graph.indices(1, 2)), Type(dtype, (ROWS, 1, 1, 3 * block)))
    apart = np.abs(np.arange(block)[:, None] + block - np.arange(3 * block))
    far = np.where(apart < window, 0.0, low).reshape(1, 1, block, 3 * block).astype(np.float32)
    shown = graph.cast(graph.constant(far, torch.float32), dtype)
    made = graph.one("Add", (padding, shown), Type(dtype, (ROWS, 1, block, 3 * block)))
    return Value(made.name, out)


def _behind(graph: Graph, length: Any, block: int) -> Value:
    """How many slots are missing at the end of the last block: (1,)."""
    int64 = Type(torch.int64, (1,))
    negative = graph.one("Neg", (graph.shape([length]),), int64)
    return graph.one("Mod", (negative, graph.indices(block)), int64)


def _padded(graph: Graph, x: Value, pads: tuple[Value, ...], value: Value | None) -> Value:
    """x with more slots at the beginning and the end of its second axis."""
    sizes = graph.one("Concat", pads, Type(torch.int64, (len(pads),)), axis=0)
    shape = (x.type.shape[0], "?padded", *x.type.shape[2:])
    return graph.one("Pad", (x, sizes, value), Type(x.type.dtype, shape))


def _beside(graph: Graph, x: Value, block: int) -> Value:
    """Every block with those before and after it: x (B, 2 + blocks of slots, ...) -> (B * blocks, 3 * block, ...)."""
    dtype, (batch, _, *rest) = x.type.dtype, x.type.shape
    split = graph.reshape(x, Type(dtype, (batch, BLOCKS, block, *rest)), [batch, -1, block, *rest])
    ends, axis = (-2, -1, END), graph.indices(1)
    parts = [
        graph.one("Slice", (split, graph.indices(start), graph.indices(end), axis), split.type)
        for start, end in enumerate(ends)
    ]
    wide = graph.one("Concat", parts, Type(dtype, (batch, BLOCKS, 3 * block, *rest)), axis=2)
    return graph.reshape(wide, Type(dtype, (ROWS, 3 * block, *rest)), [-1, 3 * block, *rest])
