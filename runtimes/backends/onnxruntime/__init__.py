"""ONNX graphs through ONNX Runtime."""
