"""The tensors of a GGUF file: llama.cpp's names, types and order of rows, converted piece by piece."""

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

PIECE = 2**21  # elements converted at a time
NUMBERS = {name: (number, block, nbytes) for number, (name, block, nbytes) in TYPES.items()}

# Small tables that llama.cpp reads in float32 only, besides norms, biases and everything else of one dimension.
FLOAT32 = ("position_embd.weight", "token_types.weight")


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor to be written: its shape in torch's order, ggml's type, and its bytes in pieces."""

    name: str
    shape: tuple[int, ...]
    type: str
    pieces: Callable[[], Iterator[NDArray[Any]]]

    @property
    def nbytes(self) -> int:
        _, block, nbytes = NUMBERS[self.type]
        return prod(self.shape) // block * nbytes


def entries(model: Model, gguf: Gguf, wanted: str) -> list[Entry]:
    """The extra tensors of the card, then the model's in its own order; tied ones appear once."""
    result = [_constant(name, values) for name, values in gguf.extra(model.config).items()]
    head_dim = model.signature.cache.head_dim if model.signature.cache else 0
    for key, weight in model.weights.items():
        name = rename(key, GGUF)
        if name is None:
            raise UnsupportedExport(f"{model.name}: llama.cpp has no tensor for {key}; add it to reference/names.py")
        kind = type_of(name, weight.shape, wanted)
        pairs = head_dim if gguf.interleaved_rope and is_rotary(key) else 0
        result.append(Entry(name, weight.shape, kind, _pieces(key, weight, kind, pairs)))
    return result


def type_of(name: str, shape: tuple[int, ...], wanted: str) -> str:
    """The type that llama.cpp's converter gives a tensor when the file is to be of type `wanted`."""
    if len(shape) < 2 or name.endswith("_norm.weight") or not name.endswith(".weight") or name in FLOAT32:
        return "F32"
    return "F16" if shape[-1] % NUMBERS[wanted][1] else wanted


def _constant(name: str, values: Any) -> Entry:
    import numpy as np

    array = np.array(values, np.float32)
    return Entry(name, array.shape, "F32", lambda: iter((array,)))


def _pieces(key: str, weight: Weight, kind: str, pairs: int) -> Callable[[], Iterator[NDArray[Any]]]:
    """The tensor in pieces of whole rows, each converted on its own; `pairs` is the head size of interleaved rows."""

    def pieces() -> Iterator[NDArray[Any]]:
        tensor = weight.load()
        rows = tensor.reshape(tensor.shape[0], -1)
        order = interleaved(len(rows), pairs) if pairs else None
        step = max(1, PIECE // rows.shape[1])
        for start in range(0, len(rows), step):
            piece = rows[start : start + step] if order is None else rows[order[start : start + step]]
            yield _convert(key, piece, kind)
            weight.release()  # pages that were read count as memory until they are dropped

    return pieces


def _convert(key: str, piece: torch.Tensor, kind: str) -> NDArray[Any]:
    """A piece (rows, columns) as the bytes of ggml's `kind`, rounded to nearest even from float32."""
    import torch

    if kind == "BF16":
        short = piece if piece.dtype == torch.bfloat16 else piece.float().to(torch.bfloat16)
        return short.contiguous().view(torch.int16).numpy()
    if kind == "F16":
        half = piece.float().to(torch.float16)
        if not torch.isfinite(half).all():
            largest = piece.float().abs().max().item()
            raise UnsupportedExport(f"{key} holds {largest:g}, which float16 cannot; take f32, bf16 or q8_0")
        return half.numpy()
    wide = piece.float().contiguous().numpy()
    if kind == "F32":
        return wide
    if not torch.isfinite(piece).all():
        raise CheckpointError(f"{key} holds values that are not finite, which cannot be quantized")
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    return quantize(wide, GGMLQuantizationType[kind])
