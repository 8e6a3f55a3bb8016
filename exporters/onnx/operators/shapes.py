"""Views, slices, joins, and tensors that are made from sizes alone."""

from __future__ import annotations

from typing import Any

import torch

from isoform.errors import UnsupportedExport
from isoform.exporters.onnx.graph import Graph, Number, RuntimeSize, Value
from isoform.exporters.onnx.operators.operands import END, Lowering, Operand, Types, tensor
from isoform.exporters.tracing import Type


def reshape(graph: Graph, out: Types, x: Value, *arguments: object) -> Value:
    """view, reshape, flatten, unflatten: the traced shape says it; `arguments` do where two sizes are unnamed."""
    (last,) = arguments[-1:] or (None,)
    dims = last if isinstance(last, list) and len(last) == len(out[0].shape) else None
    return graph.reshape(x, out[0], dims)


def unsqueeze(graph: Graph, out: Types, x: Value, dim: int) -> Value:
    return graph.one("Unsqueeze", (x, graph.indices(dim)), out[0])


def squeeze(graph: Graph, out: Types, x: Value, dim: int) -> Value:
    if x.type.shape[dim] != 1:
        return x
    return graph.one("Squeeze", (x, graph.indices(dim)), out[0])


def transpose(graph: Graph, out: Types, x: Value, a: int, b: int) -> Value:
    order = list(range(len(x.type.shape)))
    order[a], order[b] = order[b], order[a]
    return graph.one("Transpose", (x,), out[0], perm=order)


def permute(graph: Graph, out: Types, x: Value, order: list[int]) -> Value:
    return graph.one("Transpose", (x,), out[0], perm=[n % len(order) for n in order])


def expand(graph: Graph, out: Types, x: Value, dims: list[int | RuntimeSize], *_: object) -> Value:
    if x.type.shape == out[0].shape:
        return x
    sizes = [axis if isinstance(dim, int) else dim for axis, dim in zip(out[0].shape, dims, strict=True)]
    return graph.one("Expand", (x, graph.shape(sizes)), out[0])


def expand_as(graph: Graph, out: Types, x: Value, other: Value) -> Value:
    return graph.expand(x, other.type.shape)


def select(graph: Graph, out: Types, x: Value, dim: int, index: int | RuntimeSize) -> Value:
    return graph.one("Gather", (x, tensor(graph, index, torch.int64)), out[0], axis=dim)


def slice_(
    graph: Graph,
    out: Types,
    x: Value,
    dim: int,
    start: int | RuntimeSize | None,
    end: int | RuntimeSize | None,
    step: int = 1,
) -> Value:
    if (start is None or start == 0) and (end is None or end == END) and step == 1:
        return x
    bounds = [graph.shape([0 if start is None else start]), graph.shape([END if end is None else end])]
    return graph.one("Slice", (x, *bounds, graph.indices(dim), graph.indices(step)), out[0])


def unbind(graph: Graph, out: Types, x: Value, dim: int = 0) -> list[Value]:
    count = x.type.shape[dim]
    if not isinstance(count, int):
        raise UnsupportedExport(f"{graph.scope}: unbind along {count}, whose size varies; index it instead")
    shape = tuple(axis for n, axis in enumerate(x.type.shape) if n != dim % len(x.type.shape))
    type_ = Type(x.type.dtype, shape)
    return [graph.one("Gather", (x, graph.number(n, torch.int64)), type_, axis=dim) for n in range(count)]


def split(graph: Graph, out: Types, x: Value, sizes: list[int], dim: int = 0) -> list[Value]:
    at = dim % len(x.type.shape)
    types = [Type(x.type.dtype, (*x.type.shape[:at], size, *x.type.shape[at + 1 :])) for size in sizes]
    return list(graph.op("Split", (x, graph.indices(*sizes)), *types, attributes={"axis": at}))


def chunk(graph: Graph, out: Types, x: Value, count: int, dim: int = 0) -> list[Value]:
    size = x.type.shape[dim]
    if not isinstance(size, int) or size % count:
        raise UnsupportedExport(f"{graph.scope}: {count} chunks of {size}, which are not equal; split it by sizes")
    return split(graph, out, x, [size // count] * count, dim)


def concat(graph: Graph, out: Types, parts: list[Value], dim: int = 0) -> Value:
    return graph.one("Concat", [graph.cast(part, out[0].dtype) for part in parts], out[0], axis=dim)


def stack(graph: Graph, out: Types, parts: list[Value], dim: int = 0) -> Value:
    at = dim % len(out[0].shape)
    shape = (*out[0].shape[:at], 1, *out[0].shape[at + 1 :])
    raised = [graph.one("Unsqueeze", (part, graph.indices(at)), Type(part.type.dtype, shape)) for part in parts]
    return concat(graph, out, raised, at)


def arange(graph: Graph, out: Types, *arguments: Any) -> Value:
    """arange(end, dtype, layout, device, pin) or arange(start, end, dtype, …) or arange(start, end, step, dtype, …)."""
    bounds: list[Operand] = list(arguments[:-4])
    start, end, step = (0, bounds[0], 1) if len(bounds) == 1 else (*bounds, 1)[:3]
    dtype = out[0].dtype
    return graph.one("Range", [tensor(graph, x, dtype) for x in (start, end, step)], out[0])


def filled(value: Number) -> Lowering:
    """zeros, ones, zeros_like, ones_like, new_zeros, new_ones."""

    def lower(graph: Graph, out: Types, *_: object) -> Value:
        return graph.expand(graph.number(value, out[0].dtype), out[0].shape)

    return lower


def gather(graph: Graph, out: Types, x: Value, dim: int, index: Value, *_: object) -> Value:
    return graph.one("GatherElements", (x, index), out[0], axis=dim)


def index_select(graph: Graph, out: Types, x: Value, dim: int, index: Value) -> Value:
    return graph.one("Gather", (x, index), out[0], axis=dim)
