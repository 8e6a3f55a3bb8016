"""Standard ONNX in an engine that has nothing else: onnx's reference evaluator, which knows no fused kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from isoform.exporters.onnx import write
from isoform.reference.model import Model, open_model
from tests import oracle
from tests.exporters.onnx.test_files import forward, gap, inputs, quiet, session

EXACT = 1e-4  # absolute, on logits of up to 30 that NumPy sums in float32 in its own order
SAME_BYTES = 1e-3  # absolute: both engines round to the same bytes, up to values on the very edge of a step


def feeds(model: Model, past: int) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]], Any]:
    """The inputs in float64 and in float32, and which slots hold a token."""
    values, valid = inputs(model.signature, 2, 5, past, "left", 100)
    return values, {n: v.astype(np.float32) if v.dtype == np.float64 else v for n, v in values.items()}, valid


@pytest.mark.parametrize("name", ["bert", "gemma2", "gemma3_new", "llama", "mistral_b", "qwen2", "qwen3_b"])
def test_the_reference_evaluator_computes_what_the_module_does(name: str, tmp_path: Path) -> None:
    model = open_model(oracle.tiny(name))
    (artifact,) = write(model, tmp_path, "f32", quiet, portable=True)
    evaluator = ReferenceEvaluator(str(tmp_path / artifact.files[0].path))
    module = model.module(torch.float64)
    for past in (0, 3) if model.signature.states else (0,):
        exact, fed, valid = feeds(model, past)
        got = [np.asarray(value) for value in evaluator.run(None, fed)]
        assert gap(model.signature, got, forward(module, exact, torch.float64), valid, past) < EXACT


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_int8_is_standard_onnx_and_the_same_in_both_engines(name: str, tmp_path: Path) -> None:
    model = open_model(oracle.tiny(name))
    (artifact,) = write(model, tmp_path, "int8", quiet, portable=True)
    path = tmp_path / artifact.files[0].path
    graph = onnx.load(path, load_external_data=False)
    assert [(o.domain, o.version) for o in graph.opset_import] == [("", 23)]
    assert {"QuantizeLinear", "MatMulInteger"} <= {node.op_type for node in graph.graph.node}
    _, fed, valid = feeds(model, 0)
    got = [np.asarray(value) for value in ReferenceEvaluator(str(path)).run(None, fed)]
    assert gap(model.signature, got, session(path).run(None, fed), valid, 0) < SAME_BYTES
