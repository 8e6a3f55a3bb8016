"""The weight file beside a graph, streamed: no tensor is in memory twice, and the model never is.

A tensor whose bytes lie in a file is read from there in pieces (a mapped page would count as memory until it is
dropped); another is computed whole. Each piece is cast or quantized, hashed and written before the next one is read.
What a checkpoint's file holds byte for byte may be read from there instead: the file is then linked beside the graph.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import isfinite, prod
from pathlib import Path
from typing import BinaryIO, Self

import onnx
import torch
from onnx import TensorProto
from torch import Tensor

from isoform.errors import CheckpointError, InputError, UnsupportedExport
from isoform.exporters.onnx.forms import DATA, Form
from isoform.exporters.onnx.graph import ELEMENTS, Parameter
from isoform.exporters.tracing import Type
from isoform.manifest import File, describe
from isoform.progress import Progress
from isoform.reference.weights import Weight

PIECE = 2**20  # elements at a time
PAGE, LINE = 4096, 64  # a tensor of a page or more starts on a page, so that it can be mapped; a smaller one on a line

Place = tuple[str, int, int]  # a file beside the graph, the offset in it, the length


@dataclass(frozen=True, slots=True)
class Use:
    """One weight in one form, None being its own: its parts, and which initializers read which part."""

    weight: str
    form: Form | None
    parts: Mapping[str, Type]
    initializers: Mapping[str, str]


@dataclass(frozen=True)
class Written:
    """What lies in files already, for another graph over the same weights: places by weight and form, and the files."""

    places: dict[tuple[str, Form | None], Mapping[str, Place]] = field(default_factory=dict)
    files: dict[str, File] = field(default_factory=dict)


def write_weights(
    model: onnx.ModelProto,
    parameters: Mapping[str, Parameter],
    weights: Mapping[str, Weight],
    path: Path,
    folder: Path,
    progress: Progress,
    *,
    link: bool = False,
    written: Written | None = None,
) -> list[File]:
    """Write the parameters in `weights`' order and enter them into the model as external data beside it.

    With `link`, what a checkpoint's file holds byte for byte is not written, but read from a link to that file. What is
    in `written` is not written again; what is new goes in there. Returns the files that the graph needs. Raises
    InputError when there is nothing to link, or the file system cannot.
    """
    links: list[Path] = []
    known = written or Written()
    uses = list(_uses(parameters, weights))
    for use in [use for use in uses if (use.weight, use.form) in known.places]:
        uses.remove(use)
        for name, part in use.initializers.items():
            _enter(model, name, parameters[name].type, known.places[use.weight, use.form][part])
    shared = [known.files[name] for name in _locations(model) if name in known.files]
    linked = {use.weight for use in uses if link and _stored(use, weights[use.weight])}
    if link and uses and not linked:
        kinds = ", ".join(sorted({str(weight.dtype).removeprefix("torch.") for weight in weights.values()}))
        raise InputError(
            f"no weight can be linked: the checkpoint holds {kinds}, {path.name} another type; use --weights copy"
        )
    total = sum(_size(t) for use in uses if use.weight not in linked for t in use.parts.values())
    casts = {dtype: torch.empty(PIECE, dtype=dtype) for dtype in {p.type.dtype for p in parameters.values()}}
    with _Data(path, total, progress) as data:
        for use in uses:
            weight = weights[use.weight]
            if use.weight in linked and weight.source is not None:
                links.append(weight.source.path)
                places = {DATA: (weight.source.path.name, weight.source.offset, weight.source.nbytes)}
            elif use.form is None:
                room = casts[use.parts[DATA].dtype]
                cast = (_cast(use.weight, piece, room) for piece in pieces(weight, PIECE))
                places = {DATA: data.put(use.weight, use.parts[DATA], cast)}
            else:
                places = {part: data.put(use.weight, use.parts[part], x) for part, x in _encoded(use, weight)}
            weight.release()
            known.places[use.weight, use.form] = places
            for name, part in use.initializers.items():
                _enter(model, name, parameters[name].type, places[part])
    files = [data.file(folder)] if data.position else []
    files += [_link(source, path.parent, folder) for source in dict.fromkeys(links)]
    known.files.update({Path(file.path).name: file for file in files})
    return files + [file for file in shared if file not in files]


def _locations(model: onnx.ModelProto) -> list[str]:
    """The files that the model's weights lie in so far."""
    entries = (entry for tensor in model.graph.initializer for entry in tensor.external_data)
    return list(dict.fromkeys(entry.value for entry in entries if entry.key == "location"))


def _uses(parameters: Mapping[str, Parameter], weights: Mapping[str, Weight]) -> Iterator[Use]:
    """In the order of `weights`."""
    found: dict[str, dict[Form | None, dict[str, str]]] = {name: {} for name in weights}
    for name, parameter in parameters.items():
        found[parameter.weight].setdefault(parameter.form, {})[name] = parameter.part
    for weight, forms in found.items():
        for form, initializers in forms.items():
            if form is None:
                yield Use(weight, form, {DATA: parameters[next(iter(initializers))].type}, initializers)
            else:
                *rows, columns = weights[weight].shape
                yield Use(weight, form, form.types(prod(rows), columns), initializers)


def _stored(use: Use, weight: Weight) -> bool:
    """Whether a checkpoint's file holds these very bytes."""
    return use.form is None and weight.source is not None and weight.dtype == use.parts[DATA].dtype


class _Data:
    """The weight file under construction. It is created with the first byte."""

    def __init__(self, path: Path, total: int, progress: Progress) -> None:
        self.path, self.position = path, 0
        self._digest, self._stack = hashlib.sha256(), ExitStack()
        self._stream: BinaryIO | None = None
        self._total, self._progress = total, progress

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def put(self, name: str, type_: Type, tensors: Iterable[Tensor]) -> Place:
        """Append one tensor in pieces."""
        self._write(bytes(-self.position % (PAGE if _size(type_) >= PAGE else LINE)))
        start = self.position
        for piece in tensors:
            self._write(piece.contiguous().flatten().view(torch.uint8).numpy().data)
            self._progress(f"{self.path.name}: {name}", self.position, self._total)
        if self.position - start != _size(type_):
            raise OSError(f"{name} gave {self.position - start} bytes, {_size(type_)} were expected: its file changed")
        return self.path.name, start, self.position - start

    def _write(self, content: memoryview | bytes) -> None:
        if self._stream is None:
            self._stream = self._stack.enter_context(self.path.open("wb"))
        self._digest.update(content)
        self.position += self._stream.write(content)

    def file(self, folder: Path) -> File:
        return File(self.path.relative_to(folder).as_posix(), self.position, self._digest.hexdigest())


def pieces(weight: Weight, size: int) -> Iterator[Tensor]:
    """The tensor in flat pieces of `size` elements in its own dtype; a piece is valid until the next is asked for."""
    if weight.source is None:
        yield from weight.load().contiguous().flatten().split(size)
        return
    left = weight.source.nbytes
    buffer = memoryview(bytearray(min(size * weight.dtype.itemsize, left)))
    with weight.source.path.open("rb", buffering=0) as stream:
        stream.seek(weight.source.offset)
        while left:
            piece = buffer[:left]
            filled = 0
            while filled < len(piece):
                count = stream.readinto(piece[filled:])
                if not count:
                    raise OSError(f"{weight.source.path} ends early: it changed while it was read")
                filled += count
            left -= filled
            yield torch.frombuffer(piece, dtype=weight.dtype)


def _encoded(use: Use, weight: Weight) -> Iterator[tuple[str, Iterable[Tensor]]]:
    """Every part in pieces, to be taken in order: `data` as it is made, then the rest, which that has gathered."""
    form, (*stacked, columns) = use.form, weight.shape
    assert form is not None
    rows = prod(stacked)
    step = max(1, PIECE // columns)
    rest: dict[str, list[Tensor]] = {part: [] for part in use.parts if part != DATA}

    def data() -> Iterator[Tensor]:
        turned = torch.empty(columns, rows, dtype=torch.uint8) if form.transposed else None
        start = 0
        for piece in pieces(weight, step * columns):
            encoded = form.encode(piece.view(-1, columns).float())
            for part, gathered in rest.items():
                gathered.append(_finite(use.weight, encoded[part], piece))
            end = start + len(encoded[DATA])
            if turned is None:
                yield encoded[DATA]
            else:
                turned[:, start:end] = encoded[DATA].T
            start = end
        if turned is not None:
            yield turned

    yield DATA, data()
    yield from rest.items()


def _finite(name: str, scales: Tensor, piece: Tensor) -> Tensor:
    if scales.is_floating_point() and not bool(torch.isfinite(scales).all()):
        largest = float(piece.abs().max())
        if not isfinite(largest):
            raise CheckpointError(f"{name} holds values that are not finite, which cannot be quantized")
        raise UnsupportedExport(f"{name} holds {largest:g}, too large for a scale in float16; export to f32 instead")
    return scales


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


def _link(source: Path, beside: Path, folder: Path) -> File:
    """A hard link to a checkpoint's file: ONNX Runtime opens no weights outside the graph's folder, as a symlink is."""
    path, target = beside / source.name, source.resolve()
    if not (path.exists() and path.samefile(target)):
        try:
            os.link(target, path)
        except OSError as error:
            raise InputError(
                f"{source} cannot be linked into {beside} ({error.strerror}): both must be on one file system that has "
                "hard links; use --weights copy"
            ) from None
    return describe(path, folder)


def _enter(model: onnx.ModelProto, name: str, type_: Type, place: Place) -> None:
    tensor = TensorProto(
        name=name,
        data_type=ELEMENTS[type_.dtype],
        dims=[size for size in type_.shape if isinstance(size, int)],
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in zip(("location", "offset", "length"), place, strict=True):
        tensor.external_data.add(key=key, value=str(value))
    model.graph.initializer.append(tensor)


def _size(type_: Type) -> int:
    return prod(size for size in type_.shape if isinstance(size, int)) * type_.dtype.itemsize
