"""The semantic operations of a bf16 pass on the CPU: one kernel each, where the shapes are those that it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from isoform.reference.modules import ops

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
    norm_of_rows(flat.data_ptr(), flat.stride(0), rows, columns, weight.data_ptr(), eps, made.data_ptr())
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
