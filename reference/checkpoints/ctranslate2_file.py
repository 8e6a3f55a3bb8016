"""CTranslate2's model.bin: the names, types and places of its arrays, and their values.

The format is that of `ModelSpec` (https://github.com/OpenNMT/CTranslate2): a version, the kind of model, a revision,
then arrays with their names, then aliases.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import CheckpointError, UnsupportedModel

if TYPE_CHECKING:
    from torch import Tensor

_TYPES = {0: ("F32", 4), 1: ("I8", 1), 2: ("I16", 2), 3: ("I32", 4), 4: ("F16", 2), 5: ("BF16", 2)}


@dataclass(frozen=True, slots=True)
class Array:
    """`nbytes` bytes at `offset`; `dtype` is safetensors' name."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_arrays(path: Path, kind: str) -> dict[str, Array]:
    """Where every array of a model.bin lies. Raises UnsupportedModel unless it is of this kind, CheckpointError for a
    file that is cut off."""
    size = path.stat().st_size
    with path.open("rb") as stream:

        def take(form: str) -> tuple[Any, ...]:
            data = stream.read(struct.calcsize(form))
            try:
                return struct.unpack(form, data)
            except struct.error:
                raise CheckpointError(f"{path} ends before its arrays do; fetch it again") from None

        def text() -> str:
            (length,) = take("<H")
            return stream.read(length)[:-1].decode("utf-8", "replace")

        (version,) = take("<I")
        found = text() if 2 <= version <= 64 else ""
        if found != kind:
            raise UnsupportedModel(
                f"{path} holds {found[:40] or 'no model of CTranslate2'}; isoform reads {kind} alone"
            )
        take("<I")  # revision
        (count,) = take("<I")
        arrays: dict[str, Array] = {}
        for _ in range(count):
            name = text()
            (rank,) = take("<B")
            shape = take(f"<{rank}I")
            code, nbytes = take("<BI")
            if code not in _TYPES:
                raise CheckpointError(f"{path}: {name[:80]} has the type {code}, which isoform does not read")
            dtype, width = _TYPES[code]
            if nbytes != width * prod(shape):
                raise CheckpointError(
                    f"{path}: {name[:80]} has {nbytes} bytes for the shape {list(shape)}; fetch it again"
                )
            if (end := stream.tell() + nbytes) > size:
                raise CheckpointError(
                    f"{path} is truncated: {name[:80]} ends at byte {end}, the file at {size}; fetch it again"
                )
            arrays[name] = Array(dtype, shape, stream.tell(), nbytes)
            stream.seek(nbytes, 1)
    return arrays


def read_values(path: Path, array: Array, start: int, nbytes: int) -> Tensor:
    """The values in some of an array's bytes, one after the other."""
    import torch

    from isoform.reference.checkpoints.dtypes import DTYPES

    with path.open("rb") as stream:
        stream.seek(array.offset + start)
        data = bytearray(stream.read(nbytes))
    if len(data) < nbytes:
        raise CheckpointError(f"{path} ends before its arrays do; fetch it again")
    return torch.frombuffer(data, dtype=DTYPES[array.dtype]) if data else torch.empty(0, dtype=DTYPES[array.dtype])
