"""An ONNX graph under construction: every distinct computation once, names from the module that makes it.

All operations here are pure, so a node with the same operator, inputs and attributes as an earlier one is the earlier
one: shape arithmetic and what layers share appear once, and nothing needs cleaning up afterwards but what is unused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto

from isoform.errors import UnsupportedExport
from isoform.exporters.onnx.forms import DATA, Form
from isoform.exporters.onnx.passes.unused import used, with_inner
from isoform.exporters.tracing import Type
from isoform.signature import Axis, Port, Signature

MICROSOFT = "com.microsoft"
OPSET = 23
IR_VERSION = 10  # the oldest that the files need; newer readers take it

ELEMENTS: dict[torch.dtype, int] = {
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.bool: TensorProto.BOOL,
    torch.float16: TensorProto.FLOAT16,
    torch.float32: TensorProto.FLOAT,
    torch.float64: TensorProto.DOUBLE,
    torch.int32: TensorProto.INT32,
    torch.int64: TensorProto.INT64,
    torch.uint8: TensorProto.UINT8,
}
"""torch's dtypes and ONNX' element types."""


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor in the graph."""

    name: str
    type: Type


@dataclass(frozen=True, slots=True)
class Parameter:
    """An initializer that the weight file holds: a weight in the type's dtype, or a part of one of its forms."""

    type: Type
    weight: str
    form: Form | None = None
    part: str = DATA


@dataclass(frozen=True, slots=True)
class RuntimeSize:
    """A size that varies, as a traced integer; `name` is an int64 tensor of shape (1,)."""

    name: str
    axis: str


Number = int | float | bool


class Graph:
    """Takes operations in order; `scope` (a module's path) names what comes next."""

    def __init__(self, signature: Signature, dtype: torch.dtype) -> None:
        self.scope = ""
        self.parameters: dict[str, Parameter] = {}
        self._signature, self._dtype = signature, dtype
        self._nodes: list[onnx.NodeProto] = []
        self._makers: dict[str, tuple[onnx.NodeProto, tuple[Value | None, ...]]] = {}  # by output: node and inputs
        self._known: dict[tuple[Any, ...], tuple[str, ...]] = {}
        self._constants: dict[str, TensorProto] = {}
        self._constant_names: dict[tuple[Any, ...], str] = {}
        self._taken: dict[str, int] = {}
        self._outputs: dict[str, str] = {}
        self._derived: dict[str, tuple[Value, int]] = {}

    @property
    def _axes(self) -> set[str]:
        return {axis for port in self._signature.inputs for axis in port.axes if isinstance(axis, str)}

    @property
    def decodes(self) -> bool:
        """Whether the model keeps a cache."""
        return bool(self._signature.states)

    # Values

    def input(self, port: Port) -> Value:
        return Value(port.name, Type(self._port_dtype(port), port.axes))

    def parameter(self, name: str, type_: Type) -> Value:
        """A weight as it is; asking again gives the same one."""
        self.parameters[name] = Parameter(type_, name)
        return Value(name, type_)

    def part(self, weight: Value, form: Form, part: str, shape: tuple[int, ...] | None = None) -> Value:
        """A part of a weight's form, or the same bytes as a tensor of another `shape`."""
        rows, columns = matrix(weight)
        type_ = form.types(rows, columns)[part]
        name = f"{weight.name}.{part}" if shape is None else f"{weight.name}.{part}.{len(shape)}d"
        type_ = type_ if shape is None else Type(type_.dtype, shape)
        self.parameters[name] = Parameter(type_, weight.name, form, part)
        return Value(name, type_)

    def constant(self, array: NDArray[Any], dtype: torch.dtype) -> Value:
        """A small tensor inside the graph file; equal ones are one."""
        key = (dtype, array.shape, array.tobytes())
        name = self._constant_names.get(key)
        if name is None:
            name = self._constant_names[key] = f"constant.{len(self._constants)}"
            self._constants[name] = TensorProto(
                name=name, data_type=ELEMENTS[dtype], dims=array.shape, raw_data=np.ascontiguousarray(array).tobytes()
            )
        return Value(name, Type(dtype, array.shape))

    def named_constant(self, name: str, array: NDArray[Any], dtype: torch.dtype) -> Value:
        """A constant apart, under a name that a reader of the graph can rely on."""
        self._constants[name] = TensorProto(
            name=name, data_type=ELEMENTS[dtype], dims=array.shape, raw_data=np.ascontiguousarray(array).tobytes()
        )
        return Value(name, Type(dtype, array.shape))

    def number(self, value: Number, dtype: torch.dtype) -> Value:
        """A scalar in `dtype`, rounded as torch rounds it."""
        scalar = torch.tensor(value, dtype=dtype)
        return self.constant((scalar.view(torch.int16) if dtype == torch.bfloat16 else scalar).numpy(), dtype)

    def indices(self, *values: int) -> Value:
        return self.constant(np.array(values, dtype=np.int64), torch.int64)

    def op(
        self,
        kind: str,
        inputs: Sequence[Value | None],
        *types: Type,
        domain: str = "",
        attributes: Mapping[str, Any] | None = None,
    ) -> tuple[Value, ...]:
        """One node with an output per type; trailing absent inputs are left out."""
        names = ["" if value is None else value.name for value in inputs]
        while names and not names[-1]:
            names.pop()
        attributes = attributes or {}
        settings = tuple(sorted((name, tuple(x) if isinstance(x, list) else x) for name, x in attributes.items()))
        key = (kind, domain, tuple(names), settings, len(types))
        outputs = self._known.get(key)
        if outputs is None:
            outputs = self._known[key] = tuple(self._fresh(kind) for _ in types)
            node = onnx.helper.make_node(kind, names, outputs, domain=domain, name=outputs[0], **attributes)
            self._nodes.append(node)
            self._makers |= dict.fromkeys(outputs, (node, tuple(inputs)))
        return tuple(Value(name, type_) for name, type_ in zip(outputs, types, strict=True))

    def one(self, kind: str, inputs: Sequence[Value | None], type_: Type, domain: str = "", **attributes: Any) -> Value:
        """`op` with one output."""
        return self.op(kind, inputs, type_, domain=domain, attributes=attributes)[0]

    def branch(
        self, condition: Value, then: Callable[[], Sequence[Value]], otherwise: Callable[[], Sequence[Value]]
    ) -> tuple[Value, ...]:
        """An If node: only the side that `condition` (of one value) asks for is run.

        Both sides give the same number of values; the types of the result are those that `otherwise` gives.
        """
        sides: dict[str, onnx.GraphProto] = {}
        results: list[Value] = []
        for name, make in (("then_branch", then), ("else_branch", otherwise)):
            nodes, known = self._nodes, self._known
            self._nodes, self._known = [], dict(known)
            try:
                results = [self._made_here(value) for value in make()]
                side = onnx.GraphProto(name=self._fresh(name), node=self._nodes)
            finally:
                self._nodes, self._known = nodes, known
            side.output.extend(
                onnx.helper.make_tensor_value_info(value.name, ELEMENTS[value.type.dtype], None) for value in results
            )
            sides[name] = side
        outputs = tuple(self._fresh("If") for _ in results)
        self._known[("If", *outputs)] = outputs
        node = onnx.helper.make_node("If", [condition.name], outputs, name=outputs[0], **sides)
        self._nodes.append(node)
        self._makers |= dict.fromkeys(outputs, (node, ()))
        return tuple(Value(name, value.type) for name, value in zip(outputs, results, strict=True))

    def loop(
        self, count: int, starts: Sequence[Value], step: Callable[[Sequence[Value]], Sequence[Value]]
    ) -> tuple[Value, ...]:
        """A Loop node: `step` takes values, the first time `starts`, and gives the next ones, so many times."""
        nodes, known = self._nodes, self._known
        self._nodes, self._known = [], dict(known)
        try:
            taken = [Value(self._fresh("state"), value.type) for value in starts]
            given = [self._made_here(value) for value in step(taken)]
            body = onnx.GraphProto(name=self._fresh("body"), node=self._nodes)
            number, going = self._fresh("number"), self._fresh("going")
            body.node.append(onnx.helper.make_node("Identity", [going], [f"{going}.on"], name=f"{going}.on"))
        finally:
            self._nodes, self._known = nodes, known
        info = onnx.helper.make_tensor_value_info
        body.input.extend([info(number, TensorProto.INT64, []), info(going, TensorProto.BOOL, [])])
        body.input.extend(info(value.name, ELEMENTS[value.type.dtype], None) for value in taken)
        body.output.append(info(f"{going}.on", TensorProto.BOOL, []))
        body.output.extend(info(value.name, ELEMENTS[value.type.dtype], None) for value in given)
        outputs = tuple(self._fresh("Loop") for _ in starts)
        self._known[("Loop", *outputs)] = outputs
        inputs = [self.number(count, torch.int64), self.number(True, torch.bool), *starts]
        node = onnx.helper.make_node("Loop", [value.name for value in inputs], outputs, name=outputs[0], body=body)
        self._nodes.append(node)
        self._makers |= dict.fromkeys(outputs, (node, ()))
        return tuple(Value(name, value.type) for name, value in zip(outputs, starts, strict=True))

    def _made_here(self, value: Value) -> Value:
        """`value` as the output of a node of the present branch."""
        if any(value.name in node.output for node in self._nodes):
            return value
        name = self._fresh("Identity")
        self._nodes.append(onnx.helper.make_node("Identity", [value.name], [name], name=name))
        return Value(name, value.type)

    def summands(self, x: Value) -> tuple[Value, Value] | None:
        """The two computed values, of the shape of `x`, whose sum it is, if it is one that was made here."""
        node, inputs = self._makers.get(x.name, (None, ()))
        if node is None or node.op_type != "Add" or not any(node is made for made in reversed(self._nodes)):
            return None
        found = [value for value in inputs if value is not None and value.name in self._makers and value.type == x.type]
        return (found[0], found[1]) if len(found) == 2 else None

    def absorb(self, total: Value, kind: str, inputs: Sequence[Value], at: int, **attributes: Any) -> Value:
        """Put one node of ONNX Runtime in the place of the sum `total`, which it gives as its output `at`.

        Returns its first output, of the same type. Its inputs are those of the sum, or weights.
        """
        made = self._fresh(kind)
        outputs = [made, *[""] * (at - 1), total.name]
        names = [value.name for value in inputs]
        merged = onnx.helper.make_node(kind, names, outputs, domain=MICROSOFT, name=made, **attributes)
        (place,) = (n for n, node in enumerate(self._nodes) if node is self._makers[total.name][0])
        self._nodes[place] = merged
        self._makers |= dict.fromkeys((made, total.name), (merged, tuple(inputs)))
        self._known[kind, made] = (made,)
        return Value(made, total.type)

    # Shapes

    def derived(self, value: Value) -> None:
        """Remember where the sizes of a value can be read that no input has, such as those after a convolution."""
        for n, axis in enumerate(value.type.shape):
            if isinstance(axis, str) and axis.startswith("?"):
                self._derived.setdefault(axis, (value, n))

    def size(self, axis: str) -> RuntimeSize:
        """The size of a named axis, read from the first input that has it, or from the first value."""
        if axis in self._derived:
            value, at = self._derived[axis]
            shape = self.one("Shape", (value,), Type(torch.int64, (1,)), start=at, end=at + 1)
            return RuntimeSize(shape.name, axis)
        for port in self._signature.inputs:
            if axis in port.axes:
                at = port.axes.index(axis)
                shape = self.one("Shape", (self.input(port),), Type(torch.int64, (1,)), start=at, end=at + 1)
                return RuntimeSize(shape.name, axis)
        raise UnsupportedExport(
            f"{self.scope or 'the model'}: no input has the size {axis}; write it with the sizes of inputs"
        )

    def knows(self, axis: str) -> bool:
        """Whether the size of a named axis can be read from an input or a value."""
        return axis in self._derived or any(axis in port.axes for port in self._signature.inputs)

    def shape(self, dims: Sequence[Axis | RuntimeSize]) -> Value:
        """An int64 vector of sizes."""
        if all(isinstance(dim, int) for dim in dims):
            return self.indices(*(dim for dim in dims if isinstance(dim, int)))
        parts = []
        for dim in dims:
            if isinstance(dim, int):
                parts.append(self.indices(dim))
            else:
                parts.append(
                    Value(dim.name if isinstance(dim, RuntimeSize) else self.size(dim).name, Type(torch.int64, (1,)))
                )
        if len(parts) == 1:
            return parts[0]
        return self.one("Concat", parts, Type(torch.int64, (len(parts),)), axis=0)

    def reshape(self, x: Value, type_: Type, dims: Sequence[Axis | RuntimeSize] | None = None) -> Value:
        """`x` in another shape, by a constant where one says it: 0 keeps a size, one -1 takes the rest."""
        if x.type.shape == type_.shape:
            return x
        before, after = x.type.shape, type_.shape
        plan = [
            dim if isinstance(dim, int) else 0 if n < len(before) and before[n] == dim else -1
            for n, dim in enumerate(after)
        ]
        if plan.count(-1) > 1:
            wanted = list(dims or after)
            unknown = [n for n, dim in enumerate(wanted) if isinstance(dim, str) and not self.knows(dim)]
            if len(unknown) == 1:  # a product of others, which the operator works out
                wanted[unknown[0]] = -1
            return self.one("Reshape", (x, self.shape(wanted)), type_)
        return self.one("Reshape", (x, self.indices(*plan)), type_)

    def cast(self, x: Value, dtype: torch.dtype) -> Value:
        if x.type.dtype == dtype:
            return x
        return self.one("Cast", (x,), Type(dtype, x.type.shape), to=ELEMENTS[dtype])

    def expand(self, x: Value, shape: tuple[Axis, ...]) -> Value:
        if x.type.shape == shape:
            return x
        return self.one("Expand", (x, self.shape(shape)), Type(x.type.dtype, shape))

    # The whole

    def output(self, port: Port, value: Value) -> None:
        """Make a value the graph's output of that name."""
        expected = Type(self._port_dtype(port), port.axes)
        made = {axis for axis in port.axes if isinstance(axis, str)} - self._axes
        named = tuple(
            theirs if theirs in made and isinstance(ours, str) and ours.startswith("?") else ours
            for ours, theirs in zip(value.type.shape, port.axes, strict=False)
        )
        if Type(value.type.dtype, named) != expected or len(value.type.shape) != len(port.axes):
            raise UnsupportedExport(
                f"output {port.name} is {value.type}, the signature says {expected}; correct the family's signature"
            )
        name = value.name
        computed = any(name in names for names in self._known.values())
        if not computed or name in self._outputs:  # an input or a weight, or an output under another name already
            self._nodes.append(onnx.helper.make_node("Identity", [name], [port.name], name=port.name))
            name = port.name
        self._outputs[name] = port.name

    def finish(self) -> tuple[onnx.ModelProto, dict[str, Parameter]]:
        """The model without what no output needs, and the parameters that it uses, which are not in it yet."""
        kept, needed = used(self._nodes, self._outputs)
        for node in kept:
            for inner in with_inner(node):
                for names in (inner.input, inner.output):
                    names[:] = [self._outputs.get(name, name) for name in names]
        graph = onnx.GraphProto(name="isoform")
        graph.node.extend(kept)
        graph.input.extend(self._info(port) for port in self._signature.inputs)
        graph.output.extend(self._info(port) for port in self._signature.outputs)
        graph.initializer.extend(tensor for name, tensor in self._constants.items() if name in needed)
        model = onnx.ModelProto(ir_version=IR_VERSION, producer_name="isoform", graph=graph)
        model.opset_import.add(domain="", version=OPSET)
        if any(inner.domain == MICROSOFT for node in kept for inner in with_inner(node)):
            model.opset_import.add(domain=MICROSOFT, version=1)
        return model, {name: parameter for name, parameter in self.parameters.items() if name in needed}

    def _info(self, port: Port) -> onnx.ValueInfoProto:
        return onnx.helper.make_tensor_value_info(port.name, ELEMENTS[self._port_dtype(port)], port.axes)

    def _port_dtype(self, port: Port) -> torch.dtype:
        return {"int64": torch.int64, "bool": torch.bool}.get(port.dtype, self._dtype)

    def _fresh(self, kind: str) -> str:
        base = f"{self.scope}.{kind}" if self.scope else kind
        count = self._taken[base] = self._taken.get(base, 0) + 1
        return base if count == 1 else f"{base}.{count}"


def matrix(weight: Value) -> tuple[int, int]:
    """Rows and columns of a weight; a stack of matrices has the rows of all."""
    *rows, columns = weight.type.shape
    if not rows or not isinstance(columns, int) or not all(isinstance(count, int) for count in rows):
        raise UnsupportedExport(f"{weight.name} has the shape {weight.type.shape}, which is no matrix of a fixed size")
    return prod(count for count in rows if isinstance(count, int)), columns
