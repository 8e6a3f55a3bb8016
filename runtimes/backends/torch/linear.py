"""Linear layers whose weights lie in the layout of a kernel: bf16, 8 bits with 8-bit activations, 8 and 4 bits alone.

Each has a `weight` and a `bias` for what reads those of a linear layer: the layer itself and nothing, which the
attention of these sessions knows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoform.errors import BackendUnavailable
from isoform.runtimes.backends.torch.rounding import (
    GROUP,
    byte_rows,
    digit_base,
    double_rows,
    weight_groups,
    weight_rows,
    zero_point,
)
from isoform.runtimes.backends.torch.spread import by_rows


class PackedLinear(nn.Module):
    """x @ weight.T + bias, over a weight that is given once, when the layer is made."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.added = bias

    @property
    def weight(self) -> PackedLinear:
        return self

    @property
    def bias(self) -> None:
        return None

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x (..., K) -> (..., N), in x's dtype."""
        return self.rows(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)

    def rows(self, x: Tensor) -> Tensor:
        """Shapes: x (M, K) -> (M, N)."""
        raise NotImplementedError


class Bfloat16Linear(PackedLinear):
    """bf16 in oneDNN's own layout: half the time of the plain one for a row, a tenth less for many."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(torch.bfloat16), None)
        self._multiply = torch.ops.mkldnn._linear_pointwise.default

    def rows(self, x: Tensor) -> Tensor:
        y: Tensor = self._multiply(x, self._packed, self.added, "none", [], "")
        return y


class _ByteLinear(PackedLinear):
    """int8 weights with a scale per row of the matrix, in oneDNN's own layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        numbers, self._scales = weight_rows(weight)
        self._packed = torch.ops.onednn.qlinear_prepack(numbers, None)
        self._zeros = torch.zeros(self.out_features, dtype=torch.int64)
        self._zero = zero_point()
        self._kernel = torch.ops.onednn.qlinear_pointwise.default

    def _multiply(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Bytes (M, K) around the zero point -> their product in `dtype`, with the scales of the weights alone."""
        weights = self._packed, self._scales, self._zeros
        y: Tensor = self._kernel(x, 1.0, self._zero, *weights, None, 1.0, 0, dtype, "none", [], "")
        return y


class Int8Linear(_ByteLinear):
    """8-bit weights, and activations that are rounded to 8 bits by rows when they come."""

    def rows(self, x: Tensor) -> Tensor:
        numbers, scales = byte_rows(x)
        y = self._multiply(numbers, x.dtype)
        return y.mul_(scales) if self.added is None else torch.addcmul(self.added, y, scales)


class Int8WeightLinear(_ByteLinear):
    """8-bit weights under activations of 16 bits, in two digits: twice the rows of `Int8Linear` for each.

    Few rows wait for the weights alone, which are read once, and many are as fast as bf16. torch's own kernel,
    `_weight_int8pack_mm`, takes twice as long for a row of a large matrix, and 60 times for many.
    """

    def rows(self, x: Tensor) -> Tensor:
        numbers, scales = double_rows(x)
        high, low = self._multiply(numbers, torch.float32).chunk(2)
        y = low.add_(high, alpha=digit_base()).mul_(scales)
        return (y if self.added is None else y.add_(self.added)).to(x.dtype)


MANY = 96
"""Rows from which 4-bit weights are worth turning back to bf16: of 512 the product then takes half the time."""


class Int4WeightLinear(PackedLinear):
    """4-bit weights in groups of 32 under bf16 activations: few rows by torch's kernel, many by a product in bf16.

    The bf16 weights are made for one call and let go of, so that only four bits are held.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        numbers, self._scales = weight_groups(weight)
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers, 1)
        self._multiply = torch.ops.aten._weight_int4pack_mm_for_cpu.default

    def rows(self, x: Tensor) -> Tensor:
        if len(x) >= MANY and x.dtype == torch.bfloat16:
            block = packed_rows()
            if block and self.out_features % block == 0:
                return F.linear(x, unpack(self._packed, self._scales, block), self.added)
        y: Tensor = self._multiply(x.to(torch.bfloat16), self._packed, GROUP, self._scales).to(x.dtype)
        return y if self.added is None else y.add_(self.added)


def unpack(packed: Tensor, scales: Tensor, block: int) -> Tensor:
    """Packed weights of 4 bits as bf16 (N, K)."""
    from isoform.runtimes.backends.torch.kernels.nibbles import unpacked

    rows, columns = packed.shape[0], 2 * packed.shape[1]
    made = torch.empty((rows, columns), dtype=torch.bfloat16)
    source, steps, target = packed.data_ptr(), scales.data_ptr(), made.data_ptr()

    def some(first: int, count: int) -> None:
        unpacked(source, steps, first, count, block, rows, columns, target)

    by_rows(rows // block, rows * columns, some)
    return made


@cache
def packed_rows() -> int:
    """How many rows torch's layout of 4 bits interleaves on this CPU; 0 where it is none that `unpack` knows."""
    numbers = torch.randint(0, 16, (128, GROUP), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    scales = torch.tensor([1.0, 8.0], dtype=torch.bfloat16).expand(1, 128, 2).contiguous()
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers, 1)
    if packed.dtype != torch.uint8 or packed.shape != (128, GROUP // 2) or not packed.is_contiguous():
        return 0
    return next((block for block in (64, 32) if torch.equal(unpack(packed, scales, block), numbers.bfloat16())), 0)


def int4_or_int8(weight: Tensor, bias: Tensor | None) -> PackedLinear:
    """4 bits where the kernel takes a matrix of these sizes, else 8."""
    rows, columns = weight.shape
    fits = columns % GROUP == 0 and rows % 16 == 0
    return (Int4WeightLinear if fits else Int8WeightLinear)(weight, bias)


LAYERS: dict[str, Callable[[Tensor, Tensor | None], PackedLinear]] = {
    "bf16": Bfloat16Linear,
    "int4w": int4_or_int8,
    "int8": Int8Linear,
    "int8w": Int8WeightLinear,
}
"""How a form packs the matrix of a linear layer."""

HEADS = {**LAYERS, "int4w": Int8WeightLinear}
"""How it packs the one that gives the logits, whose rounding no later layer evens out."""


def check_kernels(form: str) -> None:
    """BackendUnavailable where the installed torch lacks a kernel of a form, or it cannot run on this CPU."""
    try:
        LAYERS[form](torch.ones(64, 64), None)(torch.ones(1, 64, dtype=torch.bfloat16))
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BackendUnavailable(
            f"torch {torch.__version__} cannot compute {form} on this CPU ({reason}); take f32 or bf16"
        ) from error
