"""A trace, node by node, into an ONNX graph."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any

import onnx
import torch

from isoform.errors import UnsupportedExport
from isoform.exporters.onnx.graph import Graph, Parameter, RuntimeSize, Value
from isoform.exporters.onnx.operators.layers import from_start
from isoform.exporters.onnx.operators.operands import Lowering
from isoform.exporters.onnx.operators.registry import ATEN
from isoform.exporters.tracing import Node, Trace, Type
from isoform.signature import Signature

SIZES: Mapping[str, tuple[str, Callable[[int, int], int]]] = {
    "aten::add": ("Add", operator.add),
    "aten::floor_divide": ("Div", operator.floordiv),
    "aten::mul": ("Mul", operator.mul),
    "aten::sub": ("Sub", operator.sub),
}
"""Arithmetic on sizes, in ONNX and on known ones. They are never negative, so truncating is rounding down."""

HEAD = "head"
"""The path of the layer that makes logits, in every family's vocabulary of names."""

SAME = ("aten::Int", "aten::ScalarImplicit", "prim::NumToTensor")
"""Between an integer and a scalar tensor: a size stays a size."""


def translate(
    trace: Trace, signature: Signature, dtype: torch.dtype, tied: Mapping[str, str], special: Mapping[str, Lowering]
) -> tuple[onnx.ModelProto, dict[str, Parameter]]:
    """The ONNX model without its parameters, and these by name. `special` goes before the table `ATEN`.

    `tied` maps a parameter to the one whose tensor it shares. Raises UnsupportedExport for an operation without a form.
    """
    graph = Graph(signature, dtype)
    values: dict[str, Any] = {trace.root: ""}  # a module is its path
    for name, port in zip(trace.inputs, signature.inputs, strict=True):
        values[name] = graph.input(port)
    for node in trace.nodes:
        graph.scope = node.scope
        result = _translate(graph, special, trace, tied, node, [values[name] for name in node.inputs])
        results = result if isinstance(result, tuple) else (result,)
        for value in results:
            if isinstance(value, Value):
                graph.derived(value)
        values.update(zip((name for name, _ in node.outputs), results, strict=True))
    for name, port in zip(trace.outputs, signature.outputs, strict=True):
        graph.output(port, values[name])
    return graph.finish()


def _translate(
    graph: Graph,
    special: Mapping[str, Lowering],
    trace: Trace,
    tied: Mapping[str, str],
    node: Node,
    inputs: list[Any],
) -> Any:
    """What a node's output is, or a tuple of what its outputs are."""
    kind, types = node.kind, [type_ for _, type_ in node.outputs]
    if kind == "prim::GetAttr":
        return _attribute(graph, trace, tied, f"{inputs[0]}.{node.value}" if inputs[0] else node.value)
    if kind == "prim::Constant":
        if isinstance(node.value, torch.Tensor):
            return graph.constant(node.value.numpy(), node.value.dtype)
        return node.value
    if kind in ("prim::ListConstruct", "prim::TupleConstruct"):
        return inputs
    if kind in ("prim::ListUnpack", "prim::TupleUnpack"):
        return tuple(inputs[0])
    if kind == "aten::size" and len(inputs) == 2:
        axis = inputs[0].type.shape[inputs[1]]
        return axis if isinstance(axis, int) else graph.size(axis)
    if kind in SAME and not isinstance(inputs[0], Value):
        return inputs[0]
    if kind in SIZES and all(isinstance(x, int | RuntimeSize) for x in inputs):
        return _size(graph, kind, inputs[0], inputs[1])
    if kind == "aten::linear" and node.scope == HEAD and graph.decodes:
        inputs = [from_start(graph, inputs[0]), *inputs[1:]]
    lowering = special.get(kind) or ATEN.get(kind.removeprefix("aten::"))
    if lowering is None:
        raise UnsupportedExport(
            f"{node.scope or 'the model'}: {kind} has no ONNX form yet; "
            "add one to exporters/onnx/operators/, or write the layer with the operations listed there"
        )
    try:
        inspect.signature(lowering).bind(graph, types, *inputs)
    except TypeError as error:
        raise UnsupportedExport(
            f"{node.scope or 'the model'}: {kind} with {len(inputs)} arguments has no ONNX form yet ({error}); "
            "leave its options at their defaults, or extend exporters/onnx/operators/"
        ) from None
    return lowering(graph, types, *inputs)


def _attribute(graph: Graph, trace: Trace, tied: Mapping[str, str], path: str) -> Value | str:
    """A parameter, a buffer's value, or the path of a module."""
    if path in trace.parameters:
        return graph.parameter(tied.get(path, path), trace.parameters[path])
    if path in trace.buffers:
        return graph.constant(trace.buffers[path].numpy(), trace.buffers[path].dtype)
    return path


def _size(graph: Graph, kind: str, x: int | RuntimeSize, y: int | RuntimeSize) -> int | RuntimeSize:
    name, fold = SIZES[kind]
    if isinstance(x, int) and isinstance(y, int):
        return fold(x, y)
    made = graph.one(name, (graph.shape([x]), graph.shape([y])), Type(torch.int64, (1,))).name
    return RuntimeSize(made, f"?{made}")
