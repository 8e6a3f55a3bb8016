"""Along an axis: sums and means, the places of the largest values, running sums, softmax."""

from __future__ import annotations

import torch

from isoform.exporters.onnx.graph import Graph, RuntimeSize, Value
from isoform.exporters.onnx.operators.operands import Lowering, Types


def reduction(kind: str) -> Lowering:
    def lower(
        graph: Graph, out: Types, x: Value, dims: int | list[int] | None, keep: bool = False, dtype: object = None
    ) -> Value:
        axes = [dims] if isinstance(dims, int) else list(dims or range(len(x.type.shape)))
        return graph.one(kind, (graph.cast(x, out[0].dtype), graph.indices(*axes)), out[0], keepdims=int(keep))

    return lower


def argmax(graph: Graph, out: Types, x: Value, dim: int, keep: bool = False) -> Value:
    """The first of several maxima, as torch's CPU kernel has it."""
    return graph.one("ArgMax", (x,), out[0], axis=dim, keepdims=int(keep))


def cumsum(graph: Graph, out: Types, x: Value, dim: int, dtype: object = None) -> Value:
    return graph.one("CumSum", (graph.cast(x, out[0].dtype), graph.number(dim, torch.int64)), out[0])


def softmax(graph: Graph, out: Types, x: Value, dim: int, *_: object) -> Value:
    return graph.one("Softmax", (graph.cast(x, out[0].dtype),), out[0], axis=dim)


def log_softmax(graph: Graph, out: Types, x: Value, dim: int, *_: object) -> Value:
    return graph.one("LogSoftmax", (graph.cast(x, out[0].dtype),), out[0], axis=dim)


def top_k(
    graph: Graph, out: Types, x: Value, count: int | RuntimeSize, dim: int = -1, largest: bool = True, sort: bool = True
) -> tuple[Value, ...]:
    """The values and their places; of equal values the first places, as ONNX Runtime has it (torch says nothing)."""
    wanted = graph.shape([count])
    return graph.op("TopK", (x, wanted), *out, attributes={"axis": dim, "largest": int(largest), "sorted": int(sort)})


def largest(graph: Graph, out: Types, x: Value, *arguments: object) -> Value | tuple[Value, ...]:
    """max(x), max(x, other) or max(x, dim, keep): the values of the last with the first of their places."""
    if not arguments:
        return graph.one("ReduceMax", (x,), out[0], keepdims=0)
    if isinstance(arguments[0], Value):
        return graph.one("Max", (x, arguments[0]), out[0])
    dim, keep = (*arguments, False)[:2]
    axis, kept = int(str(dim)), int(bool(keep))
    values = graph.one("ReduceMax", (x, graph.indices(axis)), out[0], keepdims=kept)
    return values, graph.one("ArgMax", (x,), out[1], axis=axis, keepdims=kept)
