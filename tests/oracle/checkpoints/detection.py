"""Tiny detectors, and the backbones that they alone have."""

from __future__ import annotations

from typing import Any

import torch
import transformers as T
from safetensors.torch import load_file, save_file

from tests.oracle.checkpoints.case import IMNET, Case, case, named, normal, redrawn

THINGS = ("person", "bicycle", "cat", "dog", "kite")


def _pixels(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------ rt_detr_resnet
@case
def rt_detr_resnet(c: Case) -> None:
    """The maps of the stem and of a stage in the middle; pictures with odd sizes on the way."""
    c.model(
        "RTDetrResNetBackbone",
        T.RTDetrResNetConfig(
            embedding_size=8,
            hidden_sizes=[16, 24, 40],
            depths=[2, 1, 1],
            downsample_in_bottleneck=True,
            hidden_act="gelu",
            out_features=["stem", "stage2"],
        ),
    )
    c.golden({"pixel_values": normal(2, 3, 72, 40)})


@case
def rt_detr_resnet_b(c: Case) -> None:
    """Basic layers, every stage shrinks; no stage is named, so that the last one is given."""
    c.model(
        "RTDetrResNetBackbone",
        T.RTDetrResNetConfig(
            num_channels=1,
            embedding_size=6,
            hidden_sizes=[10, 10],
            depths=[1, 2],
            layer_type="basic",
            downsample_in_first_stage=True,
        ),
    )
    c.golden({"pixel_values": normal(1, 1, 48, 80)})


# ------------------------------------------------------------------ rt_detr
def _backbone(**options: Any) -> dict[str, Any]:
    return {
        "model_type": "rt_detr_resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 12, 16, 20],
        "depths": [1, 2, 1, 1],
        "layer_type": "basic",
        "out_indices": [2, 3, 4],
        **options,
    }


def _processor(c: Case, **settings: Any) -> None:
    c.pre(
        image_processor_type="RTDetrImageProcessor",
        **{
            "do_normalize": False,
            "do_pad": False,
            "do_rescale": True,
            "do_resize": True,
            "resample": 2,
            "rescale_factor": 1 / 255,
            "format": "coco_detection",
            "do_convert_annotations": True,
            **IMNET,
            **settings,
        },
    )


@case
def rt_detr_b(c: Case) -> None:
    """PekingU/rtdetr_r18vd's kind: the first version, with a fourth level, and norms in front."""
    c.model(
        "RTDetrForObjectDetection",
        T.RTDetrConfig(
            backbone_config=_backbone(),
            encoder_hidden_dim=24,
            encoder_in_channels=[12, 16, 20],
            encoder_layers=2,
            encoder_ffn_dim=40,
            encoder_attention_heads=2,
            encode_proj_layers=[1, 2],
            positional_encoding_temperature=20,
            encoder_activation_function="relu",
            activation_function="gelu",
            normalize_before=True,
            hidden_expansion=0.5,
            d_model=40,
            num_queries=14,
            decoder_in_channels=[24, 24, 24],
            decoder_ffn_dim=36,
            num_feature_levels=4,
            decoder_n_points=3,
            decoder_layers=2,
            decoder_attention_heads=5,
            decoder_activation_function="gelu",
            num_denoising=0,
            layer_norm_eps=1e-4,
            batch_norm_eps=1e-3,
            **named(*THINGS),
        ),
    )
    _processor(c, size={"height": 96, "width": 160}, do_normalize=True)
    c.golden({"pixel_values": _pixels(2, 3, 96, 160)})


@case
def rt_detr_v2_b(c: Case) -> None:
    """By whole cells; anchors of one size of picture, no places in the encoder, heads stored twice."""
    c.model(
        "RTDetrV2ForObjectDetection",
        T.RTDetrV2Config(
            backbone_config=_backbone(layer_type="bottleneck", hidden_sizes=[12, 16, 24, 32], out_indices=[3, 4]),
            encoder_hidden_dim=16,
            encoder_in_channels=[24, 32],
            feat_strides=[16, 32],
            encode_proj_layers=[1],
            encoder_ffn_dim=24,
            encoder_attention_heads=4,
            eval_size=96,
            d_model=16,
            num_queries=9,
            decoder_in_channels=[16, 16],
            decoder_ffn_dim=32,
            num_feature_levels=2,
            decoder_n_points=2,
            decoder_n_levels=2,
            decoder_offset_scale=0.3,
            decoder_method="discrete",
            decoder_layers=2,
            decoder_attention_heads=2,
            anchor_image_size=[96, 128],
            **named(*THINGS[:3]),
        ),
    )
    file = c.folder / "model.safetensors"
    stored = load_file(file)
    heads = {key: tensor for key, tensor in stored.items() if "class_embed" in key or "bbox_embed" in key}
    stored |= {key.removeprefix("model.decoder."): tensor.clone() for key, tensor in heads.items()}
    save_file(stored, file, metadata={"format": "pt"})
    _processor(c, size={"height": 96, "width": 128})
    c.golden({"pixel_values": _pixels(1, 3, 96, 128)})


# ------------------------------------------------------------------ detr
def _masked(height: int, width: int, rows: int) -> dict[str, torch.Tensor]:
    """Pictures of which the second has padding below and to the right."""
    mask = torch.ones(rows, height, width, dtype=torch.int64)
    mask[1:, height - height // 3 :] = 0
    mask[1:, :, width - width // 4 :] = 0
    return {"pixel_values": normal(rows, 3, height, width), "pixel_mask": mask}


@torch.no_grad()
def _frozen_norms(c: Case) -> None:
    """Redraw the weights and biases of the batch norms, which are buffers in these detectors."""
    for name, buffer in c.m.named_buffers():
        if name.endswith((".weight", ".bias")):
            buffer.copy_(redrawn(name, buffer))
    c.m.save_pretrained(c.folder)


@case
def detr(c: Case) -> None:
    """facebook/detr-resnet-50's kind; the older spelling of sizes."""
    c.model(
        "DetrForObjectDetection",
        T.DetrConfig(
            backbone_config=T.ResNetConfig(
                embedding_size=8,
                hidden_sizes=[8, 12, 16, 20],
                depths=[1, 2, 1, 1],
                out_features=["stage2", "stage4"],
            ),
            use_timm_backbone=False,
            d_model=32,
            num_queries=7,
            encoder_layers=2,
            encoder_ffn_dim=48,
            encoder_attention_heads=4,
            decoder_layers=2,
            decoder_ffn_dim=40,
            decoder_attention_heads=2,
            **named(*THINGS),
        ),
    )
    _frozen_norms(c)
    c.pre(
        feature_extractor_type="DetrFeatureExtractor",
        do_normalize=True,
        do_resize=True,
        format="coco_detection",
        size=96,
        max_size=160,
        **IMNET,
    )
    c.golden(_masked(128, 160, 2))


@case
def detr_b(c: Case) -> None:
    """Learned positions, norms between the layers, another backbone, which ends before its last stage."""
    c.model(
        "DetrForObjectDetection",
        T.DetrConfig(
            backbone_config=T.ResNetConfig(
                embedding_size=6,
                hidden_sizes=[10, 12, 16],
                depths=[1, 1, 1],
                layer_type="basic",
                out_features=["stage2"],
            ),
            use_timm_backbone=False,
            d_model=24,
            num_queries=5,
            encoder_layers=1,
            encoder_ffn_dim=40,
            encoder_attention_heads=2,
            decoder_layers=3,
            decoder_ffn_dim=32,
            decoder_attention_heads=3,
            activation_function="gelu",
            position_embedding_type="learned",
            auxiliary_loss=True,
            **named(*THINGS[:3]),
        ),
    )
    _frozen_norms(c)
    c.pre(
        image_processor_type="DetrImageProcessor",
        do_normalize=True,
        do_pad=True,
        do_rescale=True,
        do_resize=True,
        resample=2,
        rescale_factor=1 / 255,
        size={"shortest_edge": 64, "longest_edge": 128},
        format="coco_detection",
        **IMNET,
    )
    c.golden(_masked(72, 88, 2))


# ------------------------------------------------------------------ deformable_detr
@case
def deformable_detr(c: Case) -> None:
    """SenseTime/deformable-detr's kind: one head for all layers, stored for each; a map more than the backbone has."""
    c.model(
        "DeformableDetrForObjectDetection",
        T.DeformableDetrConfig(
            backbone_config=T.ResNetConfig(
                embedding_size=8,
                hidden_sizes=[8, 12, 16],
                depths=[1, 2, 1],
                out_features=["stage2", "stage3"],
            ),
            use_timm_backbone=False,
            d_model=32,
            num_queries=7,
            num_feature_levels=4,
            encoder_layers=2,
            encoder_ffn_dim=48,
            encoder_attention_heads=4,
            encoder_n_points=3,
            decoder_layers=2,
            decoder_ffn_dim=40,
            decoder_attention_heads=2,
            decoder_n_points=2,
            **named(*THINGS),
        ),
    )
    _frozen_norms(c)
    file = c.folder / "model.safetensors"
    stored = load_file(file)
    heads = {key: tensor for key, tensor in stored.items() if key.startswith(("class_embed.0.", "bbox_embed.0."))}
    stored |= {key.replace("_embed.0.", "_embed.1."): tensor.clone() for key, tensor in heads.items()}
    save_file(stored, file, metadata={"format": "pt"})
    c.pre(
        feature_extractor_type="DeformableDetrFeatureExtractor",
        do_normalize=True,
        do_resize=True,
        format="coco_detection",
        size=96,
        max_size=160,
        **IMNET,
    )
    c.golden(_masked(128, 160, 2))


@case
def deformable_detr_b(c: Case) -> None:
    """Boxes are refined from layer to layer; learned positions, as many maps as the backbone has."""
    model = c.model(
        "DeformableDetrForObjectDetection",
        T.DeformableDetrConfig(
            backbone_config=T.ResNetConfig(
                embedding_size=6,
                hidden_sizes=[10, 12],
                depths=[1, 1],
                layer_type="basic",
                out_features=["stage1", "stage2"],
            ),
            use_timm_backbone=False,
            d_model=64,
            num_queries=5,
            num_feature_levels=2,
            encoder_layers=1,
            encoder_ffn_dim=40,
            encoder_attention_heads=2,
            encoder_n_points=2,
            decoder_layers=3,
            decoder_ffn_dim=32,
            decoder_attention_heads=4,
            decoder_n_points=3,
            activation_function="gelu",
            position_embedding_type="learned",
            with_box_refine=True,
            tie_word_embeddings=False,
            **named(*THINGS[:3]),
        ),
    )
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith(("sampling_offsets.weight", "layers.2.weight")):
                tensor.mul_(0.2)  # so that rounding is not refined to other boxes
    model.model.decoder.bbox_embed.load_state_dict(model.bbox_embed.state_dict())
    _frozen_norms(c)
    c.pre(
        image_processor_type="DeformableDetrImageProcessor",
        do_normalize=True,
        do_pad=True,
        do_rescale=True,
        do_resize=True,
        resample=2,
        rescale_factor=1 / 255,
        size={"shortest_edge": 64, "longest_edge": 128},
        format="coco_detection",
        **IMNET,
    )
    c.golden(_masked(72, 88, 2))


# ------------------------------------------------------------------ yolos
@case
def yolos(c: Case) -> None:
    """hustvl/yolos-small: positions between layers; the older spelling of sizes."""
    c.model(
        "YolosForObjectDetection",
        T.YolosConfig(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=48,
            image_size=[48, 80],
            patch_size=8,
            num_detection_tokens=7,
            **named(*THINGS),
        ),
    )
    c.pre(
        feature_extractor_type="YolosFeatureExtractor",
        do_normalize=True,
        do_resize=True,
        format="coco_detection",
        size=64,
        max_size=96,
        **IMNET,
    )
    c.golden({"pixel_values": normal(2, 3, 64, 96)})


@case
def yolos_b(c: Case) -> None:
    """hustvl/yolos-tiny: no positions between layers, no biases in front of the attention."""
    c.model(
        "YolosForObjectDetection",
        T.YolosConfig(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=40,
            hidden_act="relu",
            layer_norm_eps=1e-5,
            image_size=[64, 48],
            patch_size=16,
            qkv_bias=False,
            num_detection_tokens=5,
            use_mid_position_embeddings=False,
            **named(*THINGS[:3]),
        ),
    )
    c.pre(
        image_processor_type="YolosImageProcessor",
        do_normalize=True,
        do_pad=True,
        do_rescale=True,
        do_resize=True,
        resample=2,
        rescale_factor=1 / 255,
        size={"shortest_edge": 64, "longest_edge": 128},
        format="coco_detection",
        **IMNET,
    )
    c.golden({"pixel_values": normal(1, 3, 64, 80)})
