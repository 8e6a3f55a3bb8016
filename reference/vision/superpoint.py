"""SuperPoint: a VGG encoder with two heads, one that scores every pixel as a keypoint, one that describes every cell.

DeTone et al. 2018, https://arxiv.org/abs/1712.07629. The graph gives both maps whole. Which pixels are keypoints is
chosen from them by the host step `select_keypoints`, so that no size in the graph depends on what is in the picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoform.errors import CheckpointError
from isoform.reference.card import Family, Part, Task
from isoform.reference.config import Config
from isoform.reference.rules import Rename, Rule
from isoform.reference.vision.convolutions import Conv
from isoform.reference.vision.patches import pixels, units
from isoform.signature import BATCH, Port, Signature

CELL = 8  # pixels to a cell in each direction: three poolings, and as many pixels of scores
CELLS = ("cell_rows", "cell_columns")  # axes
STAGES = 4
LEAST = 1e-12  # a shorter descriptor is not made longer


@dataclass(frozen=True, slots=True, kw_only=True)
class SuperPointConfig(Config):
    """`keypoint_threshold` and below say which keypoints are chosen, where `max_keypoints` -1 means all."""

    reads = frozenset(("border_removal_distance", "keypoint_threshold", "max_keypoints", "nms_radius"))
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {"keypoint_decoder_dim": (CELL * CELL + 1,)}

    encoder_hidden_sizes: tuple[int, ...] = (64, 64, 128, 128)
    decoder_hidden_size: int = 256
    descriptor_decoder_dim: int = 256
    keypoint_threshold: float = 0.005
    max_keypoints: int = -1
    nms_radius: int = 4
    border_removal_distance: int = 4

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SuperPointConfig:
        numbers = {name: data[name] for name in cls.reads if data.get(name) is not None}
        for name, value in numbers.items():
            kinds, least = (int | float, 0) if name == "keypoint_threshold" else (int, -(name == "max_keypoints"))
            if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value < 2**31:
                raise CheckpointError(f"config.json: {name} is {value!r:.40}; it is a number from {least} on")
        # What may be 0 or -1 is read here, the rest with its type.
        config = super(SuperPointConfig, cls).from_dict({k: v for k, v in data.items() if k not in numbers})
        if len(config.encoder_hidden_sizes) != STAGES or min(config.encoder_hidden_sizes) < 1:
            raise CheckpointError(
                f"config.json: encoder_hidden_sizes is {list(config.encoder_hidden_sizes)}; {STAGES} stages make the "
                f"cells of {CELL} x {CELL} pixels that the scores are for"
            )
        return replace(config, **numbers)

    @property
    def num_hidden_layers(self) -> int:
        return STAGES

    @property
    def selection(self) -> dict[str, Any]:
        """The settings of the step `select_keypoints`."""
        return {
            "threshold": float(self.keypoint_threshold),
            "most": self.max_keypoints,
            "radius": self.nms_radius,
            "border": self.border_removal_distance,
        }


class Stage(nn.Module):
    """Two convolutions with ReLU after each, at the resolution of the stage."""

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = Conv(before, channels, 3, padding=1), Conv(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, channels, H, W)."""
        return F.relu(self.conv2(F.relu(self.conv1(x))))


class Head(nn.Module):
    """A wide convolution with ReLU, and one cell by cell."""

    def __init__(self, before: int, hidden: int, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = Conv(before, hidden, 3, padding=1), Conv(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, channels, H, W)."""
        y: Tensor = self.conv2(F.relu(self.conv1(x)))
        return y


class SuperPoint(nn.Module):
    """The encoder, and both heads over its cells."""

    def __init__(self, c: SuperPointConfig) -> None:
        super().__init__()
        sizes = c.encoder_hidden_sizes
        self.layers = nn.ModuleList(Stage(a, b) for a, b in zip((1, *sizes), sizes, strict=False))
        self.score = Head(sizes[-1], c.decoder_hidden_size, CELL * CELL + 1)
        self.descriptor = Head(sizes[-1], c.decoder_hidden_size, c.descriptor_decoder_dim)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Pictures (B, 3, H, W), of which the first channel is read -> of each cell the scores of its 64 pixels, row by
        row, before any is suppressed (B, 64, H / 8, W / 8), and a descriptor of length 1 (B, D, H / 8, W / 8).

        Pixels that fill no cell, at the right and the lower edge, get no score.
        """
        x = pixel_values[:, :1]
        for n, stage in enumerate(self.layers):
            x = F.max_pool2d(stage(x), 2) if n < len(self.layers) - 1 else stage(x)
        # The last of a cell's 65 classes is that none of its pixels is a keypoint.
        scores = torch.softmax(self.score(x), 1)[:, : CELL * CELL]
        descriptors = self.descriptor(x)
        lengths = (descriptors * descriptors).sum(1, keepdim=True).sqrt()
        return scores, descriptors / lengths.clamp(min=LEAST)


def signature(c: SuperPointConfig) -> Signature:
    return Signature(
        (pixels(3),),
        (
            Port("scores", "float", (BATCH, CELL * CELL, *CELLS), "scores"),
            Port("descriptors", "float", (BATCH, c.descriptor_decoder_dim, *CELLS)),
        ),
        units=units(CELL),
    )


RULES: tuple[Rule, ...] = (
    Rename("encoder.conv_blocks.*.conv_a", "layers.*.conv1"),
    Rename("encoder.conv_blocks.*.conv_b", "layers.*.conv2"),
    Rename("keypoint_decoder.conv_score_a", "score.conv1"),
    Rename("keypoint_decoder.conv_score_b", "score.conv2"),
    Rename("descriptor_decoder.conv_descriptor_a", "descriptor.conv1"),
    Rename("descriptor_decoder.conv_descriptor_b", "descriptor.conv2"),
)

FAMILY = Family(
    name="superpoint",
    title="SuperPoint",
    model_types=("superpoint",),
    config=SuperPointConfig,
    rules=RULES,
    tasks=(
        Task(
            name="keypoint-detection",
            architectures=("SuperPointForKeypointDetection",),
            build=SuperPoint,
            signature=signature,
            steps=lambda c: {"select_keypoints": c.selection},
        ),
    ),
    parts={"keypoint_detector": Part(build=SuperPoint, signature=signature)},
    prefix="superpoint",
    no_gguf="llama.cpp has no architecture that finds keypoints",
)
