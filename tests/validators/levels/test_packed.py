"""Torch rounds activations as a graph does: by row, or all of them alike where the graph is of an earlier version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper

from isoform.exporters.onnx.forms import Channels
from isoform.runtimes.backends.onnxruntime.graph_file import exact
from isoform.validators.levels.packed import held_weights, rounded_activations
from tests.exports import exported

WIDTH = 32
SUMS = 1e-6  # times the largest output: another order of adding


def graph(folder: Path) -> tuple[Path, torch.Tensor]:
    """One layer with one scale for all activations, as versions before scales by row wrote it, and its weight."""
    weight = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0))
    parts = Channels().encode(weight)
    tensors = [
        numpy_helper.from_array(parts["data"].T.contiguous().numpy(), "q.weight.data"),
        numpy_helper.from_array(parts["scales"].numpy(), "q.weight.scales"),
        numpy_helper.from_array(np.array(128, np.uint8), "middle"),
    ]
    product = ["bytes", "q.weight.data", "step", "q.weight.scales", "zero", "middle"]
    steps = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["bytes", "step", "zero"], "q.DynamicQuantizeLinear"),
        helper.make_node("MatMulIntegerToFloat", product, ["y"], "q.MatMulIntegerToFloat", domain="com.microsoft"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", "T", WIDTH]) for name in "xy")
    whole = helper.make_graph(steps, "graph", [x], [y], tensors)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    path = folder / "model.onnx"
    onnx.save(helper.make_model(whole, opset_imports=opsets, ir_version=9), path)
    return path, weight


def run(source: Any, x: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"x": x.numpy()})[0]
    return found


def uneven() -> torch.Tensor:
    x = torch.randn(1, 4, WIDTH, generator=torch.Generator().manual_seed(1))
    x[0, 2] *= 100
    return x


def test_a_graph_with_one_scale_is_imitated_with_one_scale(tmp_path: Path) -> None:
    path, _ = graph(tmp_path)
    held = held_weights(path)["q.weight"]
    assert not held.by_row
    weight = torch.from_numpy(held.rows(0, WIDTH).copy())
    x, wanted = uneven(), run(str(path), uneven())
    with rounded_activations({weight.data_ptr(): held.block}):
        alike = F.linear(x, weight).numpy()
    with rounded_activations({weight.data_ptr(): WIDTH}):
        by_row = F.linear(x, weight).numpy()
    assert np.abs(alike - wanted).max() < SUMS * np.abs(wanted).max()
    assert np.abs(by_row - wanted)[0, 0].max() > 0.1


def test_a_graph_with_one_scale_is_exact_in_floats(tmp_path: Path) -> None:
    path, _ = graph(tmp_path)
    changed = exact(path)
    assert changed is not None
    weight = torch.from_numpy(held_weights(path)["q.weight"].rows(0, WIDTH).copy())
    wanted = F.linear(uneven(), weight).numpy()
    assert np.abs(run(changed, uneven()) - wanted).max() < SUMS * np.abs(wanted).max()


@pytest.mark.parametrize("name", ["llama", "whisper"])
def test_graphs_have_a_scale_by_row(name: str) -> None:
    for path in (exported(name, ["onnx"], "int8") / "onnx").glob("*_quantized.onnx"):
        turned = [weight for weight in held_weights(path).values() if weight.bits and not weight.block]
        assert turned and all(weight.by_row for weight in turned)


def test_a_scalar_is_read_from_its_place_in_the_file(tmp_path: Path) -> None:
    tensors = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in (("a", 2), ("b", 3))]
    for n, tensor in enumerate(tensors):
        tensor.raw_data = b""
        onnx.external_data_helper.set_external_data(tensor, "model.onnx_data", 4 * n, 4)
    (tmp_path / "model.onnx_data").write_bytes(np.array([2, 3], np.float32).tobytes())
    graph = helper.make_graph([], "graph", [], [], tensors)
    (tmp_path / "model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    assert [held_weights(tmp_path / "model.onnx")[name].rows(0, 1).tolist() for name in "ab"] == [[2], [3]]
