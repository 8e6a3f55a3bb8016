"""Tiny convolutional networks: ResNet and ConvNeXt."""

from __future__ import annotations

from typing import Any

import transformers as T

from tests.oracle.checkpoints.case import HALF, IMNET, Case, case, named, normal

LABELS = ("cat", "dog", "house", "river", "mountain", "car", "tree")


def _written(c: Case, cls: str, config: Any, height: int, width: int, **processor: Any) -> None:
    c.model(cls, config)
    c.image_processor("ConvNextImageProcessor", **processor)
    c.golden({"pixel_values": normal(2, 3, height, width)})


@case
def resnet_cls(c: Case) -> None:
    """microsoft/resnet-50: bottlenecks, whose 3 x 3 convolution shrinks."""
    config = T.ResNetConfig(embedding_size=12, hidden_sizes=[16, 24, 32], depths=[1, 2, 1], **named(*LABELS[:5]))
    _written(c, "ResNetForImageClassification", config, 64, 64, size={"shortest_edge": 64}, crop_pct=0.875, **IMNET)


@case
def resnet_b(c: Case) -> None:
    """Basic layers, another activation, a first stage that shrinks, a picture that leaves pixels over."""
    config = T.ResNetConfig(
        embedding_size=10,
        hidden_sizes=[10, 20],
        depths=[2, 1],
        layer_type="basic",
        hidden_act="gelu",
        downsample_in_first_stage=True,
    )
    _written(c, "ResNetModel", config, 41, 70, size={"shortest_edge": 40}, crop_pct=0.8, **HALF)


@case
def convnext_cls(c: Case) -> None:
    """facebook/convnext-tiny-224."""
    config = T.ConvNextConfig(hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 2, 1], **named(*LABELS[:5]))
    _written(c, "ConvNextForImageClassification", config, 64, 64, size={"shortest_edge": 64}, crop_pct=0.875, **IMNET)


@case
def convnext_b(c: Case) -> None:
    """Without scales, two stages, another activation and patch, a picture that leaves pixels over."""
    config = T.ConvNextConfig(
        hidden_sizes=[12, 20],
        depths=[2, 1],
        num_stages=2,
        patch_size=3,
        hidden_act="gelu_pytorch_tanh",
        layer_scale_init_value=0.0,
        layer_norm_eps=1e-5,
    )
    _written(c, "ConvNextModel", config, 31, 44, size={"shortest_edge": 384}, **HALF)
