"""Whether ONNX Runtime's CPU provider has kernels for a graph: found by opening it, without its weights."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from isoform.exporters.onnx.graph import ELEMENTS, Parameter


def refusal(model: onnx.ModelProto, parameters: Mapping[str, Parameter]) -> str:
    """Why the graph cannot be opened, "" when it can. Its parameters are inputs here, so that nothing is read."""
    try:
        import onnxruntime
    except ImportError as error:
        return f"whether ONNX Runtime runs it cannot be found out ({error}); pip install onnxruntime"
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    for name, parameter in parameters.items():
        type_ = parameter.type
        graph.graph.input.append(onnx.helper.make_tensor_value_info(name, ELEMENTS[type_.dtype], type_.shape))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001  (its exceptions have no common base but this)
        reason = " ".join(str(error).split()).rpartition(" : ")[2]
        return f"ONNX Runtime {onnxruntime.__version__} cannot run it on a CPU ({reason[:200]})"
    return ""
