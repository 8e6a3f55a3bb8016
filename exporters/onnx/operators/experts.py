"""`ops.routed_experts`: ONNX Runtime's mixture of experts, or standard ONNX."""

from __future__ import annotations

from typing import Any

import torch

from isoform.errors import UnsupportedExport
from isoform.exporters.onnx.graph import MICROSOFT, Graph, Value
from isoform.exporters.onnx.operators.operands import Types
from isoform.exporters.tracing import Type
from isoform.signature import Axis

TOKENS = "?tokens"
"""The axis of all tokens of a batch."""


def runtime_experts(
    graph: Graph, out: Types, x: Value, scores: Value, gate: Value, up: Value, down: Value, used: int, normalize: int
) -> Value:
    """The kernel does the softmax of the scores itself, and takes the rows of gate and up in turn.

    Its SwiGLU is gate * sigmoid(alpha * gate) * (up + beta). It declares that its output may take the place of its
    input, and then reads what it has overwritten (ONNX Runtime 1.31.1). ONNX Runtime does so where both have one known
    shape, so that the tokens go in along an axis whose size it does not know.
    """
    count, hidden, width = sizes(graph, gate)
    dtype = gate.type.dtype
    axis = graph.indices(2)
    pair = [graph.one("Unsqueeze", (w, axis), Type(dtype, (count, hidden, 1, width))) for w in (gate, up)]
    both = graph.one("Concat", pair, Type(dtype, (count, hidden, 2, width)), axis=2)
    both = graph.reshape(both, Type(dtype, (count, 2 * hidden, width)), [count, 2 * hidden, width])
    tokens, flat = (graph.reshape(v, Type(v.type.dtype, (TOKENS, v.type.shape[-1]))) for v in (x, scores))
    settings: dict[str, Any] = {"k": used, "normalize_routing_weights": normalize, "activation_type": "swiglu"}
    settings |= {"swiglu_fusion": 1, "activation_alpha": 1.0, "activation_beta": 0.0}
    y = graph.one("MoE", (tokens, flat, both, None, down), tokens.type, MICROSOFT, **settings)
    return graph.reshape(y, out[0])


def portable_experts(
    graph: Graph, out: Types, x: Value, scores: Value, gate: Value, up: Value, down: Value, used: int, normalize: int
) -> Value:
    """For few tokens the matrices of the chosen experts, for many those of all, with weights that are mostly 0.

    Few: their choices together are fewer than the experts.
    """
    count, hidden, width = sizes(graph, gate)
    dtype, wide, int64 = x.type.dtype, torch.float32, torch.int64
    tokens = graph.reshape(x, Type(dtype, (TOKENS, width)))
    flat = graph.cast(graph.reshape(scores, Type(dtype, (TOKENS, count))), wide)
    chances = graph.one("Softmax", (flat,), flat.type, axis=-1)
    weights, chosen = graph.op(
        "TopK", (chances, graph.indices(used)), Type(wide, (TOKENS, used)), Type(int64, (TOKENS, used))
    )
    if normalize:
        total = graph.one("ReduceSum", (weights, graph.indices(1)), Type(wide, (TOKENS, 1)), keepdims=1)
        weights = graph.one("Div", (weights, total), weights.type)
    weights = graph.cast(weights, dtype)

    def op(kind: str, inputs: tuple[Value, ...], *shape: Axis, **attributes: Any) -> Value:
        return graph.one(kind, inputs, Type(dtype, shape), **attributes)

    def activated(one: Value, other: Value) -> Value:
        shape = one.type.shape
        silu = op("Mul", (one, op("Sigmoid", (one,), *shape)), *shape)
        return op("Mul", (silu, other), *shape)

    def few() -> tuple[Value, ...]:
        column = op("Unsqueeze", (tokens, graph.indices(1, 3)), TOKENS, 1, width, 1)
        picked = [op("Gather", (w, chosen), TOKENS, used, *w.type.shape[1:], axis=0) for w in (gate, up, down)]
        inner = activated(*(op("MatMul", (w, column), TOKENS, used, hidden, 1) for w in picked[:2]))
        made = op(
            "Squeeze", (op("MatMul", (picked[2], inner), TOKENS, used, width, 1), graph.indices(3)), TOKENS, used, width
        )
        row = op("Unsqueeze", (weights, graph.indices(1)), TOKENS, 1, used)
        return (op("Squeeze", (op("MatMul", (row, made), TOKENS, 1, width), graph.indices(1)), TOKENS, width),)

    def many() -> tuple[Value, ...]:
        columns = op("Transpose", (tokens,), width, TOKENS, perm=[1, 0])
        inner = activated(*(op("MatMul", (w, columns), count, hidden, TOKENS) for w in (gate, up)))
        made = op("MatMul", (down, inner), count, width, TOKENS)
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


def sizes(graph: Graph, gate: Value) -> tuple[int, int, int]:
    """Experts, inner width and outer width."""
    count, hidden, width = gate.type.shape
    if not (isinstance(count, int) and isinstance(hidden, int) and isinstance(width, int)):
        raise UnsupportedExport(f"{graph.scope}: experts of the shape {gate.type.shape}; it must be fixed")
    return count, hidden, width
