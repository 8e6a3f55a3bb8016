"""`ops.routed_experts`: ONNX Runtime's mixture of experts, or standard ONNX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from isoform.errors import UnsupportedExport
from isoform.exporters.onnx.graph import MICROSOFT, Graph, Value
from isoform.exporters.onnx.operators.operands import Types
from isoform.exporters.tracing import Type
from isoform.reference.modules.ops import ExpertArguments
from isoform.signature import Axis

TOKENS = "?tokens"
"""The axis of all tokens of a batch."""


Arguments = ExpertArguments[Value]


def runtime_experts(graph: Graph, out: Types, *arguments: Any) -> Value:
    """The kernel does the softmax of the scores itself, and takes the rows of gate and up in turn."""
    a = Arguments(*arguments)
    both, bias = in_turn(graph, a.gate, a.up), biases_in_turn(graph, a)
    return one_kernel(graph, out, a, "MoE", (both, bias, a.down, a.down_bias), {})


def one_kernel(
    graph: Graph, out: Types, a: Arguments, kind: str, weights: Sequence[Value | None], settings: Mapping[str, Any]
) -> Value:
    """A node of ONNX Runtime's over these weights.

    Its SwiGLU is gate * sigmoid(alpha * gate) * (up + beta). It declares that its output may take the place of its
    input, and then reads what it has overwritten (ONNX Runtime 1.31.1). ONNX Runtime does so where both have one known
    shape, so that the tokens go in along an axis whose size it does not know.
    """
    tokens, flat = (graph.reshape(v, Type(v.type.dtype, (TOKENS, v.type.shape[-1]))) for v in (a.x, a.scores))
    stated: dict[str, Any] = {"k": a.used, "normalize_routing_weights": a.normalize, "activation_type": "swiglu"}
    stated |= {"swiglu_fusion": 1, "activation_alpha": float(a.alpha), "activation_beta": float(a.shift)}
    if a.limit:
        stated["swiglu_limit"] = float(a.limit)
    y = graph.one(kind, (tokens, flat, *weights), tokens.type, MICROSOFT, **stated, **settings)
    return graph.reshape(y, out[0])


def in_turn(graph: Graph, gate: Value, up: Value) -> Value:
    """A row of the first, a row of the second, and so on, for every expert: two (E, I, ...) -> (E, 2 I, ...)."""
    dtype, (count, hidden, *rest) = gate.type.dtype, gate.type.shape
    assert isinstance(hidden, int)
    axis = graph.indices(2)
    pair = [graph.one("Unsqueeze", (w, axis), Type(dtype, (count, hidden, 1, *rest))) for w in (gate, up)]
    both = graph.one("Concat", pair, Type(dtype, (count, hidden, 2, *rest)), axis=2)
    return graph.reshape(both, Type(dtype, (count, 2 * hidden, *rest)), [count, 2 * hidden, *rest])


def biases_in_turn(graph: Graph, a: Arguments) -> Value | None:
    return None if a.gate_bias is None or a.up_bias is None else in_turn(graph, a.gate_bias, a.up_bias)


def portable_experts(graph: Graph, out: Types, *arguments: Any) -> Value:
    """For few tokens the matrices of the chosen experts, for many those of all, with weights that are mostly 0.

    Few: their choices together are fewer than the experts.
    """
    a = Arguments(*arguments)
    used = a.used
    count, width = sizes(graph, a.gate)
    dtype, wide, int64 = a.x.type.dtype, torch.float32, torch.int64
    tokens = graph.reshape(a.x, Type(dtype, (TOKENS, width)))
    flat = graph.cast(graph.reshape(a.scores, Type(dtype, (TOKENS, count))), wide)
    chances = graph.one("Softmax", (flat,), flat.type, axis=-1)
    weights, chosen = graph.op(
        "TopK", (chances, graph.indices(used)), Type(wide, (TOKENS, used)), Type(int64, (TOKENS, used))
    )
    if a.normalize:
        total = graph.one("ReduceSum", (weights, graph.indices(1)), Type(wide, (TOKENS, 1)), keepdims=1)
        weights = graph.one("Div", (weights, total), weights.type)
    weights = graph.cast(weights, dtype)

    def op(kind: str, inputs: tuple[Value | None, ...], *shape: Axis, **attributes: Any) -> Value:
        return graph.one(kind, inputs, Type(dtype, shape), **attributes)

    def number(value: float) -> Value:
        return graph.number(value, dtype)

    def activated(g: Value, u: Value) -> Value:
        shape = g.type.shape
        if a.limit:
            g = op("Clip", (g, None, number(a.limit)), *shape)
            u = op("Clip", (u, number(-a.limit), number(a.limit)), *shape)
        bent = g if a.alpha == 1 else op("Mul", (g, number(a.alpha)), *shape)
        made = op("Mul", (g, op("Sigmoid", (bent,), *shape)), *shape)
        return op("Mul", (made, u if a.shift == 0 else op("Add", (u, number(a.shift)), *shape)), *shape)

    def few() -> tuple[Value, ...]:
        column = op("Unsqueeze", (tokens, graph.indices(1, 3)), TOKENS, 1, width, 1)

        def product(w: Value, bias: Value | None, x: Value) -> Value:
            shape = (TOKENS, used, w.type.shape[1], 1)
            y = op("MatMul", (op("Gather", (w, chosen), TOKENS, used, *w.type.shape[1:], axis=0), x), *shape)
            if bias is None:
                return y
            picked = op("Gather", (bias, chosen), *shape[:3], axis=0)
            return op("Add", (y, op("Unsqueeze", (picked, graph.indices(3)), *shape)), *shape)

        inner = activated(product(a.gate, a.gate_bias, column), product(a.up, a.up_bias, column))
        made = op("Squeeze", (product(a.down, a.down_bias, inner), graph.indices(3)), TOKENS, used, width)
        row = op("Unsqueeze", (weights, graph.indices(1)), TOKENS, 1, used)
        return (op("Squeeze", (op("MatMul", (row, made), TOKENS, 1, width), graph.indices(1)), TOKENS, width),)

    def many() -> tuple[Value, ...]:
        columns = op("Transpose", (tokens,), width, TOKENS, perm=[1, 0])

        def product(w: Value, bias: Value | None, x: Value) -> Value:
            shape = (count, w.type.shape[1], TOKENS)
            y = op("MatMul", (w, x), *shape)
            if bias is None:
                return y
            return op("Add", (y, op("Unsqueeze", (bias, graph.indices(2)), *shape[:2], 1)), *shape)

        inner = activated(product(a.gate, a.gate_bias, columns), product(a.up, a.up_bias, columns))
        made = product(a.down, a.down_bias, inner)
        none = graph.cast(graph.one("Mul", (flat, graph.number(0, wide)), flat.type), dtype)
        table = graph.one("ScatterElements", (none, chosen, weights), Type(dtype, (TOKENS, count)), axis=1)
        turned = op("Transpose", (table,), count, TOKENS, perm=[1, 0])
        made = op("Mul", (made, op("Unsqueeze", (turned, graph.indices(1)), count, 1, TOKENS)), count, width, TOKENS)
        summed = op("ReduceSum", (made, graph.indices(0)), width, TOKENS, keepdims=0)
        return (op("Transpose", (summed,), TOKENS, width, perm=[1, 0]),)

    length = graph.one("Shape", (tokens,), Type(int64, (1,)), start=0, end=1)
    choices = graph.one("Mul", (length, graph.indices(used)), length.type)
    sparse = graph.one("Less", (choices, graph.indices(count)), Type(torch.bool, (1,)))
    (y,) = graph.branch(sparse, few, many)
    return graph.reshape(y, out[0])


def sizes(graph: Graph, gate: Value) -> tuple[int, int]:
    """Experts, and the width of what goes in and comes out."""
    count, hidden, width = gate.type.shape
    if not (isinstance(count, int) and isinstance(hidden, int) and isinstance(width, int)):
        raise UnsupportedExport(f"{graph.scope}: experts of the shape {gate.type.shape}; it must be fixed")
    return count, width
