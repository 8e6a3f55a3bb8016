"""What each traced operation becomes in ONNX: one module per group of lowerings, and `registry`, which names them all.

The operators: https://onnx.ai/onnx/operators and
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""
