"""Moonbeam: a family that isoform does not have. One convolution with batch norm, its mean, a linear layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isoform.reference.card import Family, Task
from isoform.reference.config import Config, with_labels
from isoform.reference.modules.layers import FrozenBatchNorm, Linear
from isoform.reference.rules import Rename, batch_norm
from isoform.reference.vision.patches import pixels
from isoform.signature import BATCH, Port, Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class MoonbeamConfig(Config):
    hidden_size: int
    image_size: int
    num_channels: int = 3
    num_labels: int = 2

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MoonbeamConfig:
        return super(MoonbeamConfig, cls).from_dict(with_labels(data))


class Moonbeam(nn.Module):
    """Pictures (B, channels, H, W) -> logits (B, labels)."""

    def __init__(self, c: MoonbeamConfig) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c.num_channels, c.hidden_size, 3, 2, 1, bias=False)
        self.norm = FrozenBatchNorm(c.hidden_size)
        self.classifier = Linear(c.hidden_size, c.num_labels)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        x = torch.relu(self.norm(self.conv(pixel_values)))
        return (self.classifier(x.flatten(2).mean(-1)),)


FAMILY = Family(
    name="moonbeam",
    title="Moonbeam",
    model_types=("moonbeam",),
    config=MoonbeamConfig,
    rules=(
        Rename("moonbeam.stem.convolution", "conv"),
        *batch_norm("moonbeam.stem.normalization", "norm"),
        Rename("classifier", "classifier"),
    ),
    tasks=(
        Task(
            name="image-classification",
            architectures=("MoonbeamForImageClassification",),
            build=Moonbeam,
            signature=lambda c: Signature(
                (pixels(c.num_channels, c.image_size),), (Port("logits", "float", (BATCH, c.num_labels)),)
            ),
        ),
    ),
    prefix="moonbeam",
    heads=("classifier",),
    no_gguf="llama.cpp has no Moonbeam",
)
