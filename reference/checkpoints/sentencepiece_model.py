"""Reads a SentencePiece `tokenizer.model`: the pieces with their scores and kinds, and the normalizer.

The file is one protocol-buffer message, `ModelProto` of
https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto; a few of its fields are all we need.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from isoform.errors import CheckpointError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # ModelProto.SentencePiece.Type; GGUF's too
UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """pieces, scores (float32) and types are indexed by the SentencePiece id; kind is UNIGRAM or BPE.

    The ids of the unknown, begin and end pieces are those of the trainer, -1 for none.
    """

    pieces: list[str]
    scores: list[float]
    types: list[int]
    kind: int
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    byte_fallback: bool = False
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    unk_piece: str = "<unk>"
    bos_piece: str = "<s>"
    eos_piece: str = "</s>"


_TRAINED = {35: "byte_fallback", 40: "unk_id", 41: "bos_id", 42: "eos_id"}
_TRAINED |= {45: "unk_piece", 46: "bos_piece", 47: "eos_piece"}
"""TrainerSpec's field numbers."""


def parse(data: bytes) -> SentencePieceModel:
    """The model held by the bytes of a `tokenizer.model` or `spiece.model`."""
    pieces, scores, types = [], [], []
    kind, charsmap, prefix, squeeze = UNIGRAM, b"", True, True
    trained: dict[str, Any] = {}
    try:
        for field, value in _fields(data):
            if field == 1 and isinstance(value, bytes):
                piece, score, of_type = "", 0.0, NORMAL
                for inner, content in _fields(value):
                    if inner == 1 and isinstance(content, bytes):
                        piece = content.decode()
                    elif inner == 2 and isinstance(content, bytes):
                        (score,) = struct.unpack("<f", content)
                    elif inner == 3 and isinstance(content, int):
                        of_type = content
                pieces.append(piece)
                scores.append(score)
                types.append(of_type)
            elif field == 2 and isinstance(value, bytes):
                for inner, content in _fields(value):
                    if inner == 3 and isinstance(content, int):
                        kind = content
                    elif inner in _TRAINED:
                        trained[_TRAINED[inner]] = _trained(inner, content)
            elif field == 3 and isinstance(value, bytes):
                for inner, content in _fields(value):
                    if inner == 2 and isinstance(content, bytes):
                        charsmap = content
                    elif inner == 3:
                        prefix = bool(content)
                    elif inner == 4:
                        squeeze = bool(content)
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"the SentencePiece model of {len(data)} bytes is damaged ({error}); fetch it again"
        ) from error
    return SentencePieceModel(pieces, scores, types, kind, charsmap, prefix, squeeze, **trained)


def _trained(field: int, content: int | bytes) -> Any:
    """The value of a field of TrainerSpec, in its type."""
    if isinstance(content, int) != (field <= 42):
        raise IndexError(f"field {field} of the trainer is of another type")
    if isinstance(content, bytes):
        return content.decode()
    return bool(content) if field == 35 else content - (1 << 64) if content >> 63 else content


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of every field of a message; fixed-width values stay bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise IndexError(f"wire type {wire} at byte {at}")
        if at + size > len(data):
            raise IndexError(f"a field of {size} bytes at byte {at} runs past the end")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError(f"a number of more than 64 bits at byte {at}")


def white_space_map() -> bytes:
    """A character map, in SentencePiece's compiled form, from every white-space character to a space.

    The form is a double array: child = base ^ byte, valid if its low byte is that byte; bit 8 marks a node whose
    cell at its own base holds an offset into the replacements, which follow the array.
    """
    characters = [point for point in range(0x3001) if chr(point).isspace() and not 0x1C <= point <= 0x1F]
    nodes: dict[bytes, dict[int, bytes]] = {b"": {}}
    ends = {chr(character).encode() for character in characters}
    for end in sorted(ends):
        for at in range(len(end)):
            nodes.setdefault(end[:at], {})[end[at]] = end[: at + 1]
    # One block of 256 cells per inner node: no two nodes share a cell, and no cell has to be searched for.
    bases = {path: 256 * (block + 1) for block, path in enumerate(sorted(nodes))}
    leaves = 256 * (len(nodes) + 1)
    bases.update({path: leaves + index for index, path in enumerate(sorted(ends))})
    array = [0] * (leaves + 256)
    places = {b"": 0} | {child: bases[path] ^ byte for path, row in nodes.items() for byte, child in row.items()}
    for path, place in places.items():
        offset = bases[path] ^ place if path else bases[path]
        array[place] = offset << 10 | (path in ends) << 8 | (path[-1] if path else 0)
    for path in ends:
        array[bases[path]] = 1 << 31  # offset 0
    return struct.pack(f"<I{len(array)}I", 4 * len(array), *array) + b" \0"
