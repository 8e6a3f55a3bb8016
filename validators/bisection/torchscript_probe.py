"""A TorchScript file, taken through its graph node by node, so that every call of a module can be seen.

Hooks on a loaded module do not run: its code calls its parts without Python. The graph keeps these calls.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import IsoformError
from isoform.validators.bisection.points import Point, main_tensor, tensors
from isoform.validators.bisection.probe import Inside, Values, graph_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.reference.model import Model
    from isoform.validators.cases.case import Case


SCRIPTED = "prim::CallFunction"
"""A call of a scripted function, whose graph Python cannot get at: the module with it is taken as a whole."""


class TorchScriptProbe:
    """A file that isoform wrote."""

    def __init__(self, model: Model, path: Path) -> None:
        import torch

        self._signature = model.signature
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # there is no other reader of this format
            self._module: Any = torch.jit.load(str(path), map_location="cpu").eval()
        self._blocks: dict[str, _Block] = {}
        self._dtype = next((p.dtype for p in self._module.parameters()), torch.float32)

    def rows(self, case: Case) -> Iterator[Inside]:
        return graph_rows(self._run, self._signature, case)

    def _run(self, inputs: Mapping[str, NDArray[Any]]) -> tuple[Values, Mapping[str, NDArray[Any]]]:
        import torch

        given = [torch.from_numpy(inputs[port.name]) for port in self._signature.inputs]
        given = [x.to(self._dtype) if x.is_floating_point() else x for x in given]
        found: dict[Point, list[Any]] = {}
        with torch.inference_mode():
            outputs = _Interpreter(found, self._blocks).call(self._module, "", given)
        ports = [port.name for port in self._signature.outputs]
        flat = dict(zip(ports, (_array(x) for x in tensors(outputs)), strict=True))
        return {point: [_array(x) for x in candidates] for point, candidates in found.items()}, flat

    def close(self) -> None:
        self._module = None


def _array(tensor: Any) -> NDArray[Any]:
    import torch

    array: NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


@dataclass(frozen=True)
class _Block:
    """A graph or a branch, taken apart once: per node itself, the names of what it takes and of what it gives."""

    nodes: tuple[tuple[Any, list[str], list[str]], ...]
    takes: list[str]
    gives: list[str]


def _taken_apart(block: Any) -> _Block:
    def names(values: Any) -> list[str]:
        return [value.debugName() for value in values]

    nodes = tuple((node, names(node.inputs()), names(node.outputs())) for node in block.nodes())
    return _Block(nodes, names(block.inputs()), names(block.outputs()))


class _Interpreter:
    """Runs graphs; `found` gets what goes into every called module, and what comes out.

    `blocks` keeps the graphs of the modules by path, from one run to the next.
    """

    def __init__(self, found: dict[Point, list[Any]], blocks: dict[str, _Block]) -> None:
        self._found, self._blocks = found, blocks

    def call(self, module: Any, path: str, arguments: list[Any]) -> Any:
        if path not in self._blocks:
            self._blocks[path] = _taken_apart(module.graph)
        block = self._blocks[path]
        if any(node.kind() == SCRIPTED for node, _, _ in block.nodes):
            result = module(*arguments)
        else:
            # A module is its path with itself; everything else is a value.
            values: dict[str, Any] = {block.takes[0]: (path, module)}
            values.update(zip(block.takes[1:], arguments, strict=True))
            self._run(block, values)
            results = [values[name] for name in block.gives]
            result = results[0] if len(results) == 1 else tuple(results)
        if path:
            floating = [x for x in tensors(arguments) if x.is_floating_point()]
            self._found.setdefault(Point(path, "in"), floating)
            likely = main_tensor(arguments, result)
            self._found.setdefault(Point(path), [likely, *tensors(result)] if likely is not None else [])
        return result

    def _run(self, block: _Block, values: dict[str, Any]) -> None:
        for node, takes, gives in block.nodes:
            made = self._node(node, [values[name] for name in takes], values)
            values.update({gives[0]: made} if len(gives) == 1 else zip(gives, made, strict=True))

    def _node(self, node: Any, given: list[Any], values: dict[str, Any]) -> Any:
        import torch

        kind = node.kind()
        if kind == "prim::Constant":
            return node.output().toIValue()
        if kind == "prim::GetAttr":
            path, module = given[0]
            name = node.s("name")
            found = getattr(module, name)
            return (f"{path}.{name}".lstrip("."), found) if isinstance(found, torch.jit.ScriptModule) else found
        if kind == "prim::CallMethod":
            (path, module), *arguments = given
            return self.call(module, path, arguments)
        if kind == "prim::ListConstruct":
            return given
        if kind == "prim::TupleConstruct":
            return tuple(given)
        if kind in ("prim::TupleUnpack", "prim::ListUnpack"):
            parts = list(given[0])
            return parts[0] if len(parts) == 1 else parts
        if kind == "prim::NumToTensor":
            return torch.tensor(given[0])
        if kind in ("aten::Int", "aten::ScalarImplicit"):
            return given[0].item() if isinstance(given[0], torch.Tensor) else int(given[0])
        if kind == "aten::Bool":
            return bool(given[0])
        if kind == "prim::If":
            branch = _taken_apart(list(node.blocks())[0 if given[0] else 1])
            self._run(branch, values)
            results = [values[name] for name in branch.gives]
            return results[0] if len(results) == 1 else results
        if not kind.startswith("aten::"):
            raise IsoformError(f"{kind} in a TorchScript graph is not interpreted; its insides cannot be shown")
        operation, names = _operator(kind, node.schema())
        positional = len(given) - len(names)
        return operation(*given[:positional], **dict(zip(names, given[positional:], strict=True)))


@cache
def _operator(kind: str, schema: str) -> tuple[Any, tuple[str, ...]]:
    """torch's function, and the names of its arguments that go by name only."""
    import torch

    operation, _ = torch._C._jit_get_operation(kind)
    arguments = torch._C.parse_schema(schema).arguments
    return operation, tuple(argument.name for argument in arguments if argument.kwarg_only)
