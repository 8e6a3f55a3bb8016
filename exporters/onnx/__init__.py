"""ONNX: one graph with dynamic batch and length, and its weights beside it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from isoform.errors import UnsupportedExport
from isoform.manifest import Artifact, File

if TYPE_CHECKING:
    from isoform.exporters.onnx.external import Progress
    from isoform.reference.model import Model

DTYPES = ("f32", "f16")


def write(model: Model, folder: Path, dtype: str, progress: Progress, *, portable: bool = False) -> list[Artifact]:
    """Write `onnx/model.onnx` and `onnx/model.onnx_data` into the bundle's folder.

    `portable` keeps to standard ONNX (opset 23); otherwise ONNX Runtime's fused kernels are used. Raises
    UnsupportedExport for a dtype that its CPU provider cannot run, and for an operation without an ONNX form.
    """
    if dtype not in DTYPES:
        raise UnsupportedExport(
            f"ONNX in {dtype}: ONNX Runtime's CPU provider has no kernels for it; choose {' or '.join(DTYPES)}"
        )
    import torch

    from isoform.exporters.onnx.external import write_weights
    from isoform.exporters.onnx.translate import translate
    from isoform.exporters.tracing import trace

    kind = torch.float32 if dtype == "f32" else torch.float16
    progress("model.onnx: tracing", 0, 0)
    traced = trace(model.skeleton(kind), model.signature, kind)
    graph, parameters = translate(traced, model.signature, kind, model.tied, portable)
    path = folder / "onnx" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    data = write_weights(graph, parameters, model.weights, path.with_name("model.onnx_data"), folder, progress)
    content = graph.SerializeToString(deterministic=True)
    path.write_bytes(content)
    file = File(path.relative_to(folder).as_posix(), len(content), hashlib.sha256(content).hexdigest())
    return [Artifact(format="onnx", dtype=dtype, files=(file, data), signature=model.signature)]
