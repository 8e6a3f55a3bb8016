"""GGUF files as checkpoints: llama.cpp's tensors under isoform's names, its metadata as a config.json and a tokenizer.

The format is described in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A file is not to be trusted: every
count, length and offset is checked against the size of the file before it is used.

Metadata holds float32 numbers; single ones are read as the shortest decimal that names them, so 1e-5 stays 1e-5.
"""

from __future__ import annotations

import json
import mmap
import re
import shutil
import struct
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import CheckpointError, IsoformError, UnsupportedModel
from isoform.reference.card import Family, Gguf
from isoform.reference.checkpoints.checkpoint import Checkpoint, TensorInfo
from isoform.reference.names import GGUF, rename

if TYPE_CHECKING:
    from torch import Tensor

TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
}
"""ggml's number of a type -> its name, the elements of a block and the bytes of a block."""

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

# Number of a metadata type -> struct's letter. 8 is a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DIMENSIONS = 4
_PIECE = 2**21  # elements dequantized at a time


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What the header says. Shapes are torch's (rows first), offsets count from the start of the file."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]


def read_gguf(path: Path) -> GgufFile:
    """Read the header of a GGUF file, version 2 or 3, little-endian. Raises CheckpointError for any other."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise CheckpointError(f"{path} is no GGUF file; fetch it again")
            stream.seek(0)
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                return _Header(path, mapped, size).read()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); fetch it again") from None


class _Header:
    """A cursor over the mapped file that never leaves it."""

    def __init__(self, path: Path, mapped: mmap.mmap, size: int) -> None:
        self.path, self.mapped, self.size, self.at = path, mapped, size, 4

    def read(self) -> GgufFile:
        version = self.number("I")
        if version not in (2, 3):
            what = "is big-endian" if version in (2 << 24, 3 << 24) else f"has version {version}"
            raise CheckpointError(f"{self.path} {what}; isoform reads little-endian GGUF of version 2 and 3")
        tensors, pairs = self.number("Q"), self.number("Q")
        # The smallest entries: a name of no bytes with one dimension, and a key of no bytes with one byte of value.
        self.fits(tensors * 32 + pairs * 13, "its header")
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = self.name()
            if key in metadata:
                raise self.broken(f"names {key} twice")
            metadata[key] = self.value(self.number("I"), key)
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment <= 0 or alignment % 8:
            raise self.broken(f"has general.alignment {alignment!r}, which is no multiple of 8")
        entries = [self.tensor() for _ in range(tensors)]
        start = -(-self.at // alignment) * alignment
        found: dict[str, TensorInfo] = {}
        for name, kind, shape, offset in entries:
            if name in found:
                raise self.broken(f"names {name} twice")
            if offset % alignment:
                raise self.broken(f"places {name} at {offset}, which is no multiple of {alignment}")
            label, block, nbytes = TYPES[kind]
            length = prod(shape) // block * nbytes
            if (end := start + offset + length) > self.size:
                raise self.broken(f"is truncated: {name} ends at byte {end}, the file at {self.size}")
            found[name] = TensorInfo(label, shape, self.path, start + offset, length)
        return GgufFile(metadata, found)

    def tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        """Name, type, shape in torch's order, and offset from the start of the data."""
        name = self.name()
        count = self.number("I")
        if not 1 <= count <= _DIMENSIONS:
            raise self.broken(f"gives {name} {count} dimensions")
        shape = tuple(self.number("Q") for _ in range(count))[::-1]
        kind, offset = self.number("I"), self.number("Q")
        if kind not in TYPES:
            raise CheckpointError(
                f"{self.path}: {name} has type {kind}, which isoform does not read; take a file of another quantization"
            )
        if shape[-1] % TYPES[kind][1] or 0 in shape:
            raise self.broken(f"gives {name} the shape {list(shape)}, which {TYPES[kind][0]} cannot have")
        return name, kind, shape, offset

    def value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self.array(self.number("I"), self.number("Q"), key)
        return _plain(kind, self.number(self.letter(kind, key)))

    def array(self, kind: int, count: int, key: str) -> list[Any] | bytes:
        """A list, or bytes for numbers of one byte."""
        if kind == _STRING:
            return self.texts(count)
        letter = self.letter(kind, key)
        length = count * struct.calcsize(f"<{letter}")
        self.fits(length, key)
        start, self.at = self.at, self.at + length
        if letter in "Bb":
            return self.mapped[start : self.at]
        return list(struct.unpack_from(f"<{count}{letter}", self.mapped, start))

    def texts(self, count: int) -> list[str]:
        """`count` strings; a vocabulary has hundreds of thousands, so no call per string."""
        self.fits(count * 8, "an array of strings")
        mapped, at, size, unpack = self.mapped, self.at, self.size, struct.Struct("<Q").unpack_from
        result = []
        try:
            for _ in range(count):
                start = at + 8
                at = start + unpack(mapped, at)[0]
                if at > size:
                    raise self.broken("is truncated in an array of strings")
                result.append(mapped[start:at].decode())
        except (struct.error, UnicodeDecodeError) as error:
            raise self.broken(f"has a malformed array of strings ({error})") from None
        self.at = at
        return result

    def text(self) -> str:
        length = self.number("Q")
        self.fits(length, "a string")
        raw = self.mapped[self.at : self.at + length]
        self.at += length
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.broken(f"holds {raw[:40]!r}, which is no UTF-8,") from None

    def name(self) -> str:
        name = self.text()
        if not name.isprintable():
            raise self.broken(f"holds the name {name[:40]!r}")
        return name

    def number(self, letter: str) -> Any:
        length = struct.calcsize(f"<{letter}")
        self.fits(length, "its header")
        value = struct.unpack_from(f"<{letter}", self.mapped, self.at)[0]
        self.at += length
        return value

    def letter(self, kind: int, key: str) -> str:
        if kind not in _SCALARS:
            raise self.broken(f"gives {key} the type {kind}")
        return _SCALARS[kind]

    def fits(self, length: int, what: str) -> None:
        if length > self.size - self.at:
            raise self.broken(f"is truncated in {what}")

    def broken(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} {what}; fetch it again")


def _plain(kind: int, value: Any) -> Any:
    """A float32 as the shortest decimal that rounds to it."""
    if kind != 6:
        return value
    import numpy as np

    return float(str(np.float32(value)))


def is_rotary(key: str) -> bool:
    """Whether a canonical parameter makes q or k, whose rows llama.cpp may want in another order."""
    return key.rpartition(".")[0].endswith((".attn.q", ".attn.k"))


def interleaved(rows: int, head_dim: int) -> Tensor:
    """Which row of the Hub's q or k stands where in llama.cpp's, whose rotary pairs lie side by side: int64 (rows,).

    The Hub keeps the two halves of a head, (2, D/2) rows, one after the other; llama.cpp pairs them, (D/2, 2).
    """
    import torch

    return torch.arange(rows).view(-1, 2, head_dim // 2).transpose(1, 2).reshape(-1)


class GgufCheckpoint(Checkpoint):
    """A GGUF file, or the first of its shards, with canonical keys.

    Quantized tensors come out as float32, the others as they are stored.

    `folder` is a temporary one with a config.json and the tokenizer's files, written when first asked for and removed
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
        self._maps: dict[Path, mmap.mmap] = {}
        self.family, self._gguf = _family(path, header.metadata)
        table = {target: source for source, target in GGUF.items()}
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
        if "text-generation" in self._gguf.tasks and (generation := self._generation()):
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

        found: dict[str, Any] = {k: self.config[k] for k in ("bos_token_id", "pad_token_id") if k in self.config}
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
        width = self.config["hidden_size"]
        return {
            "modules.json": [
                {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{part}"}
                for n, (path, part) in enumerate(zip(paths, parts, strict=True))
            ],
            "1_Pooling/config.json": {
                "word_embedding_dimension": width,
                **{f"pooling_mode_{name}": name == mode for name in POOLING.values()},
            },
            "sentence_bert_config.json": {"max_seq_length": self.config["max_position_embeddings"]},
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
        raw = torch.frombuffer(self._mapped(info.path), dtype=torch.uint8, count=info.nbytes, offset=info.offset)
        rows = raw.view(info.shape[0], -1)
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
        if info.path not in self._maps or not hasattr(mmap, "MADV_DONTNEED"):
            return
        start = -(-info.offset // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (info.offset + info.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - start
        if length > 0:
            self._maps[info.path].madvise(mmap.MADV_DONTNEED, start, length)

    def _mapped(self, path: Path) -> mmap.mmap:
        if path not in self._maps:
            with path.open("rb") as stream:  # copy-on-write: torch wants writable memory, the file stays as it is
                self._maps[path] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._maps[path]

    def _stored(self, info: TensorInfo, which: slice | Tensor | None = None) -> Tensor:
        """The tensor, or some of its rows, in the order of the file; a view of the memory map unless it is quantized.

        `which` selects along the first axis: a slice, or int64 indices.
        """
        import torch

        from isoform.reference.checkpoints.dtypes import DTYPES

        mapped = self._mapped(info.path)
        if (dtype := DTYPES.get(info.dtype)) is not None:
            flat = torch.frombuffer(mapped, dtype=dtype, count=prod(info.shape), offset=info.offset)
            stored = flat.view(info.shape)
            return stored if which is None else stored[which]
        import numpy as np
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        raw = np.frombuffer(mapped, np.uint8, info.nbytes, info.offset)
        if len(info.shape) == 1:
            whole = torch.from_numpy(dequantize(raw, GGMLQuantizationType[info.dtype]))
            return whole if which is None else whole[which]
        raw = raw.reshape(info.shape[0], -1)
        if which is not None:
            raw = raw[which if isinstance(which, slice) else which.numpy()]
        count = len(raw)
        rows = raw.reshape(count * prod(info.shape[1:-1]), -1)
        result = np.empty((len(rows), info.shape[-1]), np.float32)
        step = max(1, _PIECE // info.shape[-1])
        for start in range(0, len(rows), step):  # in pieces: dequantize needs twice the room of its result
            piece = slice(start, start + step)
            result[piece] = dequantize(rows[piece], GGMLQuantizationType[info.dtype])
        return torch.from_numpy(result).view(count, *info.shape[1:])

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
        fields |= {name: self._stored(self.tensors[name]).tolist() for name in AUXILIARY if name in self.tensors}
        shapes = {name: info.shape for name, info in self.tensors.items()}
        numbers = {name.split(".")[1] for name in shapes if name.startswith("blk.")}
        layers = 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)
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
            if scale and key.removeprefix(f"{gguf.arch}.") not in fields and value not in (0, 1, False, "none"):
                raise UnsupportedModel(f"{self.path}: {key} is {value!r}, which isoform's {self.family.title} has not")
        known = gguf.extra(typed)
        for name in AUXILIARY:
            if name in self.tensors and name not in known:
                raise UnsupportedModel(f"{self.path} holds {name}, which isoform's {self.family.title} has not")


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


def _family(path: Path, metadata: Mapping[str, Any]) -> tuple[Family, Gguf]:
    from isoform.reference.families import all_families

    arch = metadata.get("general.architecture")
    known = []
    for family in all_families():
        if family.gguf is not None:
            if family.gguf.arch == arch:
                return family, family.gguf
            known.append(family.gguf.arch)
    raise UnsupportedModel(f"{path}: GGUF architecture {arch!r} is not supported; isoform knows {', '.join(known)}")
