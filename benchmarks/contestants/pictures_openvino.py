"""OpenVINO over an ONNX graph of standard operators: GRAPH PRECISION ("f32", "bf16") PIXELS (.npy)."""

from __future__ import annotations

import sys
from typing import Any

from rounds import begin

answers = begin()

import openvino as ov  # noqa: E402
from pixels import run  # noqa: E402

options = {"INFERENCE_PRECISION_HINT": sys.argv[2], "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
model = ov.Core().compile_model(sys.argv[1], "CPU", options)


def forward(pixels: Any) -> Any:
    return model({"pixel_values": pixels})[0]


run(forward, answers)
