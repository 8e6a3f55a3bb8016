"""ResNet: convolutions with batch normalization, whose layers add what they compute to what they read.

He et al. 2015, https://arxiv.org/abs/1512.03385. Pictures of every size are read; the maps of the stages serve other
families as a backbone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from isoform.errors import CheckpointError
from isoform.reference.card import Family, Pyramid, Task
from isoform.reference.config import Config, with_labels
from isoform.reference.modules.layers import Linear, activation
from isoform.reference.rules import Rename, Rule
from isoform.reference.vision.convolutions import ConvNorm, conv_norm
from isoform.reference.vision.patches import pixels
from isoform.reference.vision.pyramids import stages
from isoform.signature import BATCH, HEIGHT, WIDTH, Port, Signature

STEM = 4  # pixels to a cell behind the stem
NARROWED = 4  # how much narrower a bottleneck is


@dataclass(frozen=True, slots=True, kw_only=True)
class ResNetConfig(Config):
    """`stages`: those whose maps another family reads, by `out_features` or `out_indices`."""

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
    num_labels: int = 2
    stages: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ResNetConfig:
        data = {key: value for key, value in with_labels(data).items() if key != "stages"}
        config = super(ResNetConfig, cls).from_dict(data)
        if config.layer_type not in ("basic", "bottleneck"):
            raise CheckpointError(f"config.json: layer_type is {config.layer_type!r:.40}, not basic or bottleneck")
        if len(config.depths) != len(config.hidden_sizes) or min(config.depths, default=0) < 1:
            raise CheckpointError(
                f"config.json: depths {list(config.depths)} and hidden_sizes {list(config.hidden_sizes)} must have a "
                "number above 0 for each stage"
            )
        return super(ResNetConfig, cls).from_dict({**data, "stages": stages(data, config.stage_names)})

    @property
    def num_hidden_layers(self) -> int:
        return sum(self.depths)

    @property
    def stage_names(self) -> tuple[str, ...]:
        return ("stem", *(f"stage{n + 1}" for n in range(len(self.depths))))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each map, from the stem on."""
        return (self.embedding_size, *self.hidden_sizes)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels to a cell of each map."""
        first = STEM * (2 if self.downsample_in_first_stage else 1)
        return (STEM, *(first * 2**n for n in range(len(self.depths))))


class Layer(nn.Module):
    """act(convolutions(x) + shortcut(x)): two of 3 x 3, or one of them between two of 1 x 1 with a quarter of the
    channels. Where the layer changes the channels or the size, the shortcut is a convolution."""

    def __init__(self, c: ResNetConfig, before: int, channels: int, stride: int) -> None:
        super().__init__()
        if c.layer_type == "bottleneck":
            narrow = channels // NARROWED
            early, late = (stride, 1) if c.downsample_in_bottleneck else (1, stride)
            convs = [ConvNorm(before, narrow, 1, early, "relu"), ConvNorm(narrow, narrow, 3, late, "relu")]
            convs.append(ConvNorm(narrow, channels, 1))
        else:
            convs = [ConvNorm(before, channels, 3, stride, "relu"), ConvNorm(channels, channels, 3)]
        self.convs = nn.ModuleList(convs)
        self.shortcut = ConvNorm(before, channels, 1, stride) if before != channels or stride != 1 else None
        self.act = activation(c.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, channels, H / stride, W / stride)."""
        y = x
        for conv in self.convs:
            y = conv(y)
        return self.act(y + (x if self.shortcut is None else self.shortcut(x)))


class Trunk(nn.Module):
    """The stem and the first `count` stages."""

    def __init__(self, c: ResNetConfig, count: int) -> None:
        super().__init__()
        self.stem = ConvNorm(c.num_channels, c.embedding_size, 7, 2, c.hidden_act)
        steps = [after // before for before, after in zip(c.strides, c.strides[1:], strict=False)]
        self.stages = nn.ModuleList(
            nn.ModuleList(
                Layer(c, c.widths[n + 1] if m else c.widths[n], c.widths[n + 1], 1 if m else steps[n])
                for m in range(c.depths[n])
            )
            for n in range(count)
        )

    def maps(self, pixel_values: Tensor) -> list[Tensor]:
        """Pictures (B, channels, H, W) -> a map (B, C, rows, columns) of the stem and of each stage."""
        found = [F.max_pool2d(self.stem(pixel_values), 3, 2, 1)]
        for stage in self.stages:
            x = found[-1]
            for layer in stage:  # type: ignore[attr-defined]
                x = layer(x)
            found.append(x)
        return found


class ResNet(Trunk):
    """All of it; `classifies`: with a linear layer on the mean of the last map."""

    def __init__(self, c: ResNetConfig, classifies: bool) -> None:
        super().__init__(c, len(c.depths))
        self.classifier = Linear(c.widths[-1], c.num_labels) if classifies else None

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Pictures (B, channels, H, W) -> the last map (B, C, rows, columns) and its mean (B, C, 1, 1), or logits
        (B, labels)."""
        x = self.maps(pixel_values)[-1]
        mean = F.adaptive_avg_pool2d(x, 1)
        return (x, mean) if self.classifier is None else (self.classifier(mean.flatten(1)),)


class Backbone(Trunk):
    """The network up to the last of some stages, whose maps it gives."""

    def __init__(self, c: ResNetConfig, wanted: tuple[str, ...]) -> None:
        places = [c.stage_names.index(name) for name in wanted]
        super().__init__(c, max(places))
        self.places = places

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Pictures (B, channels, H, W) -> a map (B, C, rows, columns) for each stage."""
        found = self.maps(pixel_values)
        return tuple(found[n] for n in self.places)


def _of_stages(values: tuple[int, ...], c: ResNetConfig, names: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(values[c.stage_names.index(name)] for name in names)


def _signature(c: ResNetConfig, *outputs: Port) -> Signature:
    unit = c.strides[-1]
    return Signature((pixels(c.num_channels),), outputs, units={HEIGHT: unit, WIDTH: unit})


_LAYER = "resnet.encoder.stages.*.layers.*"
_PARTS = ("convolution", "normalization")

RULES: tuple[Rule, ...] = (
    *conv_norm([f"resnet.embedder.embedder.{part}" for part in _PARTS], "stem"),
    *conv_norm([f"{_LAYER}.layer.*.{part}" for part in _PARTS], "stages.*.*.convs.*"),
    *conv_norm([f"{_LAYER}.shortcut.{part}" for part in _PARTS], "stages.*.*.shortcut"),
    Rename("classifier.1", "classifier"),
)

FAMILY = Family(
    name="resnet",
    title="ResNet",
    model_types=("resnet",),
    config=ResNetConfig,
    rules=RULES,
    tasks=(
        Task(
            name="image-classification",
            architectures=("ResNetForImageClassification",),
            build=lambda c: ResNet(c, True),
            signature=lambda c: _signature(c, Port("logits", "float", (BATCH, c.num_labels))),
        ),
        Task(
            name="image-feature-extraction",
            architectures=("ResNetModel",),
            build=lambda c: ResNet(c, False),
            signature=lambda c: _signature(
                c,
                Port("last_hidden_state", "float", (BATCH, c.widths[-1], "map_rows", "map_columns")),
                Port("pooler_output", "float", (BATCH, c.widths[-1], 1, 1)),
            ),
        ),
    ),
    pyramid=Pyramid(
        build=Backbone,
        pixels=lambda c: pixels(c.num_channels),
        channels=lambda c, names: _of_stages(c.widths, c, names),
        strides=lambda c, names: _of_stages(c.strides, c, names),
        left_out=lambda c, names: tuple(
            f"stages.{n}" for n in range(max(c.stage_names.index(name) for name in names), len(c.depths))
        ),
    ),
    prefix="resnet",
    heads=("classifier",),
    no_gguf="llama.cpp has no residual networks",
)
