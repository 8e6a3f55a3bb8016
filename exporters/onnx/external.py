"""The weight file beside a graph, streamed: no tensor is in memory twice, and the model never is.

A tensor whose bytes lie in a file is read from there in pieces (a mapped page would count as memory until it is
dropped); another is computed whole. Each piece is cast, hashed and written before the next one is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from math import isfinite, prod
from pathlib import Path

import onnx
import torch
from onnx import TensorProto
from torch import Tensor

from isoform.errors import UnsupportedExport
from isoform.exporters.onnx.graph import ELEMENTS
from isoform.exporters.tracing import Type
from isoform.manifest import File
from isoform.reference.weights import Weight

PIECE = 2**20  # elements at a time
PAGE, LINE = 4096, 64  # a tensor of a page or more starts on a page, so that it can be mapped; a smaller one on a line

Progress = Callable[[str, int, int], None]


def write_weights(
    model: onnx.ModelProto,
    parameters: Mapping[str, Type],
    weights: Mapping[str, Weight],
    path: Path,
    folder: Path,
    progress: Progress,
) -> File:
    """Write the parameters in `weights`' order and enter them into the model as external data beside it."""
    names = [name for name in weights if name in parameters]
    total = sum(_size(parameters[name]) for name in names)
    digest, position = hashlib.sha256(), 0
    casts = {dtype: torch.empty(PIECE, dtype=dtype) for dtype in {type_.dtype for type_ in parameters.values()}}
    with path.open("wb") as stream:

        def put(data: memoryview | bytes) -> None:
            nonlocal position
            digest.update(data)
            position += stream.write(data)

        for name in names:
            type_, start = parameters[name], position
            align = PAGE if _size(type_) >= PAGE else LINE
            put(bytes(-position % align))
            start = position
            for piece in pieces(weights[name]):
                put(_cast(name, piece, casts[type_.dtype]).numpy().data.cast("B"))
                progress(f"{path.name}: {name}", position, total)
            weights[name].release()
            _enter(model, name, type_, path.name, start, position - start)
    return File(path.relative_to(folder).as_posix(), position, digest.hexdigest())


def pieces(weight: Weight) -> Iterator[Tensor]:
    """The tensor in flat pieces of its own dtype, in order; a piece is valid until the next one is asked for."""
    if weight.source is None:
        yield from weight.load().contiguous().flatten().split(PIECE)
        return
    size = weight.dtype.itemsize
    buffer = bytearray(min(PIECE * size, weight.source.nbytes))
    with weight.source.path.open("rb", buffering=0) as stream:
        stream.seek(weight.source.offset)
        left = weight.source.nbytes
        while left:
            count = stream.readinto(memoryview(buffer)[:left])
            if not count or count % size:
                raise OSError(f"{weight.source.path} ends early or is read in odd pieces: it changed while it was read")
            left -= count
            yield torch.frombuffer(buffer, dtype=weight.dtype, count=count // size)


def _cast(name: str, piece: Tensor, room: Tensor) -> Tensor:
    """The piece in the dtype of `room`, and in its memory: fresh pages for every piece cost more than the cast."""
    if piece.dtype == room.dtype:
        return piece
    result = room[: piece.numel()].copy_(piece)
    if room.dtype == torch.float16 and not bool(torch.isfinite(result).all()):
        largest = float(piece.abs().max())
        if isfinite(largest):
            raise UnsupportedExport(f"{name} holds {largest:g}, float16 ends at 65504; export to f32 instead")
    return result


def _enter(model: onnx.ModelProto, name: str, type_: Type, location: str, offset: int, length: int) -> None:
    tensor = TensorProto(
        name=name,
        data_type=ELEMENTS[type_.dtype],
        dims=[size for size in type_.shape if isinstance(size, int)],
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    model.graph.initializer.append(tensor)


def _size(type_: Type) -> int:
    return prod(size for size in type_.shape if isinstance(size, int)) * type_.dtype.itemsize
