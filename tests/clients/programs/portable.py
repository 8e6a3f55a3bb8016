"""One pass through OpenVINO. Arguments: a graph, its inputs and where to put its outputs, both as .npz."""

import sys

import numpy as np
import openvino

graph, given, result = sys.argv[1:]

compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
outputs = compiled(dict(np.load(given)))
np.savez(result, **{port.any_name: outputs[port] for port in compiled.outputs})
