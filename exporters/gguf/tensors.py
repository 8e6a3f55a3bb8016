"""The tensors of a GGUF file: llama.cpp's names, shapes and order of rows, converted piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from isoform.errors import CheckpointError, UnsupportedExport
from isoform.reference.gguf_file import TYPES, interleaved, is_rotary
from isoform.reference.names import GGUF, rename

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from isoform.reference.card import Gguf
    from isoform.reference.model import Model
    from isoform.reference.weights import Weight

PIECE = 2**20  # elements converted at a time
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


def convert(key: str, piece: torch.Tensor, kind: str, importance: NDArray[Any] | None = None) -> NDArray[Any]:
    """Rows (n, columns) as the bytes of ggml's `kind`, rounded to nearest even from float32.

    `importance` (columns,) float32 weighs the columns where the type has a choice.
    """
    import torch

    if kind == "F32":
        return piece.float().contiguous().numpy()
    if kind == "BF16":
        short = piece if piece.dtype == torch.bfloat16 else piece.float().to(torch.bfloat16)
        return short.contiguous().view(torch.int16).numpy()
    if kind == "F16":
        half = piece.float().to(torch.float16)
        if not finite(half):
            largest = piece.float().abs().max().item()
            raise UnsupportedExport(f"{key} holds {largest:g}, which float16 cannot; take f32, bf16 or q8_0")
        return half.numpy()
    if not finite(piece):
        raise CheckpointError(f"{key} holds values that are not finite, which cannot be quantized; mend the checkpoint")
    from isoform.exporters.gguf.ggml import quantize

    return quantize(piece.float().contiguous().numpy(), kind, imatrix=importance)


def finite(tensor: torch.Tensor) -> bool:
    """Whether no value is infinite or NaN; both show in the extremes."""
    import torch

    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))
