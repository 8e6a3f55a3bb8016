"""`ops.transport`: Sinkhorn's iterations as a Loop over two products."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from isoform.exporters.onnx.graph import Graph, Value
from isoform.exporters.onnx.operators.operands import Types
from isoform.exporters.tracing import Type
from isoform.reference.modules.ops import kernel_bounds

ROWS, COLUMNS = "?rows and dustbin", "?columns and dustbin"
FLOAT = torch.float32


def transport(
    graph: Graph, out: Types, scores: Value, dustbin: Value, source: Value, target: Value, iterations: int
) -> Value:
    """Vectors are rows, so that each product streams a matrix once: the kernel and its transpose are both made.

    A Loop is a tenth of the file's size and of the loading time of 100 unrolled steps, and within a fifth of their
    speed, a few milliseconds of a picture pair. An If takes the sums of exponentials where the numbers do not fit.
    """
    low, deep, least = kernel_bounds()
    scores, dustbin, source, target = (graph.cast(x, FLOAT) for x in (scores, dustbin, source, target))
    batch, rows, _ = scores.type.shape
    right = graph.expand(dustbin, (batch, rows, 1))
    every = graph.one("Concat", (scores, right), Type(FLOAT, (batch, rows, COLUMNS)), axis=2)
    bottom = graph.one("Expand", (dustbin, _one_row(graph, every)), Type(FLOAT, (batch, 1, COLUMNS)))
    whole = Type(FLOAT, (batch, ROWS, COLUMNS))
    every = graph.one("Concat", (every, bottom), whole, axis=1)
    best = graph.one("ReduceMax", (every, graph.indices(2)), Type(FLOAT, (batch, ROWS, 1)), keepdims=1)
    below = graph.one("Sub", (best, every), whole)
    kernel = graph.one("Exp", (graph.one("Neg", (below,), whole),), whole)
    turned = graph.one("Transpose", (kernel,), Type(FLOAT, (batch, COLUMNS, ROWS)), perm=[0, 2, 1])
    sources = graph.one("Unsqueeze", (source, graph.indices(1)), Type(FLOAT, (batch, 1, ROWS)))
    targets = graph.one("Unsqueeze", (target, graph.indices(1)), Type(FLOAT, (batch, 1, COLUMNS)))

    def scaled(values: Sequence[Value]) -> Sequence[Value]:
        sent = graph.one("MatMul", (values[1], turned), sources.type)
        u = graph.one("Div", (sources, sent), sources.type)
        taken = graph.one("MatMul", (u, kernel), targets.type)
        return u, graph.one("Div", (targets, taken), targets.type), sent, taken

    zero = graph.number(0, FLOAT)
    massive = graph.one("Greater", (targets, zero), Type(torch.bool, targets.type.shape))
    first = graph.cast(massive, FLOAT)  # a column without mass takes part in no sum
    u, v, sent, taken = graph.loop(iterations, (sources, first, sources, targets), scaled)
    seen = graph.one("Greater", (every, graph.number(low, FLOAT)), Type(torch.bool, whole.shape))
    fits = _all(
        graph,
        _compared(graph, "Less", _extreme(graph, "ReduceMax", graph.one("Where", (seen, below, zero), whole)), deep),
        *(_compared(graph, "Greater", _extreme(graph, "ReduceMin", x), least) for x in (sent, taken)),
        *(_compared(graph, "Less", _extreme(graph, "ReduceMax", x), 1 / least) for x in (sent, taken)),
    )

    def product() -> Sequence[Value]:
        column = graph.one("Transpose", (u,), Type(FLOAT, (batch, ROWS, 1)), perm=[0, 2, 1])
        return (graph.one("Mul", (graph.one("Mul", (column, kernel), whole), v), whole),)

    def logarithms() -> Sequence[Value]:
        given = graph.one("Log", (graph.one("Unsqueeze", (source, graph.indices(2)), best.type),), best.type)
        wanted = graph.one("Log", (targets,), targets.type)

        def step(values: Sequence[Value]) -> Sequence[Value]:
            f = _rest(graph, given, graph.one("Add", (every, values[1]), whole), 2)
            return f, _rest(graph, wanted, graph.one("Add", (every, f), whole), 1)

        f, g = graph.loop(iterations, (given, graph.one("Log", (first,), targets.type)), step)
        total = graph.one("Add", (graph.one("Add", (every, f), whole), g), whole)
        return (graph.one("Exp", (total,), whole),)

    (found,) = graph.branch(fits, product, logarithms)
    ends = graph.indices(0, 0), graph.indices(-1, -1), graph.indices(1, 2)
    return graph.cast(graph.one("Slice", (found, *ends), Type(FLOAT, out[0].shape)), out[0].dtype)


def _one_row(graph: Graph, x: Value) -> Value:
    """The shape of x (B, M, N) with one row."""
    first = graph.one("Shape", (x,), Type(torch.int64, (1,)), start=0, end=1)
    last = graph.one("Shape", (x,), Type(torch.int64, (1,)), start=2, end=3)
    return graph.one("Concat", (first, graph.indices(1), last), Type(torch.int64, (3,)), axis=0)


def _rest(graph: Graph, mass: Value, x: Value, axis: int) -> Value:
    total = graph.one("ReduceLogSumExp", (x, graph.indices(axis)), mass.type, keepdims=1)
    return graph.one("Sub", (mass, total), mass.type)


def _extreme(graph: Graph, kind: str, x: Value) -> Value:
    return graph.one(kind, (x,), Type(FLOAT, ()), keepdims=0)


def _compared(graph: Graph, kind: str, x: Value, bound: float) -> Value:
    return graph.one(kind, (x, graph.number(bound, FLOAT)), Type(torch.bool, ()))


def _all(graph: Graph, first: Value, *others: Value) -> Value:
    for other in others:
        first = graph.one("And", (first, other), first.type)
    return first
