"""Arithmetic, comparisons, casts and activations: one result per element, broadcast as torch broadcasts."""

from __future__ import annotations

from typing import Any

import torch

from isoform.errors import UnsupportedExport
from isoform.exporters.onnx.graph import Graph, Number, RuntimeSize, Value
from isoform.exporters.onnx.operators.operands import Lowering, Operand, Types, tensor


def compute_dtype(x: Operand, y: Operand) -> torch.dtype:
    """The dtype in which torch compares two operands: a number or scalar takes the other's kind of dtype."""

    def sample(operand: Operand) -> torch.Tensor | Number:
        if isinstance(operand, Value):
            return torch.empty([1] * len(operand.type.shape), dtype=operand.type.dtype, device="meta")
        return 0 if isinstance(operand, RuntimeSize) else operand

    return torch.result_type(sample(x), sample(y))


def elementwise(kind: str, **attributes: Any) -> Lowering:
    """One input, one output of the same shape; further arguments must be at their defaults."""

    def lower(graph: Graph, out: Types, x: Value) -> Value:
        return graph.one(kind, (graph.cast(x, out[0].dtype),), out[0], **attributes)

    return lower


def arithmetic(kind: str) -> Lowering:
    """Two operands in the result's dtype."""

    def lower(graph: Graph, out: Types, x: Operand, y: Operand) -> Value:
        return graph.one(kind, (tensor(graph, x, out[0].dtype), tensor(graph, y, out[0].dtype)), out[0])

    return lower


def scaled(kind: str) -> Lowering:
    """Addition or subtraction of `alpha` times the second operand."""

    def lower(graph: Graph, out: Types, x: Operand, y: Operand, alpha: Number = 1) -> Value:
        right = tensor(graph, y, out[0].dtype)
        if alpha != 1:
            right = graph.one("Mul", (right, graph.number(alpha, right.type.dtype)), right.type)
        return graph.one(kind, (tensor(graph, x, out[0].dtype), right), out[0])

    return lower


def reversed_sub(graph: Graph, out: Types, x: Operand, y: Operand, alpha: Number = 1) -> Value:
    """y - alpha * x."""
    return scaled("Sub")(graph, out, y, x, alpha)


def comparison(kind: str, negated: bool = False) -> Lowering:
    def lower(graph: Graph, out: Types, x: Operand, y: Operand) -> Value:
        dtype = compute_dtype(x, y)
        result = graph.one(kind, (tensor(graph, x, dtype), tensor(graph, y, dtype)), out[0])
        return graph.one("Not", (result,), out[0]) if negated else result

    return lower


def logical(kind: str) -> Lowering:
    def lower(graph: Graph, out: Types, x: Value, y: Value) -> Value:
        if (x.type.dtype, y.type.dtype) != (torch.bool, torch.bool):
            raise UnsupportedExport(f"{graph.scope}: {kind} of {x.type.dtype}; only booleans have an ONNX form here")
        return graph.one(kind, (x, y), out[0])

    return lower


def cast(graph: Graph, out: Types, x: Value, *_: object) -> Value:
    return graph.cast(x, out[0].dtype)


def same(graph: Graph, out: Types, x: Value, *_: object) -> Value:
    return x


def clamp(graph: Graph, out: Types, x: Value, low: Number | None = None, high: Number | None = None) -> Value:
    bounds = [None if bound is None else graph.number(bound, out[0].dtype) for bound in (low, high)]
    return graph.one("Clip", (graph.cast(x, out[0].dtype), *bounds), out[0])


def where(graph: Graph, out: Types, condition: Value, x: Operand, y: Operand) -> Value:
    dtype = out[0].dtype
    return graph.one("Where", (condition, tensor(graph, x, dtype), tensor(graph, y, dtype)), out[0])


def masked_fill(graph: Graph, out: Types, x: Value, mask: Value, value: Operand) -> Value:
    return where(graph, out, mask, value, x)


def gelu(graph: Graph, out: Types, x: Value, approximate: str = "none") -> Value:
    return graph.one("Gelu", (x,), out[0], approximate=approximate)


def silu(graph: Graph, out: Types, x: Value) -> Value:
    return graph.one("Mul", (x, graph.one("Sigmoid", (x,), out[0])), out[0])


def rsqrt(graph: Graph, out: Types, x: Value) -> Value:
    return graph.one("Reciprocal", (graph.one("Sqrt", (graph.cast(x, out[0].dtype),), out[0]),), out[0])


def remainder(graph: Graph, out: Types, x: Operand, y: Operand) -> Value:
    """With the sign of the divisor, as Python has it."""
    left, right = (tensor(graph, operand, out[0].dtype) for operand in (x, y))
    if not out[0].dtype.is_floating_point:
        return graph.one("Mod", (left, right), out[0])
    turns = graph.one("Floor", (graph.one("Div", (left, right), out[0]),), out[0])
    return graph.one("Sub", (left, graph.one("Mul", (turns, right), out[0])), out[0])


def leaky_relu(graph: Graph, out: Types, x: Value, slope: float = 0.01) -> Value:
    return graph.one("LeakyRelu", (x,), out[0], alpha=slope)
