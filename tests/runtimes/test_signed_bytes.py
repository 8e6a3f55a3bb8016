"""Files hold unsigned bytes; where the processor allows, they are multiplied as signed ones, with the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from isoform.exporters import export
from isoform.reference.model import open_model
from isoform.runtimes import onnxruntime_backend
from isoform.runtimes.onnxruntime_backend import OnnxRuntimeSession

pytest.importorskip("onnxruntime")


def test_signed_bytes_give_the_same_numbers(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(open_model(tiny("whisper")), ["onnx"], tmp_path / "bundle", dtype="int8")
    features = {"input_features": np.random.default_rng(0).normal(size=(1, 128, 3000)).astype(np.float32)}
    outputs, types = [], []
    for signed in (False, True):
        monkeypatch.setattr(onnxruntime_backend, "multiplies_signed_bytes", lambda signed=signed: signed)
        with OnnxRuntimeSession(tmp_path / "bundle" / "onnx" / "encoder_model_quantized.onnx", threads=1) as session:
            outputs.append(session.run(features)["last_hidden_state"])
            types.append(len(session._signed))
    assert types[0] == 0 and types[1] > 0
    np.testing.assert_array_equal(outputs[0], outputs[1])
