"""ONNX: graphs with dynamic batch and length, and their weights beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import UnsupportedExport
from isoform.exporters.format import elements
from isoform.exporters.onnx.types import Options, onnx_type, part_file
from isoform.manifest import WHOLE, Artifact, File
from isoform.progress import Progress
from isoform.quality import plain_dtype

if TYPE_CHECKING:
    import torch

    from isoform.exporters.tracing import Trace
    from isoform.reference.card import Family, Task
    from isoform.reference.model import Model

__all__ = ["FORMAT", "Options", "write"]


def write(
    model: Model,
    folder: Path,
    types: str | Sequence[str],
    progress: Progress,
    *,
    portable: bool = False,
    link: bool = False,
) -> list[Artifact]:
    """Write a graph per type and part under `onnx/` in the bundle's folder, each with its weight file.

    `types` has the names of the types. A decoder gets a `genai_config.json`, which describes one graph, that of the
    first type: name the one first that onnxruntime-genai shall run. `portable` keeps to standard ONNX (opset 23), and
    so does a type whose name ends in -portable, which reads its weights from the file of the type without that suffix
    where both are written; otherwise ONNX Runtime's fused kernels are used. `link` reads from the checkpoint's own
    files, linked beside the graph, what they hold byte for byte. Raises InputError for a type that is none, and
    UnsupportedExport for one that ONNX Runtime's CPU provider cannot run and for an operation without an ONNX form.
    """
    from isoform.exporters.onnx.external import Written, write_weights
    from isoform.exporters.onnx.genai import NAME, genai_config
    from isoform.exporters.onnx.passes.in_place import mark_cache
    from isoform.exporters.onnx.passes.mask_end import cut_mask
    from isoform.exporters.onnx.probe import refusal
    from isoform.exporters.onnx.translate import translate
    from isoform.exporters.tracing import trace

    wanted = [onnx_type(name, portable) for name in ([types] if isinstance(types, str) else dict.fromkeys(types))]
    traces: dict[tuple[str, torch.dtype], Trace] = {}
    artifacts: dict[str, list[Artifact]] = {kind.name: [] for kind in wanted}
    written: dict[tuple[str, tuple[tuple[str, str], ...]], Written] = {}
    # By type and roots: two graphs over the same weights share their file. That of the fused graph is written first,
    # for clients that look for it by name.
    for kind in sorted(wanted, key=lambda kind: kind.portable):
        for part in model.parts:
            path = folder / "onnx" / part_file(part.file, kind.file)
            if (part.part, kind.dtype) not in traces:
                progress(f"{path.name}: tracing", 0, 0)
                traces[part.part, kind.dtype] = trace(part.skeleton(kind.dtype), part.signature, kind.dtype)
            head = "head.weight" if "head.weight" in part.weights else "embed.weight"
            graph, parameters = translate(
                traces[part.part, kind.dtype],
                part.signature,
                kind.dtype,
                part.tied,
                kind.lowerings(head),
            )
            if kind.activations == "bf16" and (reason := refusal(graph, parameters)):
                raise UnsupportedExport(f"ONNX in bf16: {reason}; choose f32 or f16")
            in_place = bool(part.signature.states) and mark_cache(graph, part.signature)
            if in_place and (mask := part.signature.port("mask")) is not None:
                cut_mask(graph, mask.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            data = path.with_name(f"{path.name}_data")
            plain = not (kind.bits or kind.int8)
            weights = write_weights(
                graph,
                parameters,
                part.weights,
                data,
                folder,
                progress,
                link=link and plain,
                written=written.setdefault((plain_dtype(kind.name), tuple(part.roots.items())), Written()),
            )
            content = graph.SerializeToString(deterministic=True)
            path.write_bytes(content)
            files = [_file(path.relative_to(folder).as_posix(), content), *weights]
            first = kind is wanted[0] and part is model.parts[0]
            if first and (text := genai_config(part, files[0].path, in_place=in_place)) is not None:
                (folder / NAME).write_text(text, encoding="utf-8")
                files.append(_file(NAME, text.encode()))
            artifacts[kind.name].append(
                Artifact(format="onnx", dtype=kind.name, files=tuple(files), signature=part.signature, part=part.part)
            )
    return [artifact for made in artifacts.values() for artifact in made]


def _file(path: str, content: bytes) -> File:
    return File(path, len(content), hashlib.sha256(content).hexdigest())


class Onnx:
    """The format `onnx`, with one graph for each part of a model."""

    name = "onnx"
    options = Options

    def of_types(self, types: Sequence[str]) -> Options:
        return Options(types=tuple(types))

    def check_request(self, options: Options) -> None:
        for name in options.types:
            onnx_type(name, options.portable)

    def refusal(self, family: Family, task: Task, part: str = WHOLE, config: Any = None) -> str:
        """Every graph that can be traced has an ONNX form."""
        return ""

    def bytes_needed(self, model: Model, options: Options) -> float:
        if options.link:
            return 0.0
        own = {plain_dtype(name): onnx_type(name).bytes_per_weight for name in options.types}
        return elements(model) * sum(own.values())

    def write(self, model: Model, folder: Path, options: Options, progress: Progress) -> list[Artifact]:
        return write(model, folder, options.types, progress, portable=options.portable, link=options.link)


FORMAT = Onnx()
