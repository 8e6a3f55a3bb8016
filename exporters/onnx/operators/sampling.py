"""`ops.sampled_attention`: the values of a map at chosen points, by GridSample or, cell by cell, by a gather."""

from __future__ import annotations

from typing import Any

import torch

from isoform.errors import UnsupportedExport
from isoform.exporters.onnx.graph import Graph, Value
from isoform.exporters.onnx.operators.operands import Types
from isoform.exporters.tracing import Type
from isoform.signature import Axis

F32, I64 = torch.float32, torch.int64
ROWS = "?map rows"
"""The maps of a batch: one for each head of each picture."""


def sampled_attention(
    graph: Graph, out: Types, value: Value, locations: Value, weights: Value, heads: int, method: int
) -> Value:
    """In float32, whatever the dtype: a half has no place between two cells of a large map.

    GridSample is the faster of two forms: for 300 queries of 8 heads and 4 points on maps of 80, 40 and 20 cells a
    side, one thread of ONNX Runtime takes 3.5 ms, and 6.9 ms for a gather of the four cells around each point.
    """
    batch, height, width, channels = value.type.shape
    _, queries, _, points, _ = locations.type.shape
    if not isinstance(channels, int) or not isinstance(points, int):
        raise UnsupportedExport(f"{graph.scope}: {points} points in {channels} channels; both numbers must be fixed")
    dim = channels // heads

    def turned(x: Value, order: list[int]) -> Value:
        shape = tuple(x.type.shape[n] for n in order)
        return graph.one("Transpose", (x,), Type(x.type.dtype, shape), perm=order)

    def rows(x: Value, *axes: Axis) -> Value:
        """Batch and heads as one axis."""
        return graph.one("Reshape", (x, graph.shape([-1, *axes])), Type(x.type.dtype, (ROWS, *axes)))

    maps = graph.reshape(graph.cast(value, F32), Type(F32, (batch, height, width, heads, dim)), [0, 0, 0, heads, dim])
    maps = turned(maps, [0, 3, 4, 1, 2])
    places = turned(graph.cast(locations, F32), [0, 2, 1, 3, 4])
    shares = rows(turned(graph.cast(weights, F32), [0, 2, 1, 3]), 1, queries, points)
    if method == 0:
        twice = graph.one("Mul", (places, graph.number(2, F32)), places.type)
        points_ = rows(graph.one("Sub", (twice, graph.number(1, F32)), places.type), queries, points, 2)
        settings: dict[str, Any] = {"mode": "linear", "padding_mode": "zeros", "align_corners": 0}
        made = Type(F32, (ROWS, dim, queries, points))
        found = graph.one("GridSample", (rows(maps, dim, height, width), points_), made, **settings)
    else:
        flat, cells = rows(maps, dim, height, width), rows(_nearest(graph, places, height, width), queries, points)
        flat = graph.one("Reshape", (flat, graph.indices(0, 0, -1)), Type(F32, (ROWS, dim, "?cells")))
        cells = graph.one("Reshape", (cells, graph.indices(0, 1, -1)), Type(I64, (ROWS, 1, "?points")))
        sizes = graph.one("Shape", (flat,), Type(I64, (2,)), end=2)
        count = graph.one("Shape", (cells,), Type(I64, (1,)), start=2)
        sizes = graph.one("Concat", (sizes, count), Type(I64, (3,)), axis=0)
        cells = graph.one("Expand", (cells, sizes), Type(I64, (ROWS, dim, "?points")))
        found = graph.one("GatherElements", (flat, cells), Type(F32, cells.type.shape), axis=2)
        found = rows(found, dim, queries, points)
    found = graph.one("Mul", (found, shares), found.type)
    found = graph.one("ReduceSum", (found, graph.indices(3)), Type(F32, (ROWS, dim, queries)), keepdims=0)
    packed = graph.one("Reshape", (found, graph.shape([-1, channels, queries])), Type(F32, (batch, channels, queries)))
    return graph.cast(turned(packed, [0, 2, 1]), out[0].dtype)


def _nearest(graph: Graph, places: Value, height: Axis, width: Axis) -> Value:
    """The cell at every point, counted row by row: places (..., 2) -> int64 (...)."""
    across, down = (graph.cast(graph.shape([size]), F32) for size in (width, height))
    shape = places.type.shape[:-1]
    cells = []
    for n, size in enumerate((across, down)):
        at = graph.one("Gather", (places, graph.number(n, I64)), Type(F32, shape), axis=-1)
        at = graph.one("Mul", (at, size), at.type)
        at = graph.one("Add", (at, graph.number(0.5, F32)), at.type)
        last = graph.one("Sub", (size, graph.number(1, F32)), size.type)
        at = graph.one("Min", (graph.one("Max", (at, graph.number(0, F32)), at.type), last), at.type)
        cells.append(graph.one("Floor", (at,), at.type))
    above = graph.one("Mul", (cells[1], across), cells[1].type)
    return graph.cast(graph.one("Add", (above, cells[0]), above.type), I64)
