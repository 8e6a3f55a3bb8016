"""Small graphs with their weights beside them, as exports have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from isoform.runtimes.backends.onnxruntime.graph_file import nodes
from isoform.runtimes.backends.onnxruntime.prepare import prepared_graph
from isoform.runtimes.backends.onnxruntime.prepare.channel_blocks import LINEAR

WIDTH = 32  # a multiple of every block of channels
SUMS = 1e-5  # what another order of adding changes in float32, in outputs of about 1


class Graph:
    """A graph with its weights beside it, and what it gives."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "model.onnx"
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self.random = np.random.default_rng(0)

    def weight(self, name: str, *shape: int) -> str:
        from onnx.numpy_helper import from_array

        values = self.random.normal(size=shape).astype(np.float32) / np.sqrt(np.float32(shape[-1]))
        self.tensors.append(from_array(values, name))
        return name

    def linear(self, x: str, result: str, out: int, width: int = WIDTH, **settings: int) -> str:
        weight = self.weight(f"{result}.weight", out, width)
        return self.op(LINEAR, [x, weight], result, "com.microsoft", **{"transB": 1, **settings})

    def integers(self, name: str, values: Any) -> str:
        from onnx.numpy_helper import from_array

        self.tensors.append(from_array(np.array(values, np.int64), name))
        return name

    def norm(self, x: str, result: str, axis: int = -1, width: int = WIDTH, length: int = 1) -> str:
        shape = (length, width) if axis == 1 else (width,)
        scale = self.weight(f"{result}.weight", *shape)
        return self.op("LayerNormalization", [x, scale], result, axis=axis)

    def op(self, kind: str, inputs: list[str], result: str, domain: str = "", **settings: Any) -> str:
        from onnx.helper import make_node

        self.nodes.append(make_node(kind, inputs, [result], name=result, domain=domain, **settings))
        return result

    def write(self, outputs: list[str], rank: int = 3, width: int = WIDTH) -> None:
        import onnx
        from onnx import TensorProto, helper

        axes = [*"BTHW"][: rank - 1]
        given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [*axes, width])
        made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "graph", [given], made, self.tensors)
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        inside = 64  # bytes: integers
        onnx.save(model, self.path, save_as_external_data=True, location="weights", size_threshold=inside)

    def model(self) -> Any:
        import onnx

        return onnx.load(self.path, load_external_data=False)


def outputs_of(path: Path, x: np.ndarray) -> list[Any]:
    """As a session opens the graph: changed for this processor."""
    import onnxruntime

    graph = prepared_graph.prepare(path, (), strict=False, on_cpu=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    for name, value in graph.values.items():
        options.add_initializer(name, value)
    if graph.source != path:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    session = onnxruntime.InferenceSession(graph.source, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": x}))


def kinds(graph: Any) -> list[str]:
    return [node.op_type for node in nodes(graph)]


def given(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)
