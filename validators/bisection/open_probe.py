"""Which probe shows the insides of an artifact: one for each backend."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from isoform.errors import InputError

if TYPE_CHECKING:
    from isoform.reference.model import Model
    from isoform.validators.bisection.probe import Probe


def open_probe(model: Model, path: Path, backend: str, threads: int | None = None) -> Probe:
    """The probe of a file for a backend. Raises InputError where there is none."""
    if backend == "openvino":
        raise InputError(f"the values inside of {path.name} are not shown by OpenVINO; ONNX Runtime shows them")
    if backend == "onnxruntime":
        from isoform.validators.bisection.onnx_probe import OnnxProbe

        return OnnxProbe(model, path, threads)
    if backend == "torchscript":
        from isoform.validators.bisection.torchscript_probe import TorchScriptProbe

        return TorchScriptProbe(model, path)
    from isoform.validators.bisection.llamacpp_probe import LlamaCppProbe

    return LlamaCppProbe(model, path, threads)
