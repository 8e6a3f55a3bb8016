"""A GGUF file as a checkpoint: llama.cpp's tensors under canonical names, its metadata as config.json and tokenizer."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import weakref
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import CheckpointError, IsoformError, UnsupportedModel
from isoform.reference.card import Family, Gguf
from isoform.reference.checkpoints.checkpoint import Checkpoint, TensorInfo
from isoform.reference.checkpoints.gguf_file import interleaved, is_rotary, read_gguf, read_tensor
from isoform.reference.checkpoints.mapped_file import MappedFile
from isoform.reference.families import GGUF_FAMILIES, gguf_family
from isoform.reference.names import rename

if TYPE_CHECKING:
    from torch import Tensor

USUAL = {"rope.scaling.yarn_beta_fast": 32.0}
"""Values of metadata that say what llama.cpp does without them."""

AUXILIARY = ("rope_freqs.weight",)
"""Tensors that llama.cpp computes with and no parameter of ours holds: `card.Gguf.config` reads them."""

SAMPLING = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}
"""Name in generation_config.json -> key under `general.sampling`."""

POOLING = {1: "mean_tokens", 2: "cls_token", 3: "lasttoken"}
"""llama.h's LLAMA_POOLING_TYPE -> sentence-transformers' mode."""


class GgufCheckpoint(Checkpoint):
    """A GGUF file, or the first of its shards, with canonical keys.

    Quantized tensors come out as float32, the others as they are stored.

    `folder` is a temporary one with a config.json and the tokenizer's files, written on first use and removed
    with the checkpoint. `metadata` and `tensors` are the file's own, under llama.cpp's names; `family` is the one of
    its architecture.
    """

    canonical = True

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError for a malformed file, UnsupportedModel for an architecture that no family has."""
        header = read_gguf(path)
        self.path, self.name = path, str(path)
        self.metadata, self._paths = header.metadata, _shards(path, header.metadata)
        self.tensors = dict(header.tensors)
        for shard in self._paths[1:]:
            self.tensors |= _following(shard, path, self.tensors)
        if (count := header.metadata.get("split.tensors.count", len(self.tensors))) != len(self.tensors):
            raise CheckpointError(
                f"{path} and its shards hold {len(self.tensors)} tensors, not {count}; fetch them again"
            )
        self._files = {shard: MappedFile(shard) for shard in self._paths}
        self.family, self._gguf = _family(path, header.metadata, self.tensors)
        table = {target: source for source, target in self._gguf.tensors.items()}
        names = {name: rename(name, table) for name in self.tensors if name not in AUXILIARY}
        if unknown := sorted(name for name, key in names.items() if key is None):
            shown = ", ".join(unknown[:4]) + (" ..." if len(unknown) > 4 else "")
            raise CheckpointError(f"{path} holds {shown}, for which isoform's {self.family.title} has no place")
        self._names = {key: name for name, key in names.items() if key is not None}
        self.config = self._config()
        self._check_agreement()

    @cached_property
    def folder(self) -> Path:  # type: ignore[override]
        from isoform.reference.checkpoints.gguf_tokenizer import tokenizer_from_gguf

        files: dict[str, Any] = {"config.json": self.config, **tokenizer_from_gguf(self.metadata)}
        writes = {"text-generation", "text2text-generation"} & set(self._gguf.tasks)
        if writes and (generation := self._generation()):
            files["generation_config.json"] = generation
        files |= self._sentence_transformer()
        folder = Path(tempfile.mkdtemp(prefix="isoform-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        return folder

    def _generation(self) -> dict[str, Any]:
        """generation_config.json: where llama.cpp stops, and the sampling that the file recommends."""
        from isoform.reference.checkpoints.gguf_tokenizer import end_tokens

        ids = ("bos_token_id", "decoder_start_token_id", "pad_token_id")
        found: dict[str, Any] = {key: self.config[key] for key in ids if key in self.config}
        ends = end_tokens(self.metadata)
        if ends:
            found["eos_token_id"] = ends[0] if len(ends) == 1 else ends
        stored = {name: self.metadata.get(f"general.sampling.{key}") for name, key in SAMPLING.items()}
        sampling = {name: value for name, value in stored.items() if value is not None}
        return found | ({"do_sample": True, **sampling} if sampling else {})

    def _sentence_transformer(self) -> dict[str, Any]:
        """The files by which sentence-transformers knows how a text's vector is pooled; none where the file is silent.

        Their last module scales it to length 1, as llama.cpp's server does with every vector.
        """
        mode = POOLING.get(self.metadata.get(f"{self._gguf.arch}.pooling_type", 0))
        if mode is None or "feature-extraction" not in self._gguf.tasks:
            return {}
        parts = ("Transformer", "Pooling", "Normalize")
        paths = ("", "1_Pooling", "2_Normalize")
        width = self.metadata[f"{self._gguf.arch}.embedding_length"]
        return {
            "modules.json": [
                {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{part}"}
                for n, (path, part) in enumerate(zip(paths, parts, strict=True))
            ],
            "1_Pooling/config.json": {
                "word_embedding_dimension": width,
                **{f"pooling_mode_{name}": name == mode for name in POOLING.values()},
            },
            "sentence_bert_config.json": {"max_seq_length": self.metadata[f"{self._gguf.arch}.context_length"]},
        }

    def __getitem__(self, key: str) -> Tensor:
        tensor = self._stored(self.tensors[self._names[key]])
        if not self._permuted(key):
            return tensor
        return tensor[interleaved(tensor.shape[0], self._head_dim).argsort()]

    def rows(self, key: str, start: int, stop: int) -> Tensor:
        info = self.tensors[self._names[key]]
        if not self._permuted(key):
            return self._stored(info, slice(start, stop))
        order = interleaved(info.shape[0], self._head_dim).argsort()
        return self._stored(info, order[start:stop])

    def blocks(self, key: str, start: int, stop: int) -> Tensor:
        """The bytes of some rows of a matrix as they are stored, in the order of `rows`: uint8 (rows, bytes)."""
        import torch

        info = self.tensors[self._names[key]]
        rows = self._files[info.path].view(info.offset, torch.uint8, (info.shape[0], info.nbytes // info.shape[0]))
        if not self._permuted(key):
            return rows[start:stop]
        return rows[interleaved(info.shape[0], self._head_dim).argsort()[start:stop]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def info(self, key: str) -> TensorInfo:
        info = self.tensors[self._names[key]]
        return replace(info, offset=-1) if self._permuted(key) else info

    def files(self) -> list[Path]:
        return self._paths

    def release(self, key: str) -> None:
        info = self.tensors[self._names[key]]
        self._files[info.path].release(info.offset, info.nbytes)

    def _stored(self, info: TensorInfo, which: slice | Tensor | None = None) -> Tensor:
        """The tensor, or some of its rows, in the order of the file."""
        return read_tensor(self._files[info.path], info, which)

    def _permuted(self, key: str) -> bool:
        """Whether the rows of this tensor stand in another order in the file."""
        return self._gguf.interleaved_rope and is_rotary(key)

    @property
    def _head_dim(self) -> int:
        size: int = self.config.get("head_dim") or self.config["hidden_size"] // self.config["num_attention_heads"]
        return size

    def _config(self) -> dict[str, Any]:
        """The config.json that the metadata, the shapes and the auxiliary tensors amount to."""
        gguf = self._gguf
        fields = {
            key.removeprefix(f"{gguf.arch}."): value
            for key, value in self.metadata.items()
            if key.startswith(f"{gguf.arch}.")
        }
        fields |= {
            key: value
            for key, value in self.metadata.items()
            if key.startswith("tokenizer.ggml.") and isinstance(value, int | str)
        }
        fields |= {name: self._stored(self.tensors[name]).tolist() for name in AUXILIARY if name in self.tensors}
        shapes = {name: info.shape for name, info in self.tensors.items()}
        numbers = (re.match(r"(?:enc\.)?blk\.(\d+)\.", name) for name in shapes)  # those of a decoder are apart
        layers = 1 + max((int(number[1]) for number in numbers if number is not None), default=-1)
        if fields.get("block_count") != layers:
            raise CheckpointError(
                f"{self.path} has {layers} layers and its metadata says {fields.get('block_count')}; fetch it again"
            )
        try:
            config = gguf.config(fields, shapes)
        except IsoformError as error:
            raise type(error)(f"{self.path}: {error}") from None
        except KeyError as error:
            raise CheckpointError(
                f"{self.path} has no {error.args[0]}, which {self.family.title} needs; convert the model again"
            ) from None
        except (TypeError, ValueError, ArithmeticError, IndexError) as error:
            raise CheckpointError(
                f"{self.path}: the metadata of {gguf.arch} is malformed ({error}); convert the model again"
            ) from None
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
            if type(index := self.metadata.get(f"tokenizer.ggml.{key}_token_id")) is int:
                config[f"{name}_token_id"] = index
        return config

    def _check_agreement(self) -> None:
        """The metadata must be what we would write for this config; else the file means what we would not compute."""
        gguf = self._gguf
        try:
            typed = self.family.config.from_dict(self.config)
        except IsoformError as error:
            raise type(error)(f"{self.path} as a {error}") from None
        fields = gguf.fields(typed)
        for key, value in fields.items():
            stored = self.metadata.get(f"{gguf.arch}.{key}", value)
            if isinstance(value, float) and isinstance(stored, int | float):
                same = abs(stored - value) <= 1e-6 * abs(value)
            else:
                same = stored == value
            if not same:
                raise UnsupportedModel(
                    f"{self.path}: {gguf.arch}.{key} is {stored!r}; isoform's {self.family.title} knows only {value!r}"
                )
        for key, value in self.metadata.items():
            scale = key.startswith((f"{gguf.arch}.rope.scaling.", f"{gguf.arch}.expert")) or key.endswith("_scale")
            name = key.removeprefix(f"{gguf.arch}.")
            if scale and name not in fields and value not in (0, 1, False, "none", USUAL.get(name, "none")):
                raise UnsupportedModel(
                    f"{self.path}: {key} is {value!r}, which isoform's {self.family.title} does not have"
                )
        known = gguf.extra(typed)
        for name in AUXILIARY:
            if name in self.tensors and name not in known:
                raise UnsupportedModel(f"{self.path} holds {name}, which isoform's {self.family.title} does not have")


def _shards(path: Path, metadata: Mapping[str, Any]) -> list[Path]:
    """The files of a model that was split, of which `path` must be the first; named as llama.cpp names them."""
    count, number = metadata.get("split.count", 1), metadata.get("split.no", 0)
    if type(count) is not int or count <= 1:
        return [path]
    match = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", path.name)
    if match is None or int(match[2]) != count:
        raise CheckpointError(
            f"{path} is one of {count} shards, which are found by their names; call it NAME-00001-of-{count:05}.gguf"
        )
    paths = [path.with_name(f"{match[1]}-{n:05}-of-{count:05}.gguf") for n in range(1, count + 1)]
    if number != 0:
        raise CheckpointError(f"{path} is a later shard of a model; open the first, {paths[0]}")
    if missing := [shard.name for shard in paths if not shard.is_file()]:
        raise CheckpointError(f"{path}: {missing[0]} is missing, which holds another part of the model; fetch it again")
    return [path, *paths[1:]]


def _following(shard: Path, first: Path, before: Mapping[str, TensorInfo]) -> Mapping[str, TensorInfo]:
    """The tensors of a later shard."""
    header = read_gguf(shard)
    if "split.count" not in header.metadata:
        raise CheckpointError(f"{shard} is no part of {first}; fetch it again")
    if repeated := sorted(before.keys() & header.tensors.keys()):
        raise CheckpointError(f"{shard} holds {repeated[0]}, which another shard of {first} holds; fetch them again")
    return header.tensors


def _family(path: Path, metadata: Mapping[str, Any], tensors: Collection[str]) -> tuple[Family, Gguf]:
    arch = metadata.get("general.architecture")
    vocabulary = str(metadata.get("tokenizer.ggml.model", ""))
    family = gguf_family(arch, tensors, vocabulary) if isinstance(arch, str) else None
    if family is None:
        known = ", ".join(sorted(GGUF_FAMILIES))
        raise UnsupportedModel(f"{path}: GGUF architecture {arch!r} is not supported; isoform knows {known}")
    return family, next(card for card in family.ggufs if card.arch == arch)
