"""How a weight lies in the weight file: as it is, in blocks of few bits, or one byte per value.

A form turns rows of a matrix into named parts (`data`, `scales`, `zeros`), each an initializer of the graph. Symmetric
blocks of 32 are ggml's: the same integers and the same float16 scales as in a GGUF file of type q4_0 or q8_0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from isoform.exporters.tracing import Type

DATA, SCALES, ZEROS = "data", "scales", "zeros"


class Form(Protocol):
    """`transposed` forms hold `data` as (columns, rows): what `encode` gives by rows is turned."""

    @property
    def transposed(self) -> bool: ...

    def types(self, rows: int, columns: int) -> Mapping[str, Type]:
        """The parts of a matrix of this size, in the order of the file; `data` comes first."""
        ...

    def encode(self, rows: Tensor) -> Mapping[str, Tensor]:
        """The parts of some rows (float32), each with a row per row."""
        ...


@dataclass(frozen=True, slots=True)
class Blocks:
    """Integers of 4 or 8 bits with a scale for every `size` values of a row, as MatMulNBits takes them.

    value = (integer - zero) * scale; the zero is half the range, or with `asymmetric` one per block. `scale` is the
    dtype of the scales; those of symmetric blocks are rounded to float16 first, as ggml does.
    """

    bits: int
    size: int = 32
    asymmetric: bool = False
    scale: torch.dtype = torch.float32
    transposed: bool = False

    def types(self, rows: int, columns: int) -> dict[str, Type]:
        count = columns // self.size
        result = {
            DATA: Type(torch.uint8, (rows, count, self.size * self.bits // 8)),
            SCALES: Type(self.scale, (rows, count)),
        }
        if self.asymmetric:
            result[ZEROS] = Type(torch.uint8, (rows, -(-count * self.bits // 8)))
        return result

    def encode(self, rows: Tensor) -> dict[str, Tensor]:
        blocks = rows.unflatten(-1, (-1, self.size))
        if not self.asymmetric:
            integers, scales = ggml_q4(blocks) if self.bits == 4 else ggml_q8(blocks)
            return {DATA: self._pack(integers), SCALES: scales.to(torch.float16).to(self.scale)}
        integers, scales, zeros = shifted(blocks, self.bits, self.scale)
        return {DATA: self._pack(integers), SCALES: scales, ZEROS: self._pack(zeros)}

    def _pack(self, integers: Tensor) -> Tensor:
        """Two 4-bit integers to a byte, the first in the low half; an odd row ends with half a byte."""
        if self.bits == 8:
            return integers
        if integers.shape[-1] % 2:
            integers = torch.nn.functional.pad(integers, (0, 1))
        return integers[..., 0::2] | integers[..., 1::2] << 4


@dataclass(frozen=True, slots=True)
class Channels:
    """One byte per value and one scale per row of the matrix, turned to (in, out) as MatMulInteger takes it.

    value = (byte - 128) * scale. Unsigned, because on x86 without VNNI a signed product of bytes may saturate.
    """

    transposed: bool = True

    def types(self, rows: int, columns: int) -> dict[str, Type]:
        return {DATA: Type(torch.uint8, (columns, rows)), SCALES: Type(torch.float32, (rows,))}

    def encode(self, rows: Tensor) -> dict[str, Tensor]:
        integers, scales = ggml_q8(rows)
        return {DATA: integers, SCALES: scales}


def ggml_q4(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """ggml's q4_0 (quantize_row_q4_0_ref): the largest value becomes -8, the zero is 8.

    Shapes: float32 (..., size) -> integers uint8 (..., size), scales float32 (...), before their rounding to float16.
    """
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))  # the first of several, with its sign
    scale = largest / -8
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    integers = (blocks * inverse).add_(8.5).to(torch.uint8).clamp_(max=15)
    return integers, scale.squeeze(-1)


def ggml_q8(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """ggml's q8_0 (quantize_row_q8_0_ref): 127 steps to each side, halves away from zero, stored with 128 added.

    Shapes: float32 (..., size) -> integers uint8 (..., size), scales float32 (...), before their rounding to float16.
    """
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    steps = blocks * inverse
    whole = steps.trunc()
    whole += (steps - whole).mul_(2).trunc_()
    return whole.add_(128).to(torch.uint8), scale.squeeze(-1)


def shifted(blocks: Tensor, bits: int, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The range of each block, widened to hold 0, in 2**bits - 1 steps.

    Shapes: float32 (..., size) -> integers uint8 (..., size), scales (...) in `scale_dtype`, zeros uint8 (...).
    """
    steps = 2**bits - 1
    low, high = blocks.amin(-1, keepdim=True).clamp_(max=0), blocks.amax(-1, keepdim=True).clamp_(min=0)
    scale = ((high - low) / steps).to(scale_dtype)
    inverse = torch.where(scale == 0, 0.0, 1 / scale.float())
    zero = (-low * inverse).round_().clamp_(0, steps)
    integers = (blocks * inverse).round_().add_(zero).clamp_(0, steps)
    return integers.to(torch.uint8), scale.squeeze(-1), zero.to(torch.uint8).squeeze(-1)
