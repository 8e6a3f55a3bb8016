"""An ONNX graph with what its modules compute as further outputs, in ONNX Runtime.

The exporter names every node by the module that it comes from (`layers.0.attn.q.Add`), so no table is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import CheckpointError
from isoform.validators.bisection.points import Point, rotation
from isoform.validators.bisection.probe import Inside, Values, graph_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.reference.model import Model
    from isoform.validators.cases.case import Case

ROTATIONS = ("RotaryEmbedding",)
EXACT = ".Exact."  # weights that a strict graph computes from integers
WITH_SUM = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
SUM = 3  # the output that is the sum
OPERATOR = r"(^|\.)[A-Z]\w*(\.\d+)?$"


class OnnxProbe:
    """A graph that isoform wrote. Strict: quantized layers do not quantize their input."""

    def __init__(self, model: Model, path: Path, threads: int | None = None) -> None:
        import onnx
        import onnxruntime as ort

        from isoform.runtimes.backends.onnxruntime.graph_file import FOLDER_KEY, exact
        from isoform.runtimes.devices import cpus

        content = exact(path)
        graph = onnx.load_model_from_string(content) if content else onnx.load(str(path), load_external_data=False)
        self._signature = model.signature
        modules = {name for name, _ in model.skeleton().named_modules() if name}
        self._tensors = {point: names for point, names in _places(graph.graph, modules).items() if names}
        shown = {value.name for value in graph.graph.output}
        inside = dict.fromkeys(name for names in self._tensors.values() for name in names if name not in shown)
        given = {value.name for value in graph.graph.input}
        graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inside if name not in given)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or cpus()
        options.add_session_config_entry(FOLDER_KEY, str(path.parent))
        try:
            self._session = ort.InferenceSession(graph.SerializeToString(), options, ["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001  its exceptions have no common base
            raise CheckpointError(f"{path} does not load with its insides shown: {error}") from None
        self._names = [value.name for value in self._session.get_outputs()]
        self._ports = [port.name for port in model.signature.outputs]
        self._dtypes = {value.name: value.type for value in self._session.get_inputs()}

    def rows(self, case: Case) -> Iterator[Inside]:
        return graph_rows(self._run, self._signature, case)

    def _run(self, inputs: Mapping[str, NDArray[Any]]) -> tuple[Values, Mapping[str, NDArray[Any]]]:
        import numpy as np

        narrow = {"tensor(float16)": np.float16, "tensor(float)": np.float32}
        feeds = {name: x.astype(narrow.get(self._dtypes[name], x.dtype), copy=False) for name, x in inputs.items()}
        outputs = dict(zip(self._names, self._session.run(None, feeds), strict=True))
        known = {**inputs, **outputs}
        values = {point: [known[name] for name in names if name in known] for point, names in self._tensors.items()}
        return values, {name: outputs[name] for name in self._ports}

    def close(self) -> None:
        self._session = None


def _places(graph: Any, modules: set[str]) -> dict[Point, list[str]]:
    """Point -> the tensors that may be its value; of a module that runs more than once, those of the first time.

    What goes into a module is known where its own node is the first: behind modules inside it, a node takes theirs.
    """
    weights = {tensor.name for tensor in graph.initializer}
    again = _second_runs(graph, weights)
    places: dict[Point, list[str]] = {}
    rotations: dict[str, int] = {}
    begun: set[str] = set()
    for n, node in enumerate(graph.node):
        own = [name for name in node.input if name and name not in weights and EXACT not in name]
        scopes = {name: _scope(name, node) for name in node.output if name}
        first = next(iter(scopes.values()), "")
        if node.op_type in ROTATIONS:
            rotations[first] = rotations.get(first, 0) + 1
            places[rotation(first, rotations[first])] = [node.output[0]]
        if node.op_type in WITH_SUM and len(node.output) > SUM:  # one kernel adds and norms
            own = [node.output[SUM]]
        if first in modules and own and first not in begun:
            places.setdefault(Point(first, "in"), own)
        for name, path in scopes.items():
            while path:
                # The last node has the last word, among its outputs the first.
                if path in modules and n < again.get(path, len(graph.node)):
                    others = (other for other, scope in scopes.items() if scope == path and other != name)
                    places[Point(path)] = [name, *others]
                begun.add(path)
                path = path.rpartition(".")[0]
    return places


def _second_runs(graph: Any, weights: set[str]) -> dict[str, int]:
    """Module -> the number of the node with which it begins to run a second time; those that run once are left out.

    Layers may share their weights (ALBERT): the operator that takes a weight of its own module comes again then.
    """
    scopes = [_scope(node.output[0], node) for node in graph.node]
    seen: set[tuple[str, str, str]] = set()
    found: dict[str, int] = {}
    for n, (path, node) in enumerate(zip(scopes, graph.node, strict=True)):
        own = {(path, node.op_type, name) for name in node.input if name in weights and name.startswith(f"{path}.")}
        if path and own & seen:
            first = n
            while first and scopes[first - 1] == path:
                first -= 1
            while path:
                found[path] = min(first, found.get(path, first))
                path = path.rpartition(".")[0]
        seen |= own
    return found


def _scope(output: str, node: Any) -> str:
    """The module that an output comes from: its name without the operator, which is written large, and a number."""
    name = output if re.search(OPERATOR, output) else node.name
    return re.sub(OPERATOR, "", name)
