"""The semantic operations of a packed pass on the CPU: one kernel each, in bf16 and in the shapes that it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from isoform.reference.modules import ops
from isoform.reference.modules.layers import ACTIVATIONS, Activation
from isoform.runtimes.backends.torch.spread import by_rows

PLAIN: Mapping[str, Callable[..., Any]] = ops.OPS


def fast_operations(attention: Callable[..., Any]) -> Mapping[str, Callable[..., Any]]:
    """For `ops.lowered_by`, with this attention."""
    return {**PLAIN, "attention": attention, "rms_norm": _rms_norm, "rotary": _rotary}


def rows_of(x: Tensor) -> Tensor:
    """(..., C) -> (M, C), the channels of a row beside each other."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if flat.stride(1) == 1 else flat.contiguous()


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    from isoform.runtimes.backends.torch.kernels.rows import norm_of_rows

    if not x.dtype == weight.dtype == torch.bfloat16:
        plain: Tensor = PLAIN["rms_norm"](x, weight, eps)
        return plain
    flat, made = rows_of(x), torch.empty(x.shape, dtype=x.dtype)
    rows, columns = flat.shape
    source, stride, by, target = flat.data_ptr(), flat.stride(0), weight.data_ptr(), made.data_ptr()

    def some(n: int, count: int) -> None:
        norm_of_rows(source + 2 * n * stride, stride, count, columns, by, eps, target + 2 * n * columns)

    by_rows(rows, rows * columns, some)
    return made


def _rotary(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    from isoform.runtimes.backends.torch.kernels.rows import rotated_rows

    pairs = cos.shape[-1]
    whole = x.shape[-1] == 2 * pairs * heads and cos.shape[1] == x.shape[1] and cos.shape == sin.shape
    if not (whole and x.dtype == cos.dtype == torch.bfloat16):
        plain: Tensor = PLAIN["rotary"](x, cos, sin, heads)
        return plain
    flat, made = rows_of(x), torch.empty(x.shape, dtype=x.dtype)
    cos, sin = cos.contiguous(), sin.contiguous()
    every = cos.shape[0] * cos.shape[1]
    angles = cos.data_ptr(), sin.data_ptr(), every
    rotated_rows(flat.data_ptr(), flat.stride(0), len(flat), heads, pairs, *angles, made.data_ptr())
    return made


CURVES: dict[Activation, tuple[float, float]] = {
    ACTIVATIONS["silu"]: (1.0, 0.0),
    ACTIVATIONS["quick_gelu"]: (1.702, 0.0),
    ACTIVATIONS["gelu_new"]: (1.5957691216057308, 0.07135481282553),
    ACTIVATIONS["gelu_pytorch_tanh"]: (1.5957691216057308, 0.07135481282553),
}
"""Activations that are x times a sigmoid of a x + b x^3: their a and b."""


def gated(both: Tensor, curve: tuple[float, float]) -> Tensor:
    """An activation of the first half of the channels times the second half: bf16 (..., 2 C) -> (..., C)."""
    from isoform.runtimes.backends.torch.kernels.rows import gated_rows

    flat, columns = rows_of(both), both.shape[-1] // 2
    made = torch.empty((*both.shape[:-1], columns), dtype=both.dtype)
    rows, source, stride, target = len(flat), flat.data_ptr(), flat.stride(0), made.data_ptr()

    def some(n: int, count: int) -> None:
        gated_rows(source + 2 * n * stride, stride, count, columns, *curve, target + 2 * n * columns)

    by_rows(rows, rows * columns, some)
    return made
