"""The pixel decoder of mask transformers: deformable attention over three maps, and one finer map for the masks.

Cheng et al. 2021, https://arxiv.org/abs/2112.01527; the attention is Zhu et al. 2020, https://arxiv.org/abs/2010.04159.
Axis letters: B batch, T cells of all maps, H rows, W columns, C channels, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoform.errors import CheckpointError
from isoform.reference.modules import ops
from isoform.reference.modules.layers import MLP, Linear, head_size
from isoform.reference.rules import Rename, Rule, below
from isoform.reference.vision.convolutions import Conv
from isoform.reference.vision.maps import ConvNorm, sequence, sine_positions

LEVELS, POINTS, GROUPS = 3, 4, 32  # constants of the Hub's code


class DeformableAttention(nn.Module):
    """Every cell attends to a few points around it on each of several maps; the points are computed from the cell."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        head_size(dim, heads, "the pixel decoder's width")
        self.heads = heads
        self.points = Linear(dim, heads * LEVELS * POINTS * 2)
        self.shares = Linear(dim, heads * LEVELS * POINTS)
        self.v, self.out = Linear(dim, dim), Linear(dim, dim)

    def forward(self, x: Tensor, places: Tensor, centres: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Shapes: x and places (B, T, C), centres (1, T, 1, 1, 2) of x and y, maps (B, C, H, W) -> (B, T, C)."""
        queries = x + places
        offsets = self.points(queries).unflatten(-1, (self.heads, LEVELS, POINTS, 2))
        shares = self.shares(queries).unflatten(-1, (self.heads, LEVELS * POINTS)).softmax(-1)
        shares = shares.unflatten(-1, (LEVELS, POINTS))
        y, start = torch.zeros_like(x), 0
        values = self.v(x)
        for level, like in enumerate(maps):
            rows, columns = like.shape[2], like.shape[3]
            cells = values[:, start : start + rows * columns]
            cells = cells.reshape(x.shape[0], rows, columns, x.shape[-1])
            # In float32: a half has no place for a point between two cells of a large map.
            sides = torch.stack([torch.ones(1, device=x.device) * side for side in (columns, rows)], -1)
            points = centres + offsets[:, :, :, level].to(centres.dtype) / sides
            y = y + ops.sampled_attention(cells, points, shares[:, :, :, level], self.heads, 0)
            start = start + rows * columns
        out: Tensor = self.out(y)
        return out


class DeformableLayer(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(self, dim: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.attn, self.attn_out_norm = DeformableAttention(dim, heads), nn.LayerNorm(dim, eps)
        self.mlp, self.out_norm = MLP(dim, hidden, "relu"), nn.LayerNorm(dim, eps)

    def forward(self, x: Tensor, places: Tensor, centres: Tensor, maps: Sequence[Tensor]) -> Tensor:
        x = self.attn_out_norm(x + self.attn(x, places, centres, maps))
        y: Tensor = self.out_norm(x + self.mlp(x))
        return y


class PixelDecoder(nn.Module):
    """Maps of a backbone, fine to coarse -> three maps, coarse to fine, and the map of which masks are made.

    `finer`: how many maps are added to the three by interpolation, one at a time, from the backbone's first.
    """

    def __init__(
        self,
        channels: Sequence[int],
        dim: int,
        mask_dim: int,
        *,
        heads: int,
        hidden: int,
        layers: int,
        finer: int,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if len(channels) < LEVELS or not 0 <= finer <= len(channels):
            raise CheckpointError(
                f"config.json: the pixel decoder reads {LEVELS} maps and {finer} finer ones; the backbone gives "
                f"{len(channels)} (out_features, strides and common_stride say so)"
            )
        if dim % GROUPS:
            raise CheckpointError(f"config.json: the pixel decoder's width {dim} is no multiple of {GROUPS}")
        self.dim, self.finer = dim, finer
        self.project = nn.ModuleList(ConvNorm(size, dim, 1, GROUPS, True) for size in channels[: -LEVELS - 1 : -1])
        self.level_embed = nn.Parameter(torch.zeros(LEVELS, dim))
        self.layers = nn.ModuleList(DeformableLayer(dim, heads, hidden, eps) for _ in range(layers))
        self.lateral = nn.ModuleList(ConvNorm(size, dim, 1, GROUPS, False) for size in channels[:finer])
        self.smooth = nn.ModuleList(ConvNorm(dim, dim, 3, GROUPS, False) for _ in range(finer))
        self.mask = Conv(dim, mask_dim, 1)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        maps = [project(x) for project, x in zip(self.project, features[::-1], strict=False)]
        places = [sine_positions(x, self.dim) + self.level_embed[n] for n, x in enumerate(maps)]
        centres = torch.cat([_centres(x) for x in maps], 1)
        x, place = torch.cat([sequence(x) for x in maps], 1), torch.cat(places, 1)
        for layer in self.layers:
            x = layer(x, place, centres, maps)
        found, start = [], 0
        for like in maps:
            count = like.shape[2] * like.shape[3]
            found.append(x[:, start : start + count].transpose(1, 2).reshape(like.shape))
            start = start + count
        y = found[-1]
        for n in range(self.finer - 1, -1, -1):
            side = self.lateral[n](features[n])
            y = side + F.interpolate(y, size=side.shape[2:], mode="bilinear", align_corners=False)
            y = F.relu(self.smooth[n](y))
            found.append(y)
        return found[:LEVELS], self.mask(y)


def _centres(like: Tensor) -> Tensor:
    """The middle of each cell of a map, x and y from 0 to 1: (B, C, H, W) -> (1, H * W, 1, 1, 2), in float32."""
    rows, columns = like.shape[2], like.shape[3]
    y, x = ((torch.arange(n, device=like.device, dtype=torch.float32) + 0.5) / n for n in (rows, columns))
    grid = torch.stack((x.unsqueeze(0).expand(rows, -1), y.unsqueeze(1).expand(-1, columns)), -1)
    return grid.flatten(0, 1).unsqueeze(0).unsqueeze(2).unsqueeze(2)


RULES: tuple[Rule, ...] = (
    Rename("input_projections.*.0", "project.*.conv"),
    Rename("input_projections.*.1", "project.*.norm"),
    Rename("level_embed", "level_embed"),
    *below(
        (
            Rename("self_attn.sampling_offsets", "attn.points"),
            Rename("self_attn.attention_weights", "attn.shares"),
            Rename("self_attn.value_proj", "attn.v"),
            Rename("self_attn.output_proj", "attn.out"),
            Rename("self_attn_layer_norm", "attn_out_norm"),
            Rename("fc1", "mlp.up"),
            Rename("fc2", "mlp.down"),
            Rename("final_layer_norm", "out_norm"),
        ),
        "encoder.layers.*",
        "layers.*",
    ),
    Rename("mask_projection", "mask"),
)


def finer_rules(count: int) -> tuple[Rule, ...]:
    """The rules of the finer maps, which the Hub counts from 1."""
    names = {"adapter_{}.0": "lateral.{}.conv", "adapter_{}.1": "lateral.{}.norm"}
    names |= {"layer_{}.0": "smooth.{}.conv", "layer_{}.1": "smooth.{}.norm"}
    return tuple(Rename(hub.format(n + 1), own.format(n)) for n in range(count) for hub, own in names.items())
