"""GGUF: `gguf/model-{type}.gguf`, with the tensors and metadata that llama.cpp's own tools write.

The types that llama.cpp's converter has come out as its, the mixes as those of llama-quantize. Where those files would
not compute what the checkpoint says (a rotary base that is forgotten, a vocabulary shorter than the embedding), the
metadata of ours says so; where llama.cpp cannot compute it at all, the export is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import InputError, UnsupportedExport
from isoform.exporters.gguf.mixes import MIXES, Depths, mix_name, parse_overrides, tensor_types
from isoform.manifest import Artifact, File, describe

if TYPE_CHECKING:
    from isoform.reference.card import Gguf
    from isoform.reference.model import Model

TYPES = tuple(MIXES)
OTHER_FORMATS = "export to ONNX or TorchScript instead"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a GGUF export can be told besides its types.

    `overrides` are "regex=type", the first whose regex is found in a tensor's name deciding its type; `split_max_size`
    ("2G", "500M") cuts a file into shards with at most so many bytes of tensors; `imatrix` is llama.cpp's importance
    matrix in a file; `pre` names llama.cpp's pre-tokenizer instead of the one found from tokenizer.json.
    """

    overrides: tuple[str, ...] = ()
    split_max_size: str | None = None
    imatrix: Path | None = None
    pre: str | None = None

    def to_json(self) -> dict[str, Any]:
        """What was asked for, as the manifest keeps it; the check reads it again."""
        matrix = self.imatrix and self.imatrix.absolute()
        found = {
            "overrides": list(self.overrides),
            "split_max_size": self.split_max_size,
            "imatrix": matrix and {"path": str(matrix), "sha256": describe(matrix, matrix.parent).sha256},
            "pre": self.pre,
        }
        return {key: value for key, value in found.items() if value}


def check_request(types: Sequence[str], options: Options) -> None:
    """Raise InputError for a type or an option that makes no sense, before a model is opened."""
    for kind in types:
        mix_name(kind)
    parse_overrides(options.overrides)
    _bytes(options.split_max_size)
    if options.imatrix is not None and not options.imatrix.is_file():
        raise InputError(f"--imatrix {options.imatrix} is not there; `isoform imatrix` makes one from a text")


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
    options: Options | None = None,
) -> list[Artifact]:
    """Write a file per type under `folder`, all in one read; memory is a fixed base plus a few pieces of a tensor.

    Raises InputError for options that make no sense, UnsupportedExport when llama.cpp would not compute what the model
    does, or has no tokenizer like its own.
    """
    from isoform.exporters.gguf.metadata import metadata
    from isoform.exporters.gguf.tensors import entries
    from isoform.exporters.gguf.writer import Target, write_files

    asked = options or Options()
    kinds = list(dict.fromkeys(mix_name(kind) for kind in types))
    overrides, shard_bytes = parse_overrides(asked.overrides), _bytes(asked.split_max_size)
    gguf = card_of(model)
    tensors = entries(model, gguf)
    shapes = {entry.name: entry.shape for entry in tensors}
    depths = _depths(model, gguf)
    weights, measured = None, dict[str, Any]()
    if asked.imatrix is not None:
        from isoform.exporters.gguf.imatrix import read_importance, weights_for

        importance = read_importance(asked.imatrix)
        weights, measured = weights_for(importance, shapes, model.name), importance.metadata()
    chosen = {kind: tensor_types(kind, shapes, depths, overrides=overrides, importance=weights) for kind in kinds}
    facts = metadata(model, gguf, tensors, asked.pre) | measured
    targets = [
        Target(folder / path_of(kind), {**facts, "general.file_type": MIXES[kind].file_type}, chosen[kind], shard_bytes)
        for kind in kinds
    ]
    (folder / "gguf").mkdir(parents=True, exist_ok=True)
    written = write_files(targets, tensors, progress or (lambda text, done, total: None), importance=weights)
    return [
        Artifact(
            format="gguf",
            dtype=kind,
            files=tuple(
                File(path.relative_to(folder).as_posix(), path.stat().st_size, sha256)
                for path, sha256 in shards.items()
            ),
            signature=model.signature,
            options=asked.to_json(),
        )
        for kind, shards in zip(kinds, written, strict=True)
    ]


def card_of(model: Model) -> Gguf:
    """The family's GGUF card; raises UnsupportedExport when llama.cpp cannot run this model."""
    reason = refusal(model)
    if reason or model.family.gguf is None:
        raise UnsupportedExport(f"{model.name} cannot be a GGUF file: {reason}; {OTHER_FORMATS}")
    return model.family.gguf


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
