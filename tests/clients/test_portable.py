"""`--portable` in an engine of another maker: OpenVINO computes what the torch module does."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from isoform.exporters.onnx import write
from isoform.reference.model import open_model
from tests.clients.environments import environment
from tests.exporters.onnx.test_files import forward, gap, inputs, quiet
from tests.oracle import tiny

pytestmark = pytest.mark.clients

PROGRAM = Path(__file__).parent / "programs" / "portable.py"
EXACT = 1e-4  # absolute, on logits of up to 30, summed in float32 in its own order


@pytest.mark.parametrize("name", ["bert", "gemma2", "gemma3_new", "llama", "mistral_b", "qwen2", "qwen3_b"])
def test_openvino_computes_what_the_module_does(name: str, tmp_path: Path) -> None:
    model = open_model(tiny(name))
    (artifact,) = write(model, tmp_path, "f32", quiet, portable=True)
    past = 3 if model.signature.states else 0
    values, valid = inputs(model.signature, 2, 5, past, "left", 100)
    given, result = tmp_path / "given.npz", tmp_path / "result.npz"
    fed = {key: value.astype(np.float32) if value.dtype == np.float64 else value for key, value in values.items()}
    np.savez(given, allow_pickle=False, **fed)
    graph = tmp_path / artifact.files[0].path
    subprocess.run([environment("openvino"), PROGRAM, graph, given, result], check=True)
    outputs = np.load(result)
    got = [outputs[port.name] for port in model.signature.outputs]
    want = forward(model.module(torch.float64), values, torch.float64)
    assert gap(model.signature, got, want, valid, past) < EXACT
