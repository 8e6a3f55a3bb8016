"""The GGUF format: a file's header, ggml's types and dequantization, and llama.cpp's order of rotary rows.

The format is described in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A file is not to be trusted: every
count, length and offset is checked against the size of the file before it is used.

Metadata holds float32 numbers; single ones are read as the shortest decimal that names them, so 1e-5 stays 1e-5.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import CheckpointError
from isoform.reference.checkpoints.checkpoint import TensorInfo
from isoform.reference.checkpoints.mapped_file import MappedFile

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


def read_tensor(file: MappedFile, info: TensorInfo, which: slice | Tensor | None = None) -> Tensor:
    """A tensor of the file, or some of its rows: a view of the memory map, or float32 where it is quantized.

    `which` selects along the first axis: a slice, or int64 indices.
    """
    import torch

    from isoform.reference.checkpoints.dtypes import DTYPES

    if (dtype := DTYPES.get(info.dtype)) is not None:
        stored = file.view(info.offset, dtype, info.shape)
        return stored if which is None else stored[which]
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    raw = np.frombuffer(file.bytes, np.uint8, info.nbytes, info.offset)
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
