"""GGUF: `gguf/model-{type}.gguf`, with the tensors and metadata that llama.cpp's own tools write.

The types that llama.cpp's converter has come out as its, the mixes as those of llama-quantize. Where those files would
not compute what the checkpoint says (a rotary base that is forgotten, a vocabulary shorter than the embedding), the
metadata of ours says so; where llama.cpp cannot compute it at all, the export is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import InputError, UnsupportedExport
from isoform.exporters.format import elements
from isoform.exporters.gguf.mixes import MIXES, Depths, bytes_per_weight, mix_name, parse_overrides, tensor_types
from isoform.manifest import WHOLE, Artifact, File, describe
from isoform.progress import Progress

if TYPE_CHECKING:
    from isoform.reference.card import Family, Gguf, Task
    from isoform.reference.model import Model

OTHER_FORMATS = "export to ONNX or TorchScript instead"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of a GGUF export. `types` are names of llama-quantize, a file for each.

    `overrides` are "regex=type", the first whose regex is found in a tensor's name deciding its type; `split_max_size`
    ("2G", "500M") cuts a file into shards with at most so many bytes of tensors; `imatrix` is llama.cpp's importance
    matrix in a file; `pre` names llama.cpp's pre-tokenizer instead of the one found from tokenizer.json.
    """

    types: tuple[str, ...] = ("f32",)
    overrides: tuple[str, ...] = ()
    split_max_size: str | None = None
    imatrix: Path | None = None
    pre: str | None = None

    def to_json(self) -> dict[str, Any]:
        """All but the types, as the manifest keeps it; the check reads it again."""
        matrix = self.imatrix and self.imatrix.absolute()
        found = {
            "overrides": list(self.overrides),
            "split_max_size": self.split_max_size,
            "imatrix": matrix and {"path": str(matrix), "sha256": describe(matrix, matrix.parent).sha256},
            "pre": self.pre,
        }
        return {key: value for key, value in found.items() if value}


def path_of(kind: str, stem: str = "model") -> str:
    """Where in the bundle the file of this type is."""
    return f"gguf/{stem}-{kind}.gguf"


def write(
    model: Model,
    folder: Path,
    types: Sequence[str],
    progress: Progress | None = None,
    *,
    options: Options | None = None,
) -> list[Artifact]:
    """Write a file per type under `folder`, all in one read; memory is a fixed base plus a few pieces of a tensor.

    Raises InputError for options that make no sense, UnsupportedExport when llama.cpp would not compute what the model
    does, or has no tokenizer like its own.
    """
    asked = options or Options()
    kinds = list(dict.fromkeys(mix_name(kind) for kind in types))
    report = progress or (lambda text, done, total: None)
    if model.reads_layers:
        reason = "llama.cpp gives the states of the last layer alone, and WeightedLayerPooling reads every layer's"
        raise UnsupportedExport(f"{model.name} cannot be a GGUF file: {reason}; {OTHER_FORMATS}")
    model = model.trunk
    parts = [part for part in model.parts if not _refusal(part)] or [model]
    return [artifact for part in parts for artifact in _write_part(part, folder, kinds, report, asked)]


def _write_part(
    model: Model, folder: Path, kinds: Sequence[str], progress: Progress, options: Options
) -> list[Artifact]:
    from isoform.exporters.gguf.metadata import metadata
    from isoform.exporters.gguf.tensors import entries
    from isoform.exporters.gguf.writer import Target, write_files

    overrides, shard_bytes = parse_overrides(options.overrides), _bytes(options.split_max_size)
    gguf = card_of(model)
    tensors = entries(model, gguf)
    shapes = {entry.name: entry.shape for entry in tensors}
    depths = _depths(model, gguf)
    weights, measured = None, dict[str, Any]()
    if options.imatrix is not None:
        from isoform.exporters.gguf.imatrix import read_importance, weights_for

        importance = read_importance(options.imatrix)
        weights, measured = weights_for(importance, shapes, model.name), importance.metadata()
    chosen = {kind: tensor_types(kind, shapes, depths, overrides=overrides, importance=weights) for kind in kinds}
    facts = metadata(model, gguf, tensors, options.pre) | measured
    targets = [
        Target(
            folder / path_of(kind, gguf.file),
            {**facts, "general.file_type": MIXES[kind].file_type},
            chosen[kind],
            shard_bytes,
        )
        for kind in kinds
    ]
    (folder / "gguf").mkdir(parents=True, exist_ok=True)
    written = write_files(targets, tensors, progress, importance=weights)
    return [
        Artifact(
            format="gguf",
            dtype=kind,
            files=tuple(
                File(path.relative_to(folder).as_posix(), path.stat().st_size, sha256)
                for path, sha256 in shards.items()
            ),
            signature=model.signature,
            part=model.part,
            options=options.to_json(),
        )
        for kind, shards in zip(kinds, written, strict=True)
    ]


def card_of(model: Model) -> Gguf:
    """The GGUF card of a model or of one of its parts; raises UnsupportedExport when llama.cpp cannot run it."""
    card, reason = _card(model.family, model.task, model.part), _refusal(model)
    if reason or card is None:
        raise UnsupportedExport(f"{model.name} cannot be a GGUF file: {reason}; {OTHER_FORMATS}")
    return card


def _card(family: Family, task: Task, part: str) -> Gguf | None:
    return family.gguf_of(task) if part == WHOLE else task.parts[part].gguf


def _refusal(model: Model) -> str:
    return FORMAT.refusal(model.family, model.task, model.part, model.config)


def _depths(model: Model, gguf: Gguf) -> Depths:
    fields: dict[str, Any] = gguf.fields(model.config)
    heads = fields.get("attention.head_count", 1)
    return Depths(
        layers=fields["block_count"],
        sharing=heads // fields.get("attention.head_count_kv", heads),
        experts=fields.get("expert_count", 0),
        large=gguf.large(model.config),
    )


def _bytes(size: str | None) -> int | None:
    """ "500M" or "2G" in bytes, decimal as in gguf-split."""
    if size is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG])B?", size.strip(), re.IGNORECASE)
    count = int(float(match[1]) * {"K": 10**3, "M": 10**6, "G": 10**9}[match[2].upper()]) if match else 0
    if not count:
        raise InputError(f"--split-max-size takes a size like 500M or 2G, not {size!r}")
    return count


class GgufFormat:
    """The format `gguf`: one file for the model, or one for each part that llama.cpp has a file for."""

    name = "gguf"
    options = Options

    def of_types(self, types: Sequence[str]) -> Options:
        return Options(types=tuple(types))

    def check_request(self, options: Options) -> None:
        for kind in options.types:
            mix_name(kind)
        parse_overrides(options.overrides)
        _bytes(options.split_max_size)
        if options.imatrix is not None and not options.imatrix.is_file():
            raise InputError(f"--imatrix {options.imatrix} is not there; `isoform imatrix` makes one from a text")

    def refusal(self, family: Family, task: Task, part: str = WHOLE, config: Any = None) -> str:
        """What the family's card says of llama.cpp."""
        card = _card(family, task, part)
        if card is None:
            return family.no_gguf or f"llama.cpp has no {family.title}"
        if part == WHOLE and task.name not in card.tasks:
            return f"llama.cpp has no {task.name}, only {', '.join(card.tasks)}"
        return "" if config is None else card.refuse(config)

    def bytes_needed(self, model: Model, options: Options) -> float:
        return elements(model) * sum(bytes_per_weight(kind) for kind in options.types)

    def write(self, model: Model, folder: Path, options: Options, progress: Progress) -> list[Artifact]:
        return write(model, folder, options.types, progress, options=options)


FORMAT = GgufFormat()
