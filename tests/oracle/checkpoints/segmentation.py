"""Tiny Swin models, and models that segment pictures."""

from __future__ import annotations

from typing import Any

import transformers as T

from tests.oracle.checkpoints.case import HALF, IMNET, Case, case, integers, named, normal, write_json
from tests.oracle.checkpoints.tokenizers import clip_tok

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


# ------------------------------------------------------------------ segformer
def _segformer(c: Case, cls: str, height: int, width: int, **config: Any) -> None:
    c.model(cls, T.SegformerConfig(**config))
    c.golden({"pixel_values": normal(2, 3, height, width)})


@case
def segformer(c: Case) -> None:
    """nvidia/segformer-b0-finetuned-ade-512-512, with its processor."""
    sizes = {"hidden_sizes": [8, 16, 20, 24], "depths": [1, 1, 2, 1], "num_attention_heads": [1, 2, 5, 4]}
    _segformer(
        c, "SegformerForSemanticSegmentation", 64, 96, **sizes, decoder_hidden_size=24, num_labels=7, **named(*LABELS)
    )
    settings = {"do_normalize": True, "do_resize": True, "reduce_labels": True, "resample": 2, "size": 64}
    c.pre(feature_extractor_type="SegformerFeatureExtractor", **settings, **IMNET)


@case
def segformer_b(c: Case) -> None:
    """Three stages, other ratios, patches of an even size, another activation, a picture that leaves pixels over."""
    _segformer(
        c,
        "SegformerForSemanticSegmentation",
        50,
        75,
        num_encoder_blocks=3,
        depths=[1, 2, 1],
        hidden_sizes=[12, 18, 28],
        num_attention_heads=[2, 3, 2],
        sr_ratios=[3, 1, 2],
        patch_sizes=[5, 4, 3],
        strides=[3, 2, 2],
        mlp_ratios=[2, 3, 1],
        hidden_act="relu",
        decoder_hidden_size=20,
        **named(*LABELS[:4]),
    )
    size = {"height": 50, "width": 75}
    c.image_processor("SegformerImageProcessor", do_reduce_labels=False, size=size, do_center_crop=False, **HALF)


@case
def segformer_cls(c: Case) -> None:
    """nvidia/mit-b0."""
    _segformer(
        c,
        "SegformerForImageClassification",
        64,
        64,
        hidden_sizes=[8, 12, 20, 24],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 5, 8],
        mlp_ratios=[4, 4, 2, 2],
        **named(*LABELS[:5]),
    )
    c.image_processor("SegformerImageProcessor", size={"height": 64, "width": 64}, **IMNET)


@case
def segformer_base(c: Case) -> None:
    """Without a head, cells in place of a map."""
    _segformer(
        c,
        "SegformerModel",
        40,
        72,
        num_encoder_blocks=2,
        depths=[1, 1],
        hidden_sizes=[8, 12],
        num_attention_heads=[1, 3],
        sr_ratios=[2, 1],
        patch_sizes=[7, 3],
        strides=[4, 2],
        mlp_ratios=[2, 2],
        reshape_last_stage=False,
    )
    c.image_processor("SegformerImageProcessor", size={"height": 40, "width": 72}, **HALF)


# ------------------------------------------------------------------ oneformer
@case
def oneformer_b(c: Case) -> None:
    """With the encoder of a training's texts, norms before the layers, no norm of the task, and no finer map."""
    t = c.tok(clip_tok())
    from transformers.models.oneformer import modeling_oneformer as mo

    mo.requires_backends = lambda *_: None  # its loss, whose buffers are in the checkpoint, asks for scipy
    names = LABELS[:5]
    c.model(
        "OneFormerForUniversalSegmentation",
        T.OneFormerConfig(
            backbone_config={
                "model_type": "swin",
                "image_size": 48,
                "patch_size": 2,
                "embed_dim": 12,
                "depths": [2, 1, 1, 2],
                "num_heads": [1, 3, 2, 4],
                "window_size": 5,
                "mlp_ratio": 2.0,
                "qkv_bias": False,
                "hidden_act": "gelu_pytorch_tanh",
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
            },
            strides=[2, 4, 8, 16],
            common_stride=4,
            num_queries=7,
            text_encoder_width=64,
            text_encoder_context_length=12,
            text_encoder_num_layers=2,
            text_encoder_vocab_size=len(t),
            text_encoder_n_ctx=2,
            conv_dim=64,
            mask_dim=64,
            hidden_dim=64,
            encoder_feedforward_dim=40,
            encoder_layers=1,
            decoder_layers=5,
            num_attention_heads=2,
            dim_feedforward=56,
            query_dec_layers=1,
            use_task_norm=False,
            pre_norm=True,
            task_seq_len=12,
            layer_norm_eps=1e-6,
            dropout=0.0,
            is_training=True,
            **named(*names),
        ),
    )
    write_json(c.folder, "things.json", {str(i): {"isthing": int(i < 2), "name": k} for i, k in enumerate(names)})
    c.pre(
        image_processor_type="OneFormerImageProcessor",
        processor_class="OneFormerProcessor",
        do_normalize=True,
        do_rescale=True,
        do_resize=True,
        ignore_index=255,
        num_labels=len(names),
        num_text=5,
        class_info_file="things.json",
        resample=3,
        size={"shortest_edge": 40, "longest_edge": 90},
        **HALF,
    )
    c.proc(processor_class="OneFormerProcessor", max_seq_length=12, task_seq_length=12)
    ids = t(["the task is instance", "the task is panoptic"], padding="max_length", max_length=12, return_tensors="pt")
    c.golden(
        {
            "pixel_values": normal(2, 3, 50, 74),
            "task_inputs": ids["input_ids"],
            "text_inputs": integers(len(t), 2, 3, 12),
        }
    )


# ------------------------------------------------------------------ mask2former
def _mask2former(c: Case, height: int, width: int, **config: Any) -> None:
    from transformers.models.mask2former import modeling_mask2former as mm

    mm.requires_backends = lambda *_: None
    c.model("Mask2FormerForUniversalSegmentation", T.Mask2FormerConfig(**config))
    c.golden({"pixel_values": normal(2, 3, height, width)})


@case
def mask2former(c: Case) -> None:
    """facebook/mask2former-swin-tiny-coco-panoptic."""
    _mask2former(
        c,
        64,
        96,
        backbone_config={
            "model_type": "swin",
            "image_size": 64,
            "embed_dim": 16,
            "depths": [1, 1, 2, 1],
            "num_heads": [1, 2, 2, 4],
            "window_size": 4,
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
        num_queries=9,
        feature_size=64,
        mask_feature_size=64,
        hidden_dim=64,
        encoder_feedforward_dim=64,
        encoder_layers=2,
        decoder_layers=4,
        num_attention_heads=4,
        dim_feedforward=64,
        **named(*LABELS[:6]),
    )
    c.pre(
        image_processor_type="Mask2FormerImageProcessor",
        do_normalize=True,
        do_rescale=True,
        do_resize=True,
        ignore_index=255,
        reduce_labels=False,
        resample=2,
        size={"shortest_edge": 64, "longest_edge": 256},
        size_divisor=32,
        **IMNET,
    )


@case
def mask2former_b(c: Case) -> None:
    """Norms before the layers, another activation, widths that differ and are projected, the older processor."""
    _mask2former(
        c,
        50,
        74,
        backbone_config={
            "model_type": "swin",
            "image_size": 48,
            "patch_size": 2,
            "embed_dim": 12,
            "depths": [2, 1, 1, 2],
            "num_heads": [1, 3, 2, 4],
            "window_size": 5,
            "qkv_bias": False,
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
        feature_strides=[2, 4, 8, 16],
        common_stride=2,
        num_queries=7,
        feature_size=64,
        mask_feature_size=48,
        hidden_dim=32,
        encoder_feedforward_dim=40,
        encoder_layers=1,
        decoder_layers=4,
        num_attention_heads=2,
        dim_feedforward=56,
        activation_function="gelu",
        pre_norm=True,
        **named(*LABELS[:4]),
    )
    c.pre(
        feature_extractor_type="Mask2FormerFeatureExtractor",
        do_normalize=True,
        do_resize=True,
        ignore_index=255,
        resample=3,
        size=40,
        max_size=90,
        size_divisibility=8,
        **HALF,
    )
