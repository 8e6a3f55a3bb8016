"""SegFormer: a transformer in stages without positions, whose maps of four scales an MLP joins to classes of pixels.

Xie et al. 2021, https://arxiv.org/abs/2105.15203. Keys and values are those of a smaller map, and a convolution inside
each MLP tells where a cell is. Pictures of every size are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.card import Family, Task
from isoform.reference.config import Config, with_labels
from isoform.reference.modules.attention import CrossAttention, Heads
from isoform.reference.modules.layers import FrozenBatchNorm, Linear, activation, head_size
from isoform.reference.rules import Rename, Rule, batch_norm, below
from isoform.reference.vision.convolutions import Conv
from isoform.reference.vision.patches import SEQUENCE, pixels
from isoform.signature import BATCH, HEIGHT, WIDTH, Port, Signature

EPS = 1e-5  # of every norm: transformers does not read layer_norm_eps


@dataclass(frozen=True, slots=True, kw_only=True)
class SegformerConfig(Config):
    """Lists have a number for each stage."""

    harmless = frozenset(
        (
            *("layer_norm_eps", "semantic_loss_ignore_index"),  # not read; of a training
            *("downsampling_rates", "image_size"),  # of older files, where nothing reads them either
        )
    )

    num_channels: int = 3
    num_encoder_blocks: int = 4
    depths: tuple[int, ...] = (2, 2, 2, 2)
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1)
    hidden_sizes: tuple[int, ...] = (32, 64, 160, 256)
    patch_sizes: tuple[int, ...] = (7, 3, 3, 3)
    strides: tuple[int, ...] = (4, 2, 2, 2)
    num_attention_heads: tuple[int, ...] = (1, 2, 5, 8)
    mlp_ratios: tuple[int | float, ...] = (4, 4, 4, 4)
    hidden_act: str = "gelu"
    decoder_hidden_size: int = 256
    reshape_last_stage: bool = True
    num_labels: int = 2

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SegformerConfig:
        config = super(SegformerConfig, cls).from_dict(with_labels(data))
        for name in ("depths", "sr_ratios", "hidden_sizes", "patch_sizes", "strides", "num_attention_heads"):
            values = getattr(config, name)
            if len(values) != config.num_encoder_blocks or min(values) < 1:
                raise CheckpointError(
                    f"config.json: {name} is {list(values)}; it has a number above 0 for each of the "
                    f"{config.num_encoder_blocks} stages (num_encoder_blocks)"
                )
        ratios = zip(config.mlp_ratios, config.hidden_sizes, strict=False)
        if len(config.mlp_ratios) != config.num_encoder_blocks or min(int(r * dim) for r, dim in ratios) < 1:
            raise CheckpointError(f"config.json: mlp_ratios is {list(config.mlp_ratios)}; each stage has one above 0")
        return config

    @property
    def num_hidden_layers(self) -> int:
        return sum(self.depths)

    @property
    def unit(self) -> int:
        """Pixels to a cell of the map from which keys and values come, of the stage where they are the most."""
        pixels, found = 1, 1
        for stride, ratio in zip(self.strides, self.sr_ratios, strict=True):
            pixels *= stride
            found = max(found, pixels * ratio)
        return found

    def sizes(self, size: int) -> tuple[list[int], list[int]]:
        """Heights or widths that follow from one: of each map, and of those from which other keys and values come."""
        maps, reduced = [], []
        for patch, stride, ratio in zip(self.patch_sizes, self.strides, self.sr_ratios, strict=True):
            size = (size + patch // 2 * 2 - patch) // stride + 1
            maps.append(size)
            reduced += [size // ratio] if ratio > 1 else []
        return maps, reduced


class ReducedAttention(CrossAttention):
    """Attention of a map's cells to those of the same map, `ratio` times as small on each side."""

    def __init__(self, dim: int, heads: int, ratio: int) -> None:
        super().__init__(dim, Heads(heads, heads, head_size(dim, heads, "hidden_sizes")), bias=True, out_bias=True)
        self.reduce = Conv(dim, dim, ratio, ratio) if ratio > 1 else None
        self.reduce_norm = nn.LayerNorm(dim, EPS) if ratio > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        cells = x.flatten(1, 2)
        states = cells
        if self.reduce is not None and self.reduce_norm is not None:
            states = self.reduce_norm(self.reduce(x.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2))
        return self.attend(cells, states).reshape(x.shape)


class MixedMLP(nn.Module):
    """An MLP with a convolution of 3 x 3 cells, channel by channel, before its activation."""

    def __init__(self, dim: int, hidden: int, act: str) -> None:
        super().__init__()
        self.up, self.down = Linear(dim, hidden), Linear(hidden, dim)
        self.conv = Conv(hidden, hidden, 3, padding=1, groups=hidden)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        y = self.conv(self.up(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        out: Tensor = self.down(self.act(y))
        return out


class Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, c: SegformerConfig, stage: int) -> None:
        super().__init__()
        dim = c.hidden_sizes[stage]
        self.attn_norm = nn.LayerNorm(dim, EPS)
        self.attn = ReducedAttention(dim, c.num_attention_heads[stage], c.sr_ratios[stage])
        self.mlp_norm = nn.LayerNorm(dim, EPS)
        self.mlp = MixedMLP(dim, int(dim * c.mlp_ratios[stage]), c.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = x + self.attn(self.attn_norm(x))
        y: Tensor = x + self.mlp(self.mlp_norm(x))
        return y


class Stage(nn.Module):
    """A convolution whose patches overlap, and layers."""

    def __init__(self, c: SegformerConfig, stage: int) -> None:
        super().__init__()
        size, dim = c.patch_sizes[stage], c.hidden_sizes[stage]
        before = c.hidden_sizes[stage - 1] if stage else c.num_channels
        self.patch_embed = Conv(before, dim, size, c.strides[stage], size // 2)
        self.embed_norm = nn.LayerNorm(dim, EPS)
        self.layers = nn.ModuleList(Layer(c, stage) for _ in range(c.depths[stage]))
        self.norm = nn.LayerNorm(dim, EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, C, H / stride, W / stride)."""
        x = self.embed_norm(self.patch_embed(x).permute(0, 2, 3, 1))
        for layer in self.layers:
            x = layer(x)
        y: Tensor = self.norm(x)
        return y.permute(0, 3, 1, 2)


class Trunk(nn.Module):
    """All stages."""

    def __init__(self, c: SegformerConfig) -> None:
        super().__init__()
        self.stages = nn.ModuleList(Stage(c, n) for n in range(c.num_encoder_blocks))

    def maps(self, pixel_values: Tensor) -> list[Tensor]:
        """Pictures (B, channels, H, W) -> a map (B, C, rows, columns) of each stage."""
        found, x = [], pixel_values
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


class Encoder(Trunk):
    """The last map, or its cells where config.json says so; `classifies`: a linear layer on their mean."""

    def __init__(self, c: SegformerConfig, classifies: bool) -> None:
        super().__init__(c)
        self.keeps_map = c.reshape_last_stage
        self.classifier = Linear(c.hidden_sizes[-1], c.num_labels) if classifies else None

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        """Pictures (B, channels, H, W) -> (B, C, rows, columns) or (B, cells, C), or logits (B, labels)."""
        x = self.maps(pixel_values)[-1]
        if self.classifier is not None:
            return (self.classifier(x.mean((2, 3))),)
        return (x if self.keeps_map else x.flatten(2).transpose(1, 2),)


class Joined(nn.Module):
    """Maps of all stages, projected to one width, enlarged to the first, joined by a 1 x 1 convolution and normalized.

    Enlarging changes no channel, so that each map is projected and joined at once, where it is small.
    """

    def __init__(self, widths: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.project = nn.ModuleList(Linear(width, dim) for width in widths)
        self.join = Conv(dim * len(widths), dim, 1, bias=False)
        self.norm = FrozenBatchNorm(dim)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """(B, C, H, W) of each stage -> (B, dim, H, W) of the first."""
        scale, shift = self.norm.scale_and_shift()
        weights = (self.join.weight.flatten(1) * scale.unsqueeze(1)).chunk(len(maps), 1)[::-1]  # the last map is first
        found: list[Tensor] = []
        for x, weight, project in zip(maps, weights, self.project, strict=True):
            assert isinstance(project, Linear)
            bias = F.linear(project.bias.unsqueeze(0), weight).squeeze(0)
            whole = (weight @ project.weight).unsqueeze(-1).unsqueeze(-1)
            found.append(F.conv2d(x, whole, bias if found else bias + shift))
        y = found[0]
        for x in found[1:]:
            y = y + F.interpolate(x, size=y.shape[2:], mode="bilinear", align_corners=False)
        return F.relu(y)


class Segmenter(Trunk):
    """Logits of classes for each cell of the first map."""

    def __init__(self, c: SegformerConfig) -> None:
        super().__init__(c)
        if not c.reshape_last_stage:
            raise UnsupportedModel(
                "config.json: reshape_last_stage is false; transformers takes channels for cells then, so that no "
                "picture can be segmented"
            )
        self.decoder = Joined(c.hidden_sizes, c.decoder_hidden_size)
        self.segmenter = Conv(c.decoder_hidden_size, c.num_labels, 1)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        """Pictures (B, channels, H, W) -> (B, labels, H / 4, W / 4), rounded up."""
        return (self.segmenter(self.decoder(self.maps(pixel_values))),)


def _signature(c: SegformerConfig, output: Port) -> Signature:
    return Signature(
        (pixels(c.num_channels),),
        (output,),
        units={HEIGHT: c.unit, WIDTH: c.unit},
        traced=_traced(c),
    )


@cache
def _traced(c: SegformerConfig) -> dict[str, tuple[int, int]]:
    """For `Signature.traced`: sizes of pictures by which each map is told from others, and from those of the keys.

    The latter need only differ between both pictures: no shape in a graph is made of one of them. All are 6 or more,
    and so no batch that a graph is recorded with. Maps that are equal over three units are one. Without such pictures
    it is empty.
    """
    same = list(zip(*(c.sizes(size)[0] for size in range(c.unit, 4 * c.unit)), strict=True))
    apart = [n for n, values in enumerate(same) if values not in same[:n]]
    found: list[tuple[int, int]] = []
    known: set[tuple[int, int]] = set()
    for first in (6 * c.unit, 9 * c.unit):
        for less, more in combinations(range(first, first + 3 * c.unit), 2):
            (maps, reduced), (others, other_reduced) = c.sizes(less), c.sizes(more)
            pairs = {(maps[n], others[n]) for n in apart}
            keys = set(zip(reduced, other_reduced, strict=True))
            if all(a != b for a, b in pairs | keys) and len(pairs) == len(apart) and not pairs & (known | keys):
                found.append((less, more))
                known |= pairs | keys
                break
    return dict(zip((HEIGHT, WIDTH), found, strict=True)) if len(found) == 2 else {}


def _features(c: SegformerConfig) -> Signature:
    dim = c.hidden_sizes[-1]
    axes = (BATCH, dim, "map_rows", "map_columns") if c.reshape_last_stage else (BATCH, SEQUENCE, dim)
    return _signature(c, Port("last_hidden_state", "float", axes))


RULES: tuple[Rule, ...] = (
    Rename("segformer.encoder.patch_embeddings.*.proj", "stages.*.patch_embed"),
    Rename("segformer.encoder.patch_embeddings.*.layer_norm", "stages.*.embed_norm"),
    *below(
        (
            Rename("layer_norm_1", "attn_norm"),
            Rename("attention.self.query", "attn.q"),
            Rename("attention.self.key", "attn.k"),
            Rename("attention.self.value", "attn.v"),
            Rename("attention.self.sr", "attn.reduce"),
            Rename("attention.self.layer_norm", "attn.reduce_norm"),
            Rename("attention.output.dense", "attn.out"),
            Rename("layer_norm_2", "mlp_norm"),
            Rename("mlp.dense1", "mlp.up"),
            Rename("mlp.dwconv.dwconv", "mlp.conv"),
            Rename("mlp.dense2", "mlp.down"),
        ),
        "segformer.encoder.block.*.*",
        "stages.*.layers.*",
    ),
    Rename("segformer.encoder.layer_norm.*", "stages.*.norm"),
    Rename("classifier", "classifier"),
    Rename("decode_head.linear_c.*.proj", "decoder.project.*"),
    Rename("decode_head.linear_fuse", "decoder.join"),
    *batch_norm("decode_head.batch_norm", "decoder.norm"),
    Rename("decode_head.classifier", "segmenter"),
)

FAMILY = Family(
    name="segformer",
    title="SegFormer",
    model_types=("segformer",),
    config=SegformerConfig,
    rules=RULES,
    tasks=(
        Task(
            name="image-segmentation",
            architectures=("SegformerForSemanticSegmentation",),
            build=Segmenter,
            signature=lambda c: _signature(
                c, Port("logits", "float", (BATCH, c.num_labels, "map_rows", "map_columns"))
            ),
        ),
        Task(
            name="image-classification",
            architectures=("SegformerForImageClassification",),
            build=lambda c: Encoder(c, True),
            signature=lambda c: _signature(c, Port("logits", "float", (BATCH, c.num_labels))),
        ),
        Task(
            name="image-feature-extraction",
            architectures=("SegformerModel",),
            build=lambda c: Encoder(c, False),
            signature=_features,
        ),
    ),
    prefix="segformer",
    heads=("classifier", "decoder", "segmenter"),
    no_gguf="llama.cpp has no architecture that segments pictures",
)
