"""GGUF: `gguf/model-{type}.gguf`, with the tensors and metadata that llama.cpp's own converter writes.

Where the converter's file would not compute what the checkpoint says (a rotary base it forgets, a vocabulary shorter
than the embedding), ours says so in the metadata; where llama.cpp cannot compute it at all, the export is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from isoform.errors import InputError, UnsupportedExport
from isoform.manifest import Artifact, describe

if TYPE_CHECKING:
    from isoform.reference.card import Gguf
    from isoform.reference.model import Model

TYPES = ("f32", "f16", "bf16", "q8_0")
OTHER_FORMATS = "export to ONNX or TorchScript instead"


def path_of(kind: str) -> str:
    """Where in the bundle the file of this type lies."""
    return f"gguf/model-{kind}.gguf"


def refusal(model: Model) -> str:
    """Why llama.cpp cannot run this model, or "" when it can."""
    gguf, family = model.family.gguf, model.family
    if gguf is None:
        return family.no_gguf or f"llama.cpp has no {family.title}"
    if model.task.name not in gguf.tasks:
        return f"llama.cpp has no {model.task.name} for {family.title}, only {', '.join(gguf.tasks)}"
    return gguf.refuse(model.config)


def write(
    model: Model,
    folder: Path,
    types: Sequence[str],
    progress: Callable[[str, int, int], None] | None = None,
    *,
    pre: str | None = None,
) -> list[Artifact]:
    """Write one file per type under `folder`; peak memory is a fixed base plus a piece of a tensor.

    `pre` names llama.cpp's pre-tokenizer instead of the one found from tokenizer.json. Raises UnsupportedExport when
    llama.cpp would not compute what the model does, or has no tokenizer like its own.
    """
    from isoform.exporters.gguf.metadata import metadata
    from isoform.exporters.gguf.tensors import entries
    from isoform.exporters.gguf.writer import write_file

    if unknown := [kind for kind in types if kind not in TYPES]:
        raise InputError(f"GGUF type {unknown[0]!r} is not written; choose from {', '.join(TYPES)}")
    gguf = _card(model)
    report = progress or (lambda text, done, total: None)
    artifacts = []
    (folder / "gguf").mkdir(parents=True, exist_ok=True)
    for kind in types:
        tensors = entries(model, gguf, kind.upper())
        path = folder / path_of(kind)
        write_file(path, metadata(model, gguf, kind, tensors, pre), tensors, report)
        artifacts.append(
            Artifact(format="gguf", dtype=kind, files=(describe(path, folder),), signature=model.signature)
        )
    return artifacts


def _card(model: Model) -> Gguf:
    reason = refusal(model)
    if reason or model.family.gguf is None:
        raise UnsupportedExport(f"{model.name} cannot be a GGUF file: {reason}; {OTHER_FORMATS}")
    return model.family.gguf
