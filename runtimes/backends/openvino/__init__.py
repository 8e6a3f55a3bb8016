"""ONNX graphs through OpenVINO."""
