"""The tensors of a GGUF file: llama.cpp's names, shapes and order of rows, converted piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from isoform.errors import CheckpointError, UnsupportedExport
from isoform.reference.gguf_file import TYPES, interleaved, is_rotary
from isoform.reference.names import GGUF, rename

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from isoform.reference.card import Gguf
    from isoform.reference.model import Model
    from isoform.reference.weights import Weight

PIECE = 2**20  # elements handed to a thread
CHUNK = 2**17  # elements converted at a time: few enough for the cache of a core
NUMBERS = {name: (number, block, nbytes) for number, (name, block, nbytes) in TYPES.items()}


@dataclass(frozen=True, slots=True)
class Piece:
    """Some whole rows of a tensor, of its matrix number `expert` where it is a stack: `load` gives (rows, columns)."""

    load: Callable[[], torch.Tensor]
    nbytes: int
    """As it is stored."""
    expert: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor to be written: its shape in torch's order, and its rows in pieces. `key` is what a user knows it by.

    `release` lets go of what was read so far.
    """

    name: str
    key: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[Piece]]
    release: Callable[[], None] = lambda: None


def nbytes(shape: tuple[int, ...], kind: str) -> int:
    """The size of a tensor in ggml's type `kind`."""
    _, block, size = NUMBERS[kind]
    return prod(shape) // block * size


def entries(model: Model, gguf: Gguf) -> list[Entry]:
    """The extra tensors of the card, then the model's in its own order; tied ones appear once."""
    result = [_constant(name, values) for name, values in gguf.extra(model.config).items()]
    head_dim = model.signature.cache.head_dim if model.signature.cache else 0
    for key, weight in model.weights.items():
        name = rename(key, GGUF)
        if name is None:
            raise UnsupportedExport(f"{model.name}: llama.cpp has no tensor for {key}; add it to reference/names.py")
        pairs = head_dim if gguf.interleaved_rope and is_rotary(key) else 0
        result.append(Entry(name, key, weight.shape, _pieces(weight, pairs), weight.release))
    return result


def _constant(name: str, values: Any) -> Entry:
    import torch

    tensor = torch.tensor(values, dtype=torch.float32)
    return Entry(name, name, tuple(tensor.shape), lambda: iter((Piece(lambda: tensor.view(1, -1), 0),)))


def _pieces(weight: Weight, pairs: int) -> Callable[[], Iterator[Piece]]:
    """The tensor in pieces of whole rows; `pairs` is the head size of rows that llama.cpp wants interleaved."""

    def pieces() -> Iterator[Piece]:
        tensor = weight.load()
        matrices = tensor.reshape(-1, *tensor.shape[-2:]) if tensor.dim() > 1 else tensor.view(1, -1, 1)
        width = matrices.shape[2]
        for expert, rows in enumerate(matrices):
            order = interleaved(len(rows), pairs) if pairs else None
            step = max(1, PIECE // width)
            for start in range(0, len(rows), step):
                yield Piece(_part(rows, order, start, start + step), step * width * rows.itemsize, expert)

    return pieces


def _part(rows: torch.Tensor, order: torch.Tensor | None, start: int, end: int) -> Callable[[], torch.Tensor]:
    return (lambda: rows[start:end]) if order is None else (lambda: rows[order[start:end]])


class Room:
    """Memory that is used again: fresh pages cost more than filling them. Safe to share between threads."""

    def __init__(self) -> None:
        self._free: list[NDArray[np.uint8]] = []
        self._all: set[int] = set()

    def take(self, size: int) -> NDArray[np.uint8]:
        """Some `size` bytes."""
        import numpy as np

        while self._free:
            try:
                block = self._free.pop()
            except IndexError:
                break
            if block.nbytes >= size:
                return block[:size]
            self._all.discard(id(block))
        block = np.empty(max(size, 4 * CHUNK), np.uint8)
        self._all.add(id(block))
        return block[:size]

    def give(self, part: NDArray[np.uint8]) -> None:
        """Take back what `take` gave; anything else is let be."""
        if id(part.base) in self._all:
            self._free.append(part.base)  # type: ignore[arg-type]


def convert(
    key: str, rows: torch.Tensor, kinds: Sequence[str], importance: NDArray[np.float32] | None, room: Room
) -> dict[str, NDArray[np.uint8]]:
    """Rows (n, columns) as the bytes of each of ggml's types, rounded to nearest even from float32.

    `importance` (columns,) weighs the columns where a type has a choice. Rows that are stored in a type already are not
    copied; the other results are memory of `room`.
    """
    import numpy as np
    import torch

    from isoform.exporters.gguf.quantize import kernel

    floats = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    count, columns = rows.shape
    sizes = {kind: nbytes((1, columns), kind) for kind in kinds}
    made: dict[str, NDArray[np.uint8]] = {}
    if rows.dtype == torch.float64:
        rows = rows.float()
    for kind in (kind for kind in kinds if kind in floats):
        if floats[kind] == rows.dtype:
            made[kind] = rows.contiguous().view(-1).view(torch.uint8).numpy()
            continue
        made[kind] = room.take(count * sizes[kind])
        narrow = torch.from_numpy(made[kind]).view(floats[kind]).view(rows.shape)
        narrow.copy_(rows)
        if kind == "F16" and not _finite(narrow):
            largest = rows.float().abs().max().item()
            raise UnsupportedExport(f"{key} holds {largest:g}, which float16 cannot; take f32, bf16 or q8_0")
    quantized = [kind for kind in kinds if kind not in floats]
    if not quantized:
        return made
    made |= {kind: room.take(count * sizes[kind]) for kind in quantized}
    step = max(1, CHUNK // columns)
    scratch = room.take(4 * columns * min(step, count))
    for start in range(0, count, step):
        chunk = rows[start : start + step]
        wide = scratch[: 4 * chunk.numel()].view(np.float32)  # stays in the cache while every type reads it
        torch.from_numpy(wide).view(chunk.shape).copy_(chunk)
        for kind in quantized:
            out = made[kind][start * sizes[kind] : (start + len(chunk)) * sizes[kind]]
            if not kernel(kind)(wide, out, importance):
                raise CheckpointError(f"{key} holds values that are not finite, which cannot be quantized; mend it")
    room.give(scratch)
    return made


def _finite(tensor: torch.Tensor) -> bool:
    """Whether no value is infinite or NaN; both show in the extremes."""
    import torch

    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))
