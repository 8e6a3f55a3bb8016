"""ONNX: one graph with dynamic batch and length, and its weights beside it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from isoform.errors import UnsupportedExport
from isoform.manifest import Artifact, File

if TYPE_CHECKING:
    from onnx import ModelProto

    from isoform.exporters.onnx.external import Progress
    from isoform.reference.model import Model

DTYPES = ("f32", "f16")


def write(model: Model, folder: Path, dtype: str, progress: Progress, *, portable: bool = False) -> list[Artifact]:
    """Write `onnx/model.onnx` and `onnx/model.onnx_data` into the bundle's folder, and a decoder's `genai_config.json`.

    `portable` keeps to standard ONNX (opset 23); otherwise ONNX Runtime's fused kernels are used. Raises
    UnsupportedExport for a dtype that its CPU provider cannot run, and for an operation without an ONNX form.
    """
    if dtype not in DTYPES:
        raise UnsupportedExport(
            f"ONNX in {dtype}: ONNX Runtime's CPU provider has no kernels for it; choose {' or '.join(DTYPES)}"
        )
    import torch

    from isoform.exporters.onnx.external import write_weights
    from isoform.exporters.onnx.genai import NAME, genai_config
    from isoform.exporters.onnx.translate import translate
    from isoform.exporters.tracing import trace

    kind = torch.float32 if dtype == "f32" else torch.float16
    progress("model.onnx: tracing", 0, 0)
    traced = trace(model.skeleton(kind), model.signature, kind)
    graph, parameters = translate(traced, model.signature, kind, model.tied, portable)
    if _appends_in_place(graph):
        graph.metadata_props.add(key="isoform.cache", value="in_place")
    path = folder / "onnx" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    data = write_weights(graph, parameters, model.weights, path.with_name("model.onnx_data"), folder, progress)
    content = graph.SerializeToString(deterministic=True)
    path.write_bytes(content)
    file = _file(path.relative_to(folder).as_posix(), content)
    files = [file, data]
    if (text := genai_config(model, graph, file.path)) is not None:
        (folder / NAME).write_text(text, encoding="utf-8")
        files.append(_file(NAME, text.encode()))
    return [Artifact(format="onnx", dtype=dtype, files=tuple(files), signature=model.signature)]


def _file(path: str, content: bytes) -> File:
    return File(path, len(content), hashlib.sha256(content).hexdigest())


def _appends_in_place(graph: ModelProto) -> bool:
    """Whether the past and present of every layer may be one buffer, longer than what it holds: one kernel can."""
    kinds = {node.op_type for node in graph.graph.node for name in node.output if name.startswith("present.")}
    return kinds == {"GroupQueryAttention"}
