"""Writes a GGUF file, version 3, little-endian: the header at once, then each tensor piece by piece.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.exporters.gguf.tensors import NUMBERS

if TYPE_CHECKING:
    from isoform.exporters.gguf.tensors import Entry

ALIGNMENT = 32
VERSION = 3


class Signed(int):
    """A whole number that llama.cpp reads as INT32."""


# Numbers of the metadata types, by Python type: for a single value, and for the elements of a list.
_SINGLE: dict[type, tuple[int, str]] = {bool: (7, "?"), int: (4, "I"), Signed: (5, "i"), float: (6, "f")}
_ELEMENT: dict[type, tuple[int, str]] = {bool: (7, "?"), int: (5, "i"), float: (6, "f")}
_UINT8, _STRING, _ARRAY, _UINT64 = 0, 8, 9, 10


def write_file(
    path: Path, metadata: Mapping[str, Any], tensors: Sequence[Entry], progress: Callable[[str, int, int], None]
) -> None:
    """Write header and data; an entry whose pieces are not as long as it says is our bug."""
    header, offset = bytearray(), 0
    values = {key: value for key, value in metadata.items() if not (isinstance(value, list | bytes) and not value)}
    header += struct.pack("<4sIQQ", b"GGUF", VERSION, len(tensors), len(values))
    for key, value in values.items():
        header += _text(key) + _value(value)
    for entry in tensors:
        header += _text(entry.name) + struct.pack("<I", len(entry.shape))
        header += struct.pack(f"<{len(entry.shape)}Q", *reversed(entry.shape))
        header += struct.pack("<IQ", NUMBERS[entry.type][0], offset)
        offset += -(-entry.nbytes // ALIGNMENT) * ALIGNMENT
    done, total = 0, sum(entry.nbytes for entry in tensors)
    text = path.name
    progress(text, 0, total)
    with path.open("wb") as stream:
        stream.write(header + bytes(-len(header) % ALIGNMENT))
        for entry in tensors:
            start = done
            for piece in entry.pieces():
                stream.write(piece.data)
                done += piece.nbytes
                progress(text, done, total)
            if done - start != entry.nbytes:
                raise RuntimeError(f"{entry.name} came out as {done - start} bytes, not {entry.nbytes}")
            stream.write(bytes(-entry.nbytes % ALIGNMENT))


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    """Type and value. A whole number is a UINT32, in a list an INT32; bytes are a list of UINT8."""
    if type(value) is int and value >= 2**32:
        return struct.pack("<IQ", _UINT64, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, bytes):
        return struct.pack("<IIQ", _ARRAY, _UINT8, len(value)) + value
    if isinstance(value, list):
        if isinstance(value[0], str):
            return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_text, value))
        number, letter = _ELEMENT[type(value[0])]
        return struct.pack(f"<IIQ{len(value)}{letter}", _ARRAY, number, len(value), *value)
    number, letter = _SINGLE[type(value)]
    return struct.pack(f"<I{letter}", number, value)
