"""The formats of a bundle, and which backends read each: the one table that exports, runtimes and checks share."""

from __future__ import annotations

from collections.abc import Mapping

FORMATS = ("onnx", "torchscript", "gguf")
"""In the order in which a bundle is written, and in which messages list them."""

BACKENDS: Mapping[str, tuple[str, ...]] = {
    "gguf": ("llamacpp",),
    "onnx": ("onnxruntime",),
    "torchscript": ("torchscript",),
}
"""Format -> the backends that read it. The first is the one that the format is checked on."""

CHECKED_ON: Mapping[str, str] = {name: backends[0] for name, backends in BACKENDS.items()}

FORMAT_OF: Mapping[str, str] = {backend: name for name, backends in BACKENDS.items() for backend in backends}
"""Backend -> the format that it reads. The torch backend is not here: it runs the checkpoint itself."""

FLOATS: Mapping[str, str] = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
"""The dtypes of float forms, by torch's names."""

DIGITS: Mapping[str, int] = {"f32": 24, "f16": 11, "bf16": 8}
"""Bits of the significand."""
