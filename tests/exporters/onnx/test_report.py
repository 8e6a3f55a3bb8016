"""The report on a graph: what it counts, on our own exports and on a graph made by hand."""

from __future__ import annotations

from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from isoform.exporters.onnx import write
from isoform.reference.model import open_model
from isoform.validators.tools.inspection import inspect_onnx
from tests import oracle
from tests.exporters.onnx.test_files import quiet


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    result = tmp_path_factory.mktemp("report")
    write(open_model(oracle.tiny("llama")), result, ("f32", "f16", "q8_0", "int8"), quiet)
    return result / "onnx"


@cache
def report(path: Path) -> dict[str, Any]:
    return inspect_onnx(path)


def test_layers_and_fused_operations_are_counted(folder: Path) -> None:
    found = report(folder / "model.onnx")
    assert found["nodes in layers"] == {"layers": 3, "each": "15", "fused in each": "12", "kinds of layers": 2}
    assert found["fused operators"] == {
        "FusedMatMul": 22,
        "SkipSimplifiedLayerNormalization": 6,
        "RotaryEmbedding": 6,
        "GroupQueryAttention": 3,
        "RMSNormalization": 1,
    }
    assert report(folder / "model_quantized.onnx")["fused operators"]["MatMulIntegerToFloat"] == 21


def test_a_token_reads_every_weight_once_and_one_row_of_a_table(folder: Path) -> None:
    model = open_model(oracle.tiny("llama"))
    values = sum(weight.load().numel() for weight in model.weights.values())
    found = report(folder / "model.onnx")["bytes"]
    constants = found["read per token"] - 4 * values  # the head is the table, so all of it is read
    assert 0 < constants < 1000
    assert found["weights"] == found["read per token"]
    layout = model.signature.layout()
    assert layout is not None
    assert found["read per cached token"] == 2 * 4 * prod(layout)
    untied = open_model(oracle.tiny("llama3_instruct"))
    write(untied, folder / "untied", "f32", quiet)
    found = inspect_onnx(folder / "untied/onnx/model.onnx")["bytes"]
    rows, columns = untied.weights["embed.weight"].shape
    assert found["weights"] - found["read per token"] == 4 * columns * (rows - 1)


def test_shared_bytes_of_a_quantized_table_count_once(folder: Path) -> None:
    found = report(folder / "model_q8_0.onnx")["bytes"]
    assert found["weights"] <= (folder / "model_q8_0.onnx_data").stat().st_size + 1000
    assert found["read per token"] == found["weights"]


def test_only_half_precision_is_widened(folder: Path) -> None:
    for name in ("model.onnx", "model_q8_0.onnx", "model_quantized.onnx"):
        assert report(folder / name)["widened on the CPU"] == {}
    assert report(folder / "model_fp16.onnx")["widened on the CPU"]["FusedMatMul"] == 22


def test_a_graph_that_cannot_run_says_why(tmp_path: Path) -> None:
    ports = [helper.make_tensor_value_info(name, TensorProto.BFLOAT16, ["n"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "one", ports[:1], ports[1:])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    found = report(path)
    assert "Relu" in found["widened on the CPU"]["cannot run"]
    assert found["nodes in layers"] == {"layers": 0, "each": "", "fused in each": "", "kinds of layers": 0}
    assert found["bytes"]["weights"] == 0
