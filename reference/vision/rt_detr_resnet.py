"""ResNet-D: a residual network with a stem of three convolutions, which shrinks pictures beside its convolutions.

He et al. 2018, https://arxiv.org/abs/1812.01187, as the detectors of RT-DETR have it. Alone it gives the maps of the
stages that its config names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from isoform.errors import CheckpointError
from isoform.reference.card import Family, Pyramid, Task
from isoform.reference.config import Config
from isoform.reference.modules.layers import activation
from isoform.reference.rules import Rule
from isoform.reference.vision.convolutions import ConvNorm, conv_norm
from isoform.reference.vision.patches import pixels
from isoform.reference.vision.pyramids import stages
from isoform.signature import BATCH, HEIGHT, WIDTH, Port, Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class RtDetrResNetConfig(Config):
    """`stages`: those whose maps are given, from "stem" and "stage1" on."""

    reads = frozenset(("out_features", "out_indices"))
    harmless = frozenset(("stage_names",))

    num_channels: int = 3
    embedding_size: int = 64
    hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    layer_type: str = "bottleneck"
    hidden_act: str = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False
    stages: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RtDetrResNetConfig:
        plain = super(RtDetrResNetConfig, cls).from_dict({key: value for key, value in data.items() if key != "stages"})
        if plain.layer_type not in ("basic", "bottleneck"):
            raise CheckpointError(f"config.json: layer_type is {plain.layer_type!r:.40}, not basic or bottleneck")
        if len(plain.depths) != len(plain.hidden_sizes) or min(plain.depths, default=0) < 1:
            raise CheckpointError(
                f"config.json: depths {list(plain.depths)} and hidden_sizes {list(plain.hidden_sizes)} are not of the "
                "same stages"
            )
        shrinks = plain.downsample_in_first_stage
        if plain.layer_type == "basic" and plain.embedding_size != plain.hidden_sizes[0] and not shrinks:
            raise CheckpointError(
                f"config.json: basic layers that do not shrink pictures keep their channels, and embedding_size is "
                f"{plain.embedding_size}, hidden_sizes {list(plain.hidden_sizes)}"
            )
        return super(RtDetrResNetConfig, cls).from_dict({**data, "stages": stages(data, names(plain))})


def names(c: RtDetrResNetConfig) -> tuple[str, ...]:
    """Every stage, from the stem on."""
    return ("stem", *(f"stage{n + 1}" for n in range(len(c.depths))))


def strides(c: RtDetrResNetConfig, wanted: tuple[str, ...]) -> tuple[int, ...]:
    """Pixels to a cell of the map of each stage: each stage but the first doubles it."""
    known, stride = {"stem": 4}, 4
    for n, name in enumerate(names(c)[1:]):
        stride *= 2 if n or c.downsample_in_first_stage else 1
        known[name] = stride
    return tuple(known[name] for name in wanted)


def channels(c: RtDetrResNetConfig, wanted: tuple[str, ...]) -> tuple[int, ...]:
    """Channels of the map of each stage."""
    known = dict(zip(names(c), (c.embedding_size, *c.hidden_sizes), strict=True))
    return tuple(known[name] for name in wanted)


class Layer(nn.Module):
    """act(convolutions(x) + shortcut(x)): two of 3 x 3, or one between two of 1 x 1 with a quarter of the channels.

    A shortcut that changes nothing has no parameters. One that shrinks averages four pixels before its convolution, but
    for basic layers that keep their channels.
    """

    def __init__(self, c: RtDetrResNetConfig, inner: int, out: int, stride: int, first: bool) -> None:
        super().__init__()
        pools = stride == 2 if c.layer_type == "bottleneck" else inner != out
        changes = (inner != out or stride == 2) if c.layer_type == "bottleneck" else first
        self.pooled_shortcut = ConvNorm(inner, out, 1) if changes and pools else None
        self.shortcut = ConvNorm(inner, out, 1, stride) if changes and not pools else None
        if c.layer_type == "bottleneck":
            early, late = (stride, 1) if c.downsample_in_bottleneck else (1, stride)
            narrow = out // 4
            convs = [ConvNorm(inner, narrow, 1, early, "relu"), ConvNorm(narrow, narrow, 3, late, "relu")]
            convs.append(ConvNorm(narrow, out, 1))
        else:
            convs = [ConvNorm(inner, out, 3, stride, "relu"), ConvNorm(out, out, 3)]
        self.convs = nn.ModuleList(convs)
        self.act = activation(c.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for conv in self.convs:
            y = conv(y)
        if self.pooled_shortcut is not None:
            x = self.pooled_shortcut(F.avg_pool2d(x, 2, 2, ceil_mode=True))
        elif self.shortcut is not None:
            x = self.shortcut(x)
        return self.act(y + x)


class Stage(nn.Module):
    """Layers of one width, of which the first may shrink pictures."""

    def __init__(self, c: RtDetrResNetConfig, inner: int, out: int, stride: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Layer(c, out if n else inner, out, 1 if n else stride, first=not n) for n in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class RtDetrResNet(nn.Module):
    """The network up to the last of the `wanted` stages; it gives the map of each."""

    def __init__(self, c: RtDetrResNetConfig, wanted: tuple[str, ...]) -> None:
        super().__init__()
        self.wanted, every = wanted, names(c)
        half, whole = c.embedding_size // 2, c.embedding_size
        self.stem = nn.ModuleList(
            (
                ConvNorm(c.num_channels, half, 3, 2, c.hidden_act),
                ConvNorm(half, half, 3, 1, c.hidden_act),
                ConvNorm(half, whole, 3, 1, c.hidden_act),
            )
        )
        count = max(every.index(name) for name in wanted)
        sizes, widths = (4, *strides(c, every[1:])), (whole, *c.hidden_sizes)
        self.stages = nn.ModuleList(
            Stage(c, widths[n], widths[n + 1], sizes[n + 1] // sizes[n], c.depths[n]) for n in range(count)
        )

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Pictures (B, channels, H, W) -> a map (B, C, H / stride, W / stride) of each stage."""
        x = pixel_values
        for conv in self.stem:
            x = conv(x)
        x = F.max_pool2d(x, 3, 2, 1)
        maps = [x] if "stem" in self.wanted else []
        for n, stage in enumerate(self.stages):
            x = stage(x)
            if f"stage{n + 1}" in self.wanted:
                maps.append(x)
        return tuple(maps)


def signature(c: RtDetrResNetConfig) -> Signature:
    """A port for each map; its rows and columns are axes of their own."""
    ports = tuple(
        Port(f"feature_maps.{n}", "float", (BATCH, width, f"{name}_rows", f"{name}_columns"), "image_features")
        for n, (name, width) in enumerate(zip(c.stages, channels(c, c.stages), strict=True))
    )
    unit = max(strides(c, c.stages))
    return Signature((pixels(c.num_channels),), ports, units={HEIGHT: unit, WIDTH: unit})


_LAYER = "encoder.stages.*.layers.*"
_PARTS = ("convolution", "normalization")

RULES: tuple[Rule, ...] = (
    *conv_norm([f"embedder.embedder.*.{part}" for part in _PARTS], "stem.*"),
    *conv_norm([f"{_LAYER}.layer.*.{part}" for part in _PARTS], "stages.*.layers.*.convs.*"),
    *conv_norm([f"{_LAYER}.shortcut.{part}" for part in _PARTS], "stages.*.layers.*.shortcut"),
    *conv_norm([f"{_LAYER}.shortcut.1.{part}" for part in _PARTS], "stages.*.layers.*.pooled_shortcut"),
)


def left_out(c: RtDetrResNetConfig, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """The stages after the last that is wanted."""
    last = max(names(c).index(name) for name in wanted)
    return tuple(f"stages.{n}" for n in range(last, len(c.depths)))


FAMILY = Family(
    name="rt_detr_resnet",
    title="RT-DETR's ResNet",
    model_types=("rt_detr_resnet",),
    config=RtDetrResNetConfig,
    rules=RULES,
    tasks=(
        Task(
            name="backbone",
            architectures=("RTDetrResNetBackbone",),
            build=lambda c: RtDetrResNet(c, c.stages),
            signature=signature,
            carried=lambda c: left_out(c, c.stages),
        ),
    ),
    pyramid=Pyramid(
        build=RtDetrResNet,
        pixels=lambda c: pixels(c.num_channels),
        channels=channels,
        strides=strides,
        left_out=left_out,
    ),
    prefix="",
    no_gguf="llama.cpp has no residual networks",
)
