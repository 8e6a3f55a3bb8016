"""Along an axis: sums and means, the place of a maximum, running sums, softmax."""

from __future__ import annotations

import torch

from isoform.exporters.onnx.graph import Graph, Value
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
