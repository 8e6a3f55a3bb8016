"""Writes GGUF files, version 3, little-endian: several types, each in one file or in shards, in one read of the model.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Shards are named, cut and labelled as llama.cpp's
gguf-split does it, so that llama.cpp opens the first and finds the others.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from isoform.errors import InputError
from isoform.exporters.gguf.conversion import Buffers, convert
from isoform.exporters.gguf.types import NUMBERS, nbytes
from isoform.progress import Progress
from isoform.whole import whole_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from isoform.exporters.gguf.tensors import GgufTensor, Piece

ALIGNMENT = 32
VERSION = 3
RELEASE = 2**26  # bytes of a tensor read before its pages are dropped


class Signed(int):
    """A whole number that llama.cpp reads as INT32."""


class Short(int):
    """A whole number that llama.cpp reads as UINT16."""


# Numbers of the metadata types, by Python type: for a single value, and for the elements of a list.
_SINGLE: dict[type, tuple[int, str]] = {
    bool: (7, "?"),
    int: (4, "I"),
    Signed: (5, "i"),
    Short: (2, "H"),
    float: (6, "f"),
}
_ELEMENT: dict[type, tuple[int, str]] = {bool: (7, "?"), int: (5, "i"), float: (6, "f")}
_UINT8, _STRING, _ARRAY, _UINT64 = 0, 8, 9, 10


@dataclass(frozen=True, slots=True)
class Target:
    """A file to be written: the type of each tensor by its name, and the most bytes of tensors in one shard."""

    path: Path
    metadata: Mapping[str, Any]
    types: Mapping[str, str]
    shard_bytes: int | None = None


class _Shard:
    """One file on its way: opened for its first tensor, closed after its last."""

    def __init__(
        self, path: Path, metadata: Mapping[str, Any], tensors: Sequence[GgufTensor], types: Mapping[str, str]
    ):
        self.path = path
        self._header = _header(metadata, [(entry.name, types[entry.name], entry.shape) for entry in tensors])
        self._left = len(tensors)
        self._stream: BinaryIO | None = None
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of what was written so far, so that the file need not be read again."""
        return self._digest.hexdigest()

    def write(self, data: NDArray[Any]) -> None:
        self._put(data.data)

    def end_tensor(self, length: int) -> None:
        self._put(bytes(-length % ALIGNMENT))
        self._left -= 1
        if not self._left:
            self.close()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def _put(self, data: bytes | memoryview) -> None:
        if self._stream is None:
            self._stream = self.path.open("wb")
            self._put(self._header)
        self._stream.write(data)
        self._digest.update(data)


def write_files(
    targets: Sequence[Target],
    tensors: Sequence[GgufTensor],
    progress: Progress,
    *,
    importance: Mapping[str, NDArray[np.float32]] | None = None,
    threads: int | None = None,
) -> list[dict[Path, str]]:
    """Write every target while each tensor is read once; the shards of each, with their sha256.

    `importance` gives float32 (experts * columns,) by tensor name; `threads` convert, one for each core unless said.
    """
    plans = [_shards(target, tensors) for target in targets]
    done, total = 0, sum(nbytes(entry.shape, target.types[entry.name]) for target in targets for entry in tensors)
    text = ", ".join(target.path.name for target in targets)
    progress(text, 0, total)
    converted = _converted(targets, tensors, importance or {}, threads or _cores())
    try:
        for entry, pieces in groupby(converted, lambda item: item[0]):
            places = [(target.types[entry.name], plan[entry.name]) for target, plan in zip(targets, plans, strict=True)]
            lengths = [0] * len(places)
            for _, made in pieces:
                for index, (kind, shard) in enumerate(places):
                    shard.write(made[kind])
                    lengths[index] += made[kind].nbytes
                    done += made[kind].nbytes
                progress(text, done, total)
            for length, (kind, shard) in zip(lengths, places, strict=True):
                if length != (expected := nbytes(entry.shape, kind)):
                    raise RuntimeError(f"{entry.name} came out as {length} bytes of {kind}, not {expected}")
                shard.end_tensor(length)
    finally:
        converted.close()
        for plan in plans:
            for shard in plan.values():
                shard.close()
    return [{shard.path: shard.sha256 for shard in plan.values()} for plan in plans]


def write_arrays(
    out: Path, metadata: Mapping[str, Any], tensors: Mapping[str, tuple[str, tuple[int, ...], NDArray[Any]]]
) -> None:
    """Write a file whose tensors are ready, whole or not at all: by name, ggml's type, torch's shape, and the data."""
    if out.is_dir():
        raise InputError(f"{out} is a folder; give the file to write")
    with whole_file(out) as path, path.open("wb") as stream:
        stream.write(_header(metadata, [(name, kind, shape) for name, (kind, shape, _) in tensors.items()]))
        for name, (kind, shape, data) in tensors.items():
            if data.nbytes != (expected := nbytes(shape, kind)):
                raise RuntimeError(f"{name} has {data.nbytes} bytes, a {kind} of {list(shape)} has {expected}")
            stream.write(data.tobytes() + bytes(-data.nbytes % ALIGNMENT))


def _shards(target: Target, tensors: Sequence[GgufTensor]) -> dict[str, _Shard]:
    """Tensor name -> the file that it goes into, cut where the next tensor would make a shard too large."""
    groups: list[list[GgufTensor]] = [[]]
    filled = 0
    for entry in tensors:
        length = -(-nbytes(entry.shape, target.types[entry.name]) // ALIGNMENT) * ALIGNMENT
        filled += length
        if target.shard_bytes is not None and filled > target.shard_bytes and groups[-1]:
            groups.append([])
            filled = length
        groups[-1].append(entry)
    count = len(groups)
    if count == 1:
        whole = _Shard(target.path, target.metadata, tensors, target.types)
        return dict.fromkeys((entry.name for entry in tensors), whole)
    result: dict[str, _Shard] = {}
    for number, group in enumerate(groups):
        label = {"split.no": Short(number), "split.count": Short(count), "split.tensors.count": Signed(len(tensors))}
        path = target.path.with_name(f"{target.path.stem}-{number + 1:05d}-of-{count:05d}.gguf")
        metadata = {**(target.metadata if number == 0 else {}), **label}
        result |= dict.fromkeys((entry.name for entry in group), _Shard(path, metadata, group, target.types))
    return result


def _converted(
    targets: Sequence[Target],
    tensors: Sequence[GgufTensor],
    importance: Mapping[str, NDArray[np.float32]],
    threads: int,
) -> Generator[tuple[GgufTensor, dict[str, NDArray[np.uint8]]]]:
    """Every piece of every tensor, in order, in each type that a target wants; a few are on their way ahead.

    What is yielded is overwritten after the next one has been asked for.
    """
    waiting: deque[tuple[GgufTensor, int, Future[dict[str, NDArray[np.uint8]]]]] = deque()
    buffers, read = Buffers(), 0
    last: dict[str, NDArray[np.uint8]] = {}

    def first() -> tuple[GgufTensor, dict[str, NDArray[np.uint8]]]:
        nonlocal read, last
        for array in last.values():
            buffers.give(array)
        entry, size, future = waiting.popleft()
        last = made = future.result()
        read += size
        if read > RELEASE or not waiting or waiting[0][0] is not entry:
            entry.release()  # pages that were read count as memory until they are dropped
            read = 0
        return entry, made

    pool = ThreadPoolExecutor(threads, "gguf")
    try:
        for entry in tensors:
            kinds = list(dict.fromkeys(target.types[entry.name] for target in targets))
            weights = importance.get(entry.name)
            for piece in entry.pieces():
                while len(waiting) > threads:
                    yield first()
                waiting.append((entry, piece.nbytes, pool.submit(_convert, entry.key, piece, kinds, weights, buffers)))
        while waiting:
            yield first()
    finally:
        pool.shutdown(cancel_futures=True)


def _convert(
    key: str, piece: Piece, kinds: Sequence[str], importance: NDArray[np.float32] | None, buffers: Buffers
) -> dict[str, NDArray[np.uint8]]:
    rows = piece.load()
    if importance is not None:
        columns = rows.shape[1]
        importance = importance[piece.expert * columns : (piece.expert + 1) * columns]
    return convert(key, rows, kinds, importance, buffers)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _header(metadata: Mapping[str, Any], tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """Everything before the data, filled up to the alignment; tensors are name, type and shape."""
    values = {key: value for key, value in metadata.items() if not (isinstance(value, list | bytes) and not value)}
    header, offset = bytearray(struct.pack("<4sIQQ", b"GGUF", VERSION, len(tensors), len(values))), 0
    for key, value in values.items():
        header += _text(key) + _value(value)
    for name, kind, shape in tensors:
        header += _text(name) + struct.pack("<I", len(shape))
        header += struct.pack(f"<{len(shape)}Q", *reversed(shape))
        header += struct.pack("<IQ", NUMBERS[kind][0], offset)
        offset += -(-nbytes(shape, kind) // ALIGNMENT) * ALIGNMENT
    return bytes(header + bytes(-len(header) % ALIGNMENT))


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
