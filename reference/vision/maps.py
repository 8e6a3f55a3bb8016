"""Maps (B, C, H, W): a convolution with a group norm, and the positions of their cells as sines and cosines."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from isoform.reference.modules.layers import Embedding
from isoform.reference.vision.convolutions import Conv

LEARNED = 50  # rows, and columns, that learned positions have


class ConvNorm(nn.Module):
    """A convolution and a group norm over its channels: (B, C, H, W) -> (B, `out`, H / stride, W / stride)."""

    def __init__(self, inner: int, out: int, size: int, groups: int, bias: bool, stride: int = 1) -> None:
        super().__init__()
        self.conv = Conv(inner, out, size, stride, size // 2, bias=bias)
        self.norm = nn.GroupNorm(groups, out)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        # The module itself refuses a map of one cell.
        return torch.group_norm(self.conv(x), norm.num_groups, norm.weight, norm.bias, norm.eps)


def sequence(x: Tensor) -> Tensor:
    """The cells of a map, row by row: (B, C, H, W) -> (B, H * W, C)."""
    return x.flatten(2).transpose(1, 2)


def sine_positions(like: Tensor, dim: int) -> Tensor:
    """Positions of a map's cells, row by row, half the channels for the row and half for the column.

    Rows and columns count from 1 and are scaled to a turn (Carion et al. 2020, https://arxiv.org/abs/2005.12872). In
    float32, then in the dtype of `like`. Shapes: like (B, C, H, W) -> (1, H * W, dim).
    """
    half = dim // 2
    powers = torch.arange(half // 2, device=like.device, dtype=torch.float32) * (2 / half)
    lengths = 10000.0**powers
    axes = []
    for count in like.shape[2:]:
        places = torch.arange(count, device=like.device, dtype=torch.float32) + 1
        turns = places / (places[-1:] + 1e-6) * (2 * math.pi)
        angles = turns.unsqueeze(1) / lengths
        axes.append(torch.stack((angles.sin(), angles.cos()), -1).flatten(1))
    rows, columns = like.shape[2], like.shape[3]
    row, column = axes[0].unsqueeze(1).expand(-1, columns, -1), axes[1].unsqueeze(0).expand(rows, -1, -1)
    return torch.cat((row, column), -1).flatten(0, 1).unsqueeze(0).to(like.dtype)


def masked_sine_positions(real: Tensor, dim: int, before: float = 0.0) -> Tensor:
    """The same of maps that are partly padding, 0 in `real`: rows and columns count what is none.

    `before`: how much less than the count a place is, half a cell for its middle.
    In float32 or wider, then in the dtype of `real`. Shapes: real (B, H, W) -> (B, H * W, dim).
    """
    wide = torch.promote_types(real.dtype, torch.float32)
    half = dim // 2
    powers = torch.arange(half // 2, device=real.device).to(wide) * (2 / half)
    lengths = 10000.0**powers
    axes = []
    rows, columns = real.to(wide).cumsum(1), real.to(wide).cumsum(2)
    for places, last in ((rows, rows[:, -1:]), (columns, columns[:, :, -1:])):
        turns = (places - before) / (last + 1e-6) * (2 * math.pi)
        angles = turns.unsqueeze(-1) / lengths
        axes.append(torch.stack((angles.sin(), angles.cos()), -1).flatten(3))
    return torch.cat(axes, -1).flatten(1, 2).to(real.dtype)


class LearnedPositions(nn.Module):
    """Positions of the cells of a map of at most 50 rows and columns: of the column, then of the row."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.rows, self.columns = Embedding(LEARNED, dim // 2), Embedding(LEARNED, dim // 2)

    def forward(self, rows: Any, columns: Any) -> Tensor:
        """-> (1, rows * columns, C)."""
        across = self.columns.weight[:columns].unsqueeze(0).expand(rows, -1, -1)
        down = self.rows.weight[:rows].unsqueeze(1).expand(-1, columns, -1)
        return torch.cat((across, down), -1).flatten(0, 1).unsqueeze(0)
