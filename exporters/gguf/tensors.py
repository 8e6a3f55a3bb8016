"""The tensors of a GGUF file: llama.cpp's names, shapes and order of rows, read piece by piece."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import UnsupportedExport
from isoform.reference.checkpoints.checkpoint import ITEM_BYTES
from isoform.reference.checkpoints.gguf_file import is_rotary
from isoform.reference.names import rename

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from isoform.reference.card import Gguf
    from isoform.reference.checkpoints.checkpoint import TensorInfo
    from isoform.reference.model import Model
    from isoform.reference.weights import Weight

PIECE = 2**20  # elements handed to a thread


@dataclass(frozen=True, slots=True)
class Piece:
    """Some whole rows of a tensor, of its matrix number `expert` where it is a stack.

    `load` gives (rows, columns) of float32, float16 or float64, or of uint16, which is bfloat16 in its bits.
    """

    load: Callable[[], NDArray[Any]]
    nbytes: int
    """As it is stored."""
    expert: int = 0


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor to be written: its shape in torch's order, and its rows in pieces. `key` is what a user knows it by.

    `release` lets go of what was read so far.
    """

    name: str
    key: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[Piece]]
    release: Callable[[], None] = lambda: None


def entries(model: Model, gguf: Gguf) -> list[GgufTensor]:
    """The extra tensors of the card, then the model's in its own order; tied ones appear once."""
    result = [_constant(name, values) for name, values in gguf.extra(model.config).items()]
    head_dim = head_size(model) if gguf.interleaved_rope else 0
    files = Files()
    for key, weight in written(model, gguf).items():
        name = rename(key, gguf.tensors)
        if name is None:
            raise UnsupportedExport(f"{model.name}: llama.cpp has no tensor for {key}; add it to reference/names.py")
        pairs = head_dim if is_rotary(key) else 0
        rows, release = _rows(weight, files)
        pieces = partial(pieces_of, weight.shape, ITEM_BYTES[weight.stored], rows, pairs)
        result.append(GgufTensor(name, key, weight.shape, pieces, release))
    return result


def written(model: Model, gguf: Gguf) -> dict[str, Weight]:
    """The model's weights by canonical name as the file has them: those that the card scales as the product."""
    scales = gguf.scales(model.config)
    tied = {name: model.weights[source] for name, source in model.tied.items() if name in scales}
    found = {**model.weights, **tied}
    return found | {name: _scaled(found[name], scale) for name, scale in scales.items()}


def _scaled(weight: Weight, scale: float) -> Weight:
    """A weight times a number, in float32."""

    def load() -> Tensor:
        return weight.load().float() * scale

    def rows(start: int, stop: int) -> Tensor:
        return weight.rows(start, stop).float() * scale

    return replace(weight, stored="F32", load=load, rows=rows, source=None, folded=None)


def head_size(model: Model) -> int:
    """How many channels a head of the attention has. Raises UnsupportedExport where layers differ in it."""
    sizes = {state.axes[-1] for state in model.signature.states}
    if len(sizes) != 1 or not isinstance(size := sizes.pop(), int):
        raise UnsupportedExport(f"{model.name}: layers differ in the size of their heads, whose rows GGUF interleaves")
    return size


def _constant(name: str, values: Any) -> GgufTensor:
    import numpy as np

    array = np.array(values, np.float32)
    return GgufTensor(name, name, array.shape, lambda: iter((Piece(lambda: array.reshape(1, -1), 0),)))


Rows = Callable[[int, int, int], "NDArray[Any]"]
"""Number of the matrix in a stack, start and stop of its rows -> them."""


def pieces_of(shape: tuple[int, ...], item_bytes: int, rows: Rows, pairs: int = 0) -> Iterator[Piece]:
    """The tensor in pieces of whole rows; `pairs` is the head size of rows that llama.cpp wants interleaved."""
    count, width = _matrix(shape)
    experts = prod(shape) // max(1, count * width)
    step = max(1, PIECE // width)
    if pairs:  # whole heads, since rows change places within each
        step = max(pairs, step // pairs * pairs)
    for expert in range(experts):
        for start in range(0, count, step):
            stop = min(start + step, count)
            load = partial(rows, expert, start, stop)
            yield Piece(partial(_paired, load, pairs) if pairs else load, (stop - start) * width * item_bytes, expert)


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a tensor's matrices; a vector is one row."""
    return (shape[-2], shape[-1]) if len(shape) > 1 else (1, prod(shape))


def _paired(load: Callable[[], NDArray[Any]], pairs: int) -> NDArray[Any]:
    """The rows of whole heads, each with its two halves side by side; a bias is a single row of one value each."""
    rows = load()
    halves = rows.reshape(-1, 2, pairs // 2, rows.shape[1] if len(rows) > 1 else 1)
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _rows(weight: Weight, files: Files) -> tuple[Rows, Callable[[], None]]:
    """How to get rows of a weight, and how to let go of them: out of its file where that holds them, else by torch."""
    if weight.source is not None:
        info = weight.source
        return partial(files.rows, info), partial(files.release, info)
    if weight.folded is not None:
        info, amount = weight.folded
        return partial(files.folded, info, amount), partial(files.release, info)
    return partial(_by_torch, weight), weight.release


def _by_torch(weight: Weight, expert: int, start: int, stop: int) -> NDArray[Any]:
    """Rows of what must be unpacked first: dequantized, unpickled, or stored in another order."""
    import torch

    if len(weight.shape) > 2:
        count, width = _matrix(weight.shape)
        inner = prod(weight.shape[1:-2])
        stacked = weight.rows(expert // inner, expert // inner + 1)
        tensor = stacked.reshape(-1, count, width)[expert % inner, start:stop]
    else:
        tensor = weight.rows(start, stop) if len(weight.shape) == 2 else weight.load().reshape(1, -1)
    tensor = tensor.contiguous()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


class Files:
    """Memory maps of safetensors and GGUF files, each opened when it is first read."""

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}

    def rows(self, info: TensorInfo, expert: int, start: int, stop: int) -> NDArray[Any]:
        """Rows of a tensor as they are stored, in a view where that is possible."""
        import numpy as np

        count, width = _matrix(info.shape)
        dtype = np.dtype({"BF16": "<u2", "F16": "<f2", "F32": "<f4", "F64": "<f8"}[info.dtype])
        first = info.offset + (expert * count + start) * width * dtype.itemsize
        flat = np.frombuffer(self._map(info.path), dtype, (stop - start) * width, first)
        return (flat if flat.flags.aligned else flat.copy()).reshape(stop - start, width)

    def folded(self, info: TensorInfo, amount: float, expert: int, start: int, stop: int) -> NDArray[Any]:
        """Rows of a tensor that is stored less an amount, in float32."""
        import numpy as np

        from isoform.exporters.gguf.floats import widen

        stored = self.rows(info, expert, start, stop)
        wide = np.empty(stored.shape, np.float32)
        widen(stored.reshape(-1), wide.reshape(-1))
        return wide + np.float32(amount)

    def release(self, info: TensorInfo) -> None:
        """Drop the pages of a tensor, which count as memory once they were read."""
        if info.path not in self._maps or not hasattr(mmap, "MADV_DONTNEED"):
            return
        start = info.offset // mmap.PAGESIZE * mmap.PAGESIZE
        self._maps[info.path].madvise(mmap.MADV_DONTNEED, start, info.offset + info.nbytes - start)

    def _map(self, path: Path) -> mmap.mmap:
        if path not in self._maps:
            with path.open("rb") as stream:
                self._maps[path] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[path]
