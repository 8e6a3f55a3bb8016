"""Which floats ONNX Runtime computes in on a device: it takes graphs in float16 everywhere.

Where the CPU provider has no product in float16, it casts what goes into one to float32 and back what comes out, and
holds the weights in float32. Such a graph needs as much time and memory as the one in float32, and has lost the digits.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from isoform.errors import InputError
from isoform.runtimes.backends.onnxruntime.library import library
from isoform.runtimes.devices import parse_device

FLOATS = ("f32", "f16", "bf16")
_SIZE = 16


def computes_in(dtype: str, device: str = "cpu") -> bool:
    """Whether products of a graph in `dtype` are computed in it. Raises InputError for what is no float or device."""
    if dtype not in FLOATS:
        raise InputError(f"dtype {dtype!r} is none of {', '.join(FLOATS)}; quantized graphs compute in their own bytes")
    if dtype == "f32" or parse_device(device) is not None:  # every provider; and CUDA has all of them
        return True
    return _multiplies(dtype)


@cache
def _multiplies(dtype: str) -> bool:
    """Whether the CPU provider opens a product in this dtype and puts no cast beside it."""
    import onnx
    from onnx import TensorProto, helper

    ort = library()
    element = {"f16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[dtype]
    x, y = (helper.make_tensor_value_info(name, element, [_SIZE, _SIZE]) for name in "xy")
    weight = helper.make_tensor("w", element, [_SIZE, _SIZE], [1.0] * _SIZE**2)
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "product", [x], [y], [weight])
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "opened.onnx"
        options.optimized_model_filepath = str(path)
        try:
            ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception:  # noqa: BLE001  (its exceptions have no common base; a refused dtype is none)
            return False
        return all(node.op_type != "Cast" for node in onnx.load(path).graph.node)
