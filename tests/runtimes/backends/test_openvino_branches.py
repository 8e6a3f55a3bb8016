"""What comes out of a branch is there for what reads it, however large the arrays behind it are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from isoform.errors import BackendUnavailable
from isoform.runtimes.backends.openvino.session import OpenVinoSession
from isoform.runtimes.open import open_path
from isoform.signature import Port, Signature
from tests.exports import portable

WIDTH, HEADS, DIM = 40, 3, 8  # attention narrower than the model, as in T5
SIGNATURE = Signature(
    (Port("switch", "bool", (1,)), Port("y", "float", ("batch_size", "sequence_length", WIDTH))),
    (Port("out", "float", ("batch_size", "sequence_length", WIDTH)),),
)


def value(name: str, width: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["B", "T", width])


def branched(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """A graph with a branch between narrow products and wide ones; its weights."""
    inner, number = HEADS * DIM, np.random.default_rng(0).standard_normal
    shapes = {"narrow": (WIDTH, inner), "wide": (inner, WIDTH), "last": (WIDTH, WIDTH)}
    weights = {name: number(shape).astype(np.float32) / 8 for name, shape in shapes.items()}
    constants = {"one": np.ones(1, np.float32), "split": np.array([0, 0, HEADS, DIM]), "join": np.array([0, 0, inner])}

    def side(kind: str) -> onnx.GraphProto:
        names = [f"{kind}{n}" for n in range(5)]
        nodes = [
            helper.make_node("Reshape", ["x", "split"], names[:1]),
            helper.make_node("Transpose", names[:1], names[1:2], perm=[0, 2, 1, 3]),
            helper.make_node(kind, [names[1], "one"], names[2:3]),
            helper.make_node("Transpose", names[2:3], names[3:4], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", [names[3], "join"], names[4:]),
        ]
        return helper.make_graph(nodes, kind, [], [value(names[4], inner)])

    nodes = [
        helper.make_node("MatMul", ["y", "narrow"], ["x"]),
        helper.make_node("If", ["switch"], ["z"], then_branch=side("Add"), else_branch=side("Sub")),
        helper.make_node("MatMul", ["z", "wide"], ["m"]),
        helper.make_node("Add", ["m", "y"], ["s"]),
        helper.make_node("MatMul", ["s", "last"], ["out"]),
    ]
    inputs = [helper.make_tensor_value_info("switch", onnx.TensorProto.BOOL, [1]), value("y", WIDTH)]
    stored = [numpy_helper.from_array(array, name) for name, array in (weights | constants).items()]
    graph = helper.make_graph(nodes, "branched", inputs, [value("out", WIDTH)], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return weights


def test_growing_arrays_leave_what_a_branch_gave(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    weights = branched(tmp_path / "x.onnx")
    with OpenVinoSession(tmp_path / "x.onnx", SIGNATURE, threads=1) as session:
        for n, (rows, length) in enumerate([(1, 1), (2, 3), (2, 3), (4, 5), (1, 2), (9, 9)]):
            y = np.random.default_rng(n).standard_normal((rows, length, WIDTH)).astype(np.float32)
            found = session.run({"switch": np.array([n % 2 == 0]), "y": y})
            z = y @ weights["narrow"] + (1 if n % 2 == 0 else -1)
            expected = (z @ weights["wide"] + y) @ weights["last"]
            np.testing.assert_allclose(found["out"], expected, rtol=0, atol=1e-4, err_msg=f"{rows} rows of {length}")
            assert list(found) == ["out"]


def test_a_branch_within_a_branch_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    branched(tmp_path / "x.onnx")
    inner = onnx.load(tmp_path / "x.onnx").graph
    sides = [helper.make_graph(inner.node, name, [], inner.output, inner.initializer) for name in ("one", "other")]
    outer = helper.make_node("If", ["switch"], ["result"], then_branch=sides[0], else_branch=sides[1])
    model = helper.make_model(helper.make_graph([outer], "both", inner.input, [value("result", WIDTH)]))
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BackendUnavailable, match="If within another operator"):
        OpenVinoSession(tmp_path / "x.onnx", SIGNATURE)


@pytest.mark.parametrize("name", ["whisper", pytest.param("bart", marks=pytest.mark.nightly)])
def test_products_of_bytes_between_branches_are_those_of_onnx_runtime(name: str) -> None:
    pytest.importorskip("openvino")
    (path,) = (portable(name, "int8-portable") / "onnx").glob("decoder*.onnx")
    sessions = [open_path(path, backend, threads=1)[0] for backend in ("openvino", "onnxruntime")]
    signature = sessions[0].signature
    numbers = np.random.default_rng(0)
    for rows, length in ((1, 1), (2, 3), (4, 5)):
        inputs: dict[str, Any] = {state.input: np.zeros(state.shape(rows), np.float32) for state in signature.states}
        for port in signature.inputs:
            if port.role == "tokens":
                inputs[port.name] = numbers.integers(2, 60, (rows, length))
            elif port.role == "encoder_states":
                inputs[port.name] = numbers.standard_normal((rows, 6, int(port.axes[2]))).astype(np.float32)
            elif port.role == "encoder_mask":
                inputs[port.name] = np.ones((rows, 6), np.int64)
            elif port.role == "switch":
                inputs[port.name] = np.array([False])
        found, expected = (session.run(inputs)["logits"] for session in sessions)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * abs(expected).max())
