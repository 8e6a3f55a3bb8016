"""Floats to integers: weights by rows or groups when a session opens, activations by rows when they come.

Activations are unsigned around a zero point, since that is what the kernels of 8 bits take at full speed.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from isoform.errors import BackendUnavailable
from isoform.runtimes.backends.torch.spread import by_rows

LEVELS = 127  # of a weight on either side of zero
TINY = 1e-30  # the least scale, so that a row of zeros divides by something
GROUP = 32  # weights of 4 bits that share a scale and a zero


@cache
def zero_point() -> int:
    """The byte that stands for zero in activations: 128, or 64 on a CPU that adds two products in 16 bits.

    Without VNNI such a sum of full bytes saturates and the product is wrong, so that activations keep 7 bits there.
    """
    full = torch.full((1, 64), 255, dtype=torch.uint8)
    weight = torch.full((64, 64), LEVELS, dtype=torch.int8)
    try:
        packed = torch.ops.onednn.qlinear_prepack(weight, None)
        ones, zeros = torch.ones(64), torch.zeros(64, dtype=torch.int64)
        y = torch.ops.onednn.qlinear_pointwise(
            full, 1.0, 128, packed, ones, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
    except (AttributeError, RuntimeError) as error:
        raise BackendUnavailable(
            f"torch {torch.__version__} has no onednn.qlinear_pointwise here ({_first(error)}); take f32 or bf16"
        ) from error
    return 128 if bool((y == 127 * LEVELS * 64).all()) else 64


def _first(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]


def weight_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix (N, K) as int8 of -127 to 127 and the scale of each row, float32 (N,)."""
    wide = weight.float()
    scales = (wide.abs().amax(1) / LEVELS).clamp(min=TINY)
    return torch.round(wide / scales.unsqueeze(1)).to(torch.int8), scales


def byte_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations (M, K) as bytes around the zero point and the scale of each row (M, 1), in x's dtype.

    The scale is rounded to that dtype before anything is divided by it.
    """
    zero = zero_point()
    if x.dtype == torch.bfloat16:
        return _bytes_of_bfloat16(x if x.stride(1) == 1 else x.contiguous(), zero)
    peaks = x.abs().amax(-1, keepdim=True)
    # Half a unit of the dtype's last place more, so that rounding the scale leaves no value beyond the last level.
    scales = (peaks * ((1 + torch.finfo(x.dtype).eps) / (zero - 1))).clamp_(min=TINY).to(x.dtype)
    return torch.addcmul(_middle(zero), x, scales.float().reciprocal()).to(torch.uint8), scales


def _bytes_of_bfloat16(x: Tensor, zero: int) -> tuple[Tensor, Tensor]:
    from isoform.runtimes.backends.torch.kernels.rows import bytes_of_rows

    rows, columns = x.shape
    numbers = torch.empty((rows, columns), dtype=torch.uint8)
    scales = torch.empty((rows, 1), dtype=torch.bfloat16)
    source, stride, made, steps = x.data_ptr(), x.stride(0), numbers.data_ptr(), scales.data_ptr()

    def some(n: int, count: int) -> None:
        bytes_of_rows(source + 2 * n * stride, stride, count, columns, zero, made + n * columns, steps + 2 * n)

    by_rows(rows, rows * columns, some)
    return numbers, scales


@cache
def _middle(zero: int) -> Tensor:
    """What turns the cut to an integer into rounding, added with the zero point."""
    return torch.tensor(zero + 0.5)


def double_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations (M, K) in two digits, (2 M, K) bytes around the zero point with the high ones first, and scales.

    A value is scale * (`digit_base()` * high + low): as exact as an integer of 16 bits, or of 14 with the smaller zero.
    """
    zero, base = zero_point(), digit_base()
    if x.dtype == torch.bfloat16:
        return _digits_of_bfloat16(x if x.stride(1) == 1 else x.contiguous(), zero)
    wide = x.float()
    peaks = wide.abs().amax(-1, keepdim=True)
    scales = (peaks / ((zero - 1) * (base + 1))).clamp_(min=TINY)
    numbers = torch.round(wide / scales)
    high = torch.round(numbers / base)
    low = numbers - high * base
    return torch.cat((high, low)).add_(zero).to(torch.uint8), scales


def _digits_of_bfloat16(x: Tensor, zero: int) -> tuple[Tensor, Tensor]:
    from isoform.runtimes.backends.torch.kernels.rows import digits_of_rows

    rows, columns = x.shape
    numbers = torch.empty((2 * rows, columns), dtype=torch.uint8)
    scales = torch.empty((rows, 1), dtype=torch.float32)
    source, stride, high, steps = x.data_ptr(), x.stride(0), numbers.data_ptr(), scales.data_ptr()
    low = high + rows * columns

    def some(n: int, count: int) -> None:
        made = high + n * columns, low + n * columns
        digits_of_rows(source + 2 * n * stride, stride, count, columns, zero, *made, steps + 4 * n)

    by_rows(rows, rows * columns, some)
    return numbers, scales


def digit_base() -> int:
    """How many values a digit of `double_rows` has."""
    return 2 * zero_point() - 1


def weight_groups(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix (N, K) in groups of its rows: int32 of 0 to 15, and a scale and a middle of each, bf16 (K/GROUP, N, 2).

    A weight is scale * (number - 8) + middle.
    """
    rows = weight.float().unflatten(1, (-1, GROUP))
    low, high = rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True)
    scales = ((high - low) / 15).clamp(min=TINY).to(torch.bfloat16)
    middles = (low + 8 * scales.float()).to(torch.bfloat16)
    numbers = torch.round((rows - middles.float()) / scales.float() + 8).clamp(0, 15).to(torch.int32).flatten(1)
    return numbers, torch.cat((scales, middles), -1).transpose(0, 1).contiguous()
