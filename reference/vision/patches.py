"""Pictures as sequences: patches, their positions, and the pre-norm layer that the vision transformers share.

Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from isoform.errors import CheckpointError
from isoform.reference.modules.attention import Attention, Heads
from isoform.reference.modules.layers import MLP, GatedMLP, Linear, head_size
from isoform.signature import BATCH, HEIGHT, WIDTH, Axis, Port

SEQUENCE = "image_sequence_length"
"""The axis of a picture's tokens where its size is free."""


def pair(name: str, value: int | tuple[int, ...]) -> tuple[int, int]:
    """config.json's sizes are one number for a square, or height and width."""
    size = (value, value) if isinstance(value, int) else value
    if len(size) != 2 or min(size) < 1:
        raise CheckpointError(f"config.json: {name} is {value}, which is no size; give one number or two")
    return size[0], size[1]


def grid(image_size: int | tuple[int, ...], patch_size: int | tuple[int, ...]) -> tuple[int, int]:
    """How many patches a picture has, down and across."""
    (height, width), (down, across) = pair("image_size", image_size), pair("patch_size", patch_size)
    if height < down or width < across:
        raise CheckpointError(f"config.json: a picture of {image_size} holds no patch of {patch_size}")
    return height // down, width // across


def pixels(channels: int, image_size: int | tuple[int, ...] | None = None, batch: str = BATCH) -> Port:
    """The port that takes pictures, of a fixed size or of any."""
    size: tuple[Axis, ...] = (HEIGHT, WIDTH) if image_size is None else pair("image_size", image_size)
    return Port("pixel_values", "float", (batch, channels, *size))


def units(patch_size: int | tuple[int, ...]) -> Mapping[str, int]:
    """For `Signature.units`: one more row or column of patches."""
    height, width = pair("patch_size", patch_size)
    return {HEIGHT: height, WIDTH: width}


def layers_before(state: int, layers: int) -> int:
    """How many of so many layers make a state: 0 is what goes into the first, -1 the last's, as the Hub counts them.

    Raises CheckpointError for one that is not there.
    """
    count = state if state >= 0 else layers + 1 + state
    if not 0 <= count <= layers:
        raise CheckpointError(f"config.json: the state {state} of a tower of {layers} layers is asked for")
    return count


def left_out(state: int, layers: int, *after: str) -> tuple[str, ...]:
    """For `Task.carried`: the modules that a tower up to a state does not have, its later layers and those `after`."""
    return (*(f"layers.{n}" for n in range(layers_before(state, layers), layers)), *after)


class PatchEmbed(nn.Conv2d):
    """Pixels (B, channels, H, W) to patches (B, rows * columns, C); what is left over at the edges is not seen."""

    def __init__(self, channels: int, dim: int, size: int | tuple[int, ...], bias: bool = True) -> None:
        size = pair("patch_size", size)
        super().__init__(channels, dim, size, size, bias=bias)

    def reset_parameters(self) -> None:
        """The weights come from a checkpoint."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten(2).transpose(1, 2)


class GatedUp(nn.Module):
    """`layers.GatedMLP` with SiLU, whose gate and up projections are one matrix as the checkpoint has it."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_up, self.gate_down = Linear(dim, 2 * hidden), Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).unflatten(-1, (2, -1)).unbind(-2)
        y: Tensor = self.gate_down(nn.functional.silu(gate) * up)
        return y


class Layer(nn.Module):
    """x + scale * attention(norm(x)), then x + scale * mlp(norm(x)); `scaled`: the scales are there (LayerScale).

    Touvron et al. 2021, https://arxiv.org/abs/2103.17239.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp: MLP | GatedMLP | GatedUp,
        eps: float,
        *,
        bias: bool = True,
        k_bias: bool | None = None,
        scaled: bool = False,
    ) -> None:
        super().__init__()
        self.attn_norm = nn.LayerNorm(dim, eps)
        size = Heads(heads, heads, head_size(dim, heads))
        self.attn = Attention(dim, size, bias=bias, k_bias=k_bias, out_bias=True)
        self.mlp_norm = nn.LayerNorm(dim, eps)
        self.mlp = mlp
        self.scaled = scaled
        if scaled:
            self.attn_scale, self.mlp_scale = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Shapes: x (B, T, C), bias (B, 1, T or 1, T) -> (B, T, C)."""
        y = self.attn(self.attn_norm(x), bias)
        x = x + (y * self.attn_scale if self.scaled else y)
        y = self.mlp(self.mlp_norm(x))
        return x + (y * self.mlp_scale if self.scaled else y)


def resized(table: Tensor, old: tuple[int, int], new: tuple[Any, Any], smooth: bool = False) -> Tensor:
    """Positions of another grid, by bicubic interpolation as torch does it, at least in float32.

    As a product of matrices, which every backend has and computes alike: where old and new agree they are identities.
    `smooth` is torch's antialias. Shapes: table (old rows * columns, C), new (rows, columns) -> (rows * columns, C).
    """
    wide = table.to(torch.promote_types(table.dtype, torch.float32))
    down, across = (bicubic(wide, a, b, smooth) for a, b in zip(old, new, strict=True))
    rows = down @ wide.unflatten(0, old).flatten(1)
    return (across @ rows.unflatten(-1, (old[1], -1))).flatten(0, 1).to(table.dtype)


def bicubic(like: Tensor, old: int, new: Any, smooth: bool = False) -> Tensor:
    """The matrix (new, old) of torch's bicubic interpolation along one axis, on the device and in the dtype of `like`.

    Keys 1981, https://doi.org/10.1109/TASSP.1981.1163711, with a = -0.75 and the border repeated; `smooth` widens the
    kernel when shrinking, with a = -0.5 and nothing beyond the border, as Pillow does.
    """
    beyond = 0 if smooth else 2  # the points of a border that is repeated
    places = (like.new_ones(new).cumsum(0) - 0.5) * old / new  # of the new points, where the old ones are at n + 1/2
    points = like.new_ones(old + 2 * beyond).cumsum(0) - (beyond + 0.5)
    distances = (points - places.unsqueeze(-1)).abs()
    if smooth:
        shrunk = (like.new_ones(new) * old / new).clamp(min=1).unsqueeze(-1)
        weights = cubic(distances / shrunk, -0.5)
        return weights / weights.sum(-1, True)
    repeated = points.clamp(0.5, old - 0.5).unsqueeze(-1) == points[beyond:-beyond]
    return cubic(distances, -0.75) @ repeated.to(like.dtype)


def cubic(x: Tensor, a: float) -> Tensor:
    """The cubic convolution kernel at distances x >= 0."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
