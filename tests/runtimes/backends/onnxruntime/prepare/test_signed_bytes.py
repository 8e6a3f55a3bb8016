"""Files hold unsigned bytes; where the processor allows, they are multiplied as signed ones, with the same numbers."""

from __future__ import annotations

import numpy as np
import pytest

from isoform.runtimes.backends.onnxruntime.graph_file import multiplies_signed_bytes, nodes, with_signed_bytes
from isoform.runtimes.backends.onnxruntime.prepare import prepared_graph
from isoform.runtimes.backends.onnxruntime.session import OnnxRuntimeSession
from tests.exports import exported

pytest.importorskip("onnxruntime")


def test_a_signed_weight_is_as_far_from_its_zero_as_the_unsigned_one() -> None:
    import onnx

    path = exported("whisper", ["onnx"], "int8") / "onnx" / "encoder_model_quantized.onnx"
    whole = onnx.load(path)
    before = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in whole.graph.initializer}
    made = with_signed_bytes(onnx.load(path, load_external_data=False).SerializeToString(), path.parent)
    assert made is not None
    graph, weights = onnx.load_model_from_string(made[0]).graph, made[1]
    zeros = {tensor.name: tensor for tensor in graph.initializer}
    products = [node for node in nodes(graph) if node.op_type == "MatMulIntegerToFloat" and node.input[1] in weights]
    assert len(products) == len(weights) > 0
    for node in products:
        signed = weights[node.input[1]].astype(int) - int(onnx.numpy_helper.to_array(zeros[node.input[5]]))
        np.testing.assert_array_equal(signed, before[node.input[1]].astype(int) - 128)


@pytest.mark.skipif(
    not multiplies_signed_bytes(), reason="this processor has no VNNI: sums of signed products saturate"
)
def test_signed_bytes_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    path = exported("whisper", ["onnx"], "int8") / "onnx" / "encoder_model_quantized.onnx"
    features = {"input_features": np.random.default_rng(0).normal(size=(1, 128, 3000)).astype(np.float32)}
    outputs, types = [], []
    for signed in (False, True):
        monkeypatch.setattr(prepared_graph, "multiplies_signed_bytes", lambda signed=signed: signed)
        with OnnxRuntimeSession(path, threads=1) as session:
            outputs.append(session.run(features)["last_hidden_state"])
            types.append(len(session._graph.arrays))
    assert types[0] == 0 and types[1] > 0
    np.testing.assert_array_equal(outputs[0], outputs[1])
