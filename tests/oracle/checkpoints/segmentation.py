"""Tiny Swin models, and models that segment pictures."""

from __future__ import annotations

from typing import Any

import transformers as T

from tests.oracle.checkpoints.case import HALF, IMNET, Case, case, named, normal

LABELS = ("cat", "dog", "house", "river", "mountain", "car", "tree")


# ------------------------------------------------------------------ swin
def _swin(c: Case, cls: str, height: int, width: int, **config: Any) -> None:
    size = config["image_size"]
    c.model(cls, T.SwinConfig(**config))
    c.image_processor("ViTImageProcessor", size={"height": size, "width": size}, resample=3, **IMNET)
    c.golden({"pixel_values": normal(2, 3, height, width)})


@case
def swin_cls(c: Case) -> None:
    """microsoft/swin-tiny-patch4-window7-224: windows that come out even, the last stage is one window."""
    _swin(
        c,
        "SwinForImageClassification",
        64,
        64,
        image_size=64,
        patch_size=4,
        embed_dim=24,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        **named(*LABELS[:5]),
    )


@case
def swin_b(c: Case) -> None:
    """No bias in q, k and v, another activation, three stages, a picture that fills neither patches nor windows."""
    _swin(
        c,
        "SwinModel",
        70,
        93,
        image_size=48,
        patch_size=3,
        embed_dim=12,
        depths=[1, 3, 2],
        num_heads=[1, 2, 3],
        window_size=5,
        mlp_ratio=2.5,
        qkv_bias=False,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
    )


@case
def swin_absolute(c: Case) -> None:
    """Absolute positions, which have one size."""
    c.model(
        "SwinForImageClassification",
        T.SwinConfig(
            image_size=40,
            patch_size=4,
            embed_dim=16,
            depths=[2, 1],
            num_heads=[2, 2],
            window_size=3,
            use_absolute_embeddings=True,
            **named(*LABELS[:3]),
        ),
    )
    c.image_processor("ViTImageProcessor", size={"height": 40, "width": 40}, resample=2, **HALF)
    c.golden({"pixel_values": normal(2, 3, 40, 40)})
