"""OpenVINO over an ONNX graph of standard operators: GRAPH PRECISION ("f32", "bf16") THREADS INPUTS (.npz)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rounds import begin

answers = begin()

import openvino as ov  # noqa: E402
from tensors import run  # noqa: E402

options = {"INFERENCE_PRECISION_HINT": sys.argv[2], "INFERENCE_NUM_THREADS": int(sys.argv[3]), "NUM_STREAMS": 1}
model = ov.Core().compile_model(sys.argv[1], "CPU", options)


def forward(inputs: Mapping[str, Any]) -> Any:
    return model(dict(inputs))[0]


run(forward, answers)
