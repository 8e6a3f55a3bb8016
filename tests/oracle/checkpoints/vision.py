"""Tiny vision models."""

from __future__ import annotations

from typing import Any

import torch
import transformers as T

from tests.oracle.checkpoints.case import HALF, IMNET, Case, case, labels, named, normal, write_json
from tests.oracle.checkpoints.depth import lift
from tests.oracle.checkpoints.tokenizers import clip_tok

LABELS = ("cat", "dog", "house", "river", "mountain", "car", "tree")


# ------------------------------------------------------------------ dinov2
def _dino(**options: Any) -> Any:
    return T.Dinov2Config(
        **{
            "hidden_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "mlp_ratio": 4,
            "image_size": 70,
            "patch_size": 14,
            "layerscale_value": 1.0,
            **options,
        }
    )


def _bit(c: Case, sz: int = 42) -> None:
    c.pre(
        image_processor_type="BitImageProcessor",
        do_center_crop=True,
        do_convert_rgb=True,
        do_normalize=True,
        do_rescale=True,
        do_resize=True,
        crop_size={"height": sz, "width": sz},
        size={"shortest_edge": sz + 6},
        resample=3,
        rescale_factor=1 / 255,
        **IMNET,
    )


@case
def dinov2(c: Case) -> None:
    """facebook/dinov2-base: the grid of positions is larger than the crop, so it is interpolated."""
    c.model("Dinov2Model", _dino())
    _bit(c)
    c.golden({"pixel_values": normal(2, 3, 42, 42)})


@case
def dinov2_cls(c: Case) -> None:
    """facebook/dinov2-small-imagenet1k-1-layer."""
    c.model("Dinov2ForImageClassification", _dino(**labels(10)))
    _bit(c)
    c.golden({"pixel_values": normal(1, 3, 42, 42)})


@case
def dinov2_giant(c: Case) -> None:
    """Swiglu ffn variant."""
    c.model("Dinov2Model", _dino(use_swiglu_ffn=True))
    _bit(c)
    c.golden({"pixel_values": normal(1, 3, 42, 56)})


@case
def dinov2_b(c: Case) -> None:
    """No bias in q, k, v; patches of 8, a picture that is not square, old processor spelling."""
    c.model(
        "Dinov2ForImageClassification",
        T.Dinov2Config(
            hidden_size=36,
            num_hidden_layers=4,
            num_attention_heads=3,
            mlp_ratio=3,
            image_size=48,
            patch_size=8,
            qkv_bias=False,
            hidden_act="gelu_pytorch_tanh",
            layer_norm_eps=1e-5,
            **named(*LABELS[:7]),
        ),
    )
    c.pre(
        feature_extractor_type="BitFeatureExtractor",
        do_resize=True,
        size=40,
        do_center_crop=True,
        crop_size=32,
        resample=2,
        **IMNET,
    )
    c.golden({"pixel_values": normal(2, 3, 32, 56)})


@case
def dinov2_giant_b(c: Case) -> None:
    """SwiGLU of another width with a classifier."""
    c.model(
        "Dinov2ForImageClassification",
        T.Dinov2Config(
            hidden_size=40,
            num_hidden_layers=2,
            num_attention_heads=5,
            mlp_ratio=2,
            image_size=42,
            patch_size=14,
            use_swiglu_ffn=True,
            **named(*LABELS[:3]),
        ),
    )
    c.image_processor("BitImageProcessor", size={"shortest_edge": 48}, crop_size={"height": 42, "width": 42}, **IMNET)
    c.golden({"pixel_values": normal(1, 3, 70, 28)})


@case
def dinov2_registers(c: Case) -> None:
    """facebook/dinov2-with-registers-small: positions shrink with antialiasing."""
    c.model(
        "Dinov2WithRegistersModel",
        T.Dinov2WithRegistersConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=70,
            patch_size=14,
            num_register_tokens=4,
        ),
    )
    c.image_processor("BitImageProcessor", size={"shortest_edge": 48}, crop_size={"height": 42, "width": 42}, **IMNET)
    c.golden({"pixel_values": normal(2, 3, 42, 98)})


@case
def dinov2_registers_cls(c: Case) -> None:
    c.model(
        "Dinov2WithRegistersForImageClassification",
        T.Dinov2WithRegistersConfig(
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=28,
            patch_size=7,
            num_register_tokens=2,
            use_swiglu_ffn=True,
            **named(*LABELS[:4]),
        ),
    )
    c.image_processor("BitImageProcessor", size={"shortest_edge": 30}, crop_size={"height": 28, "width": 28}, **IMNET)
    c.golden({"pixel_values": normal(1, 3, 28, 28)})


# ------------------------------------------------------------------ vit
@case
def vit_cls(c: Case) -> None:
    """google/vit-base-patch16-224."""
    c.model(
        "ViTForImageClassification",
        T.ViTConfig(
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=96,
            image_size=32,
            patch_size=8,
            **named(*LABELS[:7]),
        ),
    )
    c.image_processor("ViTImageProcessor", size={"height": 32, "width": 32}, resample=2, **HALF)
    c.golden({"pixel_values": normal(2, 3, 32, 32)})


@case
def vit_b(c: Case) -> None:
    """With a pooler of another width and activation, a picture that is not square."""
    c.model(
        "ViTModel",
        T.ViTConfig(
            hidden_size=40,
            num_hidden_layers=2,
            num_attention_heads=5,
            intermediate_size=72,
            hidden_act="relu",
            layer_norm_eps=1e-6,
            image_size=[24, 36],
            patch_size=[12, 6],
            qkv_bias=False,
            pooler_output_size=20,
            pooler_act="relu",
        ),
    )
    c.image_processor("ViTImageProcessor", size={"height": 24, "width": 36}, resample=3, **IMNET)
    c.golden({"pixel_values": normal(2, 3, 24, 36)})


# ------------------------------------------------------------------ sam
@case
def sam(c: Case) -> None:
    """facebook/sam-vit-base: window + global attention, decomposed rel-pos, two-way mask decoder."""
    c.model(
        "SamModel",
        T.SamConfig(
            vision_config={
                "hidden_size": 32,
                "output_channels": 32,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "image_size": 128,
                "patch_size": 16,
                "window_size": 3,
                "global_attn_indexes": [1, 3],
                "num_pos_feats": 16,
                "mlp_dim": 64,
            },
            prompt_encoder_config={
                "hidden_size": 32,
                "image_size": 128,
                "patch_size": 16,
                "mask_input_channels": 16,
                "num_point_embeddings": 4,
            },
            mask_decoder_config={
                "hidden_size": 32,
                "mlp_dim": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "attention_downsample_rate": 2,
                "num_multimask_outputs": 3,
                "iou_head_depth": 3,
                "iou_head_hidden_dim": 32,
            },
        ),
    )
    c.pre(
        image_processor_type="SamImageProcessor",
        processor_class="SamProcessor",
        do_convert_rgb=True,
        do_normalize=True,
        do_pad=True,
        do_rescale=True,
        do_resize=True,
        pad_size={"height": 128, "width": 128},
        size={"longest_edge": 128},
        mask_pad_size={"height": 32, "width": 32},
        mask_size={"longest_edge": 32},
        resample=2,
        rescale_factor=1 / 255,
        **IMNET,
    )
    c.golden(
        {
            "pixel_values": normal(1, 3, 128, 128),
            "input_points": torch.tensor([[[[40.0, 60.0], [100.0, 20.0]]]]),
            "input_labels": torch.tensor([[[1, 0]]]),
        }
    )


@case
def sam_b(c: Case) -> None:
    """Windows that do not fill the grid, other depths and widths, no bias in q, k and v, two prompts."""
    c.model(
        "SamModel",
        T.SamConfig(
            vision_config={
                "hidden_size": 36,
                "output_channels": 24,
                "num_hidden_layers": 3,
                "num_attention_heads": 3,
                "image_size": 80,
                "patch_size": 16,
                "window_size": 2,
                "global_attn_indexes": [0],
                "num_pos_feats": 12,
                "mlp_dim": 56,
                "qkv_bias": False,
            },
            prompt_encoder_config={
                "hidden_size": 24,
                "image_size": 80,
                "patch_size": 16,
                "mask_input_channels": 8,
                "num_point_embeddings": 4,
            },
            mask_decoder_config={
                "hidden_size": 24,
                "mlp_dim": 40,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "attention_downsample_rate": 2,
                "num_multimask_outputs": 2,
                "iou_head_depth": 2,
                "iou_head_hidden_dim": 20,
            },
        ),
    )
    c.pre(
        image_processor_type="SamImageProcessor",
        processor_class="SamProcessor",
        do_convert_rgb=True,
        do_normalize=True,
        do_pad=True,
        do_rescale=True,
        do_resize=True,
        pad_size={"height": 80, "width": 80},
        size={"longest_edge": 80},
        mask_pad_size={"height": 20, "width": 20},
        mask_size={"longest_edge": 20},
        resample=2,
        rescale_factor=1 / 255,
        **HALF,
    )
    c.golden(
        {
            "pixel_values": normal(1, 3, 80, 80),
            "input_points": torch.tensor([[[[40.0, 60.0]], [[10.0, 20.0]]]]),
            "input_labels": torch.tensor([[[1], [0]]]),
        }
    )


# ------------------------------------------------------------------ depth_pro
@case
def depth_pro(c: Case) -> None:
    """apple/DepthPro-hf: three DINOv2 encoders, multi-scale patches, fusion, FOV head."""
    d = {
        "model_type": "dinov2",
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "mlp_ratio": 4,
        "image_size": 32,
        "patch_size": 4,
        "use_mask_token": False,
    }
    c.model(
        "DepthProForDepthEstimation",
        T.DepthProConfig(
            fusion_hidden_size=16,
            patch_size=32,
            intermediate_hook_ids=[3, 1],
            intermediate_feature_dims=[16, 16],
            scaled_images_ratios=[0.25, 0.5, 1],
            scaled_images_overlap_ratios=[0.0, 0.5, 0.25],
            scaled_images_feature_dims=[32, 32, 24],
            merge_padding_value=1,
            use_fov_model=True,
            num_fov_head_layers=2,
            image_model_config=dict(d),
            patch_model_config=dict(d),
            fov_model_config=dict(d),
        ),
    )
    lift(c)
    c.pre(
        image_processor_type="DepthProImageProcessor",
        do_normalize=True,
        do_rescale=True,
        do_resize=True,
        antialias=False,
        resample=2,
        rescale_factor=1 / 255,
        size={"height": 128, "width": 128},
        **HALF,
    )
    c.golden({"pixel_values": normal(1, 3, 128, 128)})


# ------------------------------------------------------------------ superpoint
_SP = {
    "encoder_hidden_sizes": [8, 8, 16, 16],
    "decoder_hidden_size": 32,
    "keypoint_decoder_dim": 65,
    "descriptor_decoder_dim": 32,
    "keypoint_threshold": 0.005,
    "max_keypoints": -1,
    "nms_radius": 4,
    "border_removal_distance": 4,
}


@case
def superpoint(c: Case) -> None:
    """magic-leap-community/superpoint."""
    c.model("SuperPointForKeypointDetection", T.SuperPointConfig(**_SP))
    c.pre(
        image_processor_type="SuperPointImageProcessor",
        do_resize=True,
        do_rescale=True,
        rescale_factor=1 / 255,
        size={"height": 120, "width": 160},
    )
    c.golden({"pixel_values": torch.rand(1, 3, 120, 160, generator=torch.Generator().manual_seed(1))})


# ------------------------------------------------------------------ superglue
@case
def superglue(c: Case) -> None:
    """magic-leap-community/superglue_outdoor."""
    c.model(
        "SuperGlueForKeypointMatching",
        T.SuperGlueConfig(
            keypoint_detector_config=dict(model_type="superpoint", **dict(_SP, max_keypoints=64)),
            hidden_size=32,
            keypoint_encoder_sizes=[8, 16, 16, 32],
            gnn_layers_types=["self", "cross"] * 2,
            num_attention_heads=4,
            sinkhorn_iterations=100,
            matching_threshold=0.0,
        ),
    )
    c.pre(
        image_processor_type="SuperGlueImageProcessor",
        do_resize=True,
        do_rescale=True,
        do_grayscale=True,
        resample=2,
        rescale_factor=1 / 255,
        size={"height": 120, "width": 160},
    )
    x = torch.rand(1, 1, 3, 120, 160, generator=torch.Generator().manual_seed(1))
    c.golden({"pixel_values": torch.cat([x, x.roll(5, -1)], 1)})


# ------------------------------------------------------------------ rt_detr_v2
@case
def rt_detr_v2(c: Case) -> None:
    """PekingU/rtdetr_v2_r50vd: ResNet-D + hybrid encoder + deformable decoder."""
    c.model(
        "RTDetrV2ForObjectDetection",
        T.RTDetrV2Config(
            backbone_config={
                "model_type": "rt_detr_resnet",
                "num_channels": 3,
                "embedding_size": 16,
                "hidden_sizes": [16, 32, 48, 64],
                "depths": [1, 1, 2, 1],
                "layer_type": "bottleneck",
                "hidden_act": "relu",
                "downsample_in_first_stage": False,
                "downsample_in_bottleneck": False,
                "out_features": ["stage2", "stage3", "stage4"],
            },
            encoder_hidden_dim=32,
            encoder_in_channels=[32, 48, 64],
            encoder_layers=1,
            encoder_ffn_dim=64,
            encoder_attention_heads=4,
            d_model=32,
            num_queries=20,
            decoder_in_channels=[32, 32, 32],
            decoder_ffn_dim=64,
            num_feature_levels=3,
            decoder_n_points=4,
            decoder_n_levels=3,
            decoder_offset_scale=0.5,
            decoder_method="default",
            decoder_layers=2,
            decoder_attention_heads=4,
            anchor_image_size=None,
            **labels(8),
        ),
    )
    c.pre(
        image_processor_type="RTDetrImageProcessor",
        do_normalize=False,
        do_rescale=True,
        do_resize=True,
        do_pad=False,
        resample=2,
        rescale_factor=1 / 255,
        size={"height": 128, "width": 128},
        format="coco_detection",
        do_convert_annotations=True,
        **IMNET,
    )
    c.golden({"pixel_values": torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))})


# ------------------------------------------------------------------ vitpose
def _vitpose(c: Case, simple: bool, **backbone: Any) -> None:
    names = [
        "Nose",
        "L_Eye",
        "R_Eye",
        "L_Ear",
        "R_Ear",
        "L_Shoulder",
        "R_Shoulder",
        "L_Elbow",
        "R_Elbow",
        "L_Wrist",
        "R_Wrist",
        "L_Hip",
        "R_Hip",
        "L_Knee",
        "R_Knee",
        "L_Ankle",
        "R_Ankle",
    ]
    c.model(
        "VitPoseForPoseEstimation",
        T.VitPoseConfig(
            backbone_config={
                "model_type": "vitpose_backbone",
                "image_size": [64, 48],
                "patch_size": [16, 16],
                "hidden_size": 48,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "mlp_ratio": 4,
                "out_features": ["stage3"],
                "out_indices": [3],
                "part_features": 12,
                **backbone,
            },
            scale_factor=4,
            use_simple_decoder=simple,
            **named(*names),
        ),
    )
    c.pre(
        image_processor_type="VitPoseImageProcessor",
        do_affine_transform=True,
        do_normalize=True,
        do_rescale=True,
        normalize_factor=200.0,
        rescale_factor=1 / 255,
        size={"height": 64, "width": 48},
        **IMNET,
    )
    x = {"pixel_values": normal(2, 3, 64, 48)}
    if "num_experts" in backbone:
        x["dataset_index"] = torch.tensor([0, 3])
    c.golden(x)


@case
def vitpose(c: Case) -> None:
    """usyd-community/vitpose-base-simple."""
    _vitpose(c, True)


@case
def vitpose_classic(c: Case) -> None:
    """vitpose-base: deconvolution decoder."""
    _vitpose(c, False, hidden_size=24)


@case
def vitpose_plus(c: Case) -> None:
    """vitpose-plus-base: MoE by dataset index."""
    _vitpose(c, False, hidden_size=24, num_experts=6)


# ------------------------------------------------------------------ oneformer
@case
def oneformer(c: Case) -> None:
    """shi-labs/oneformer_ade20k_swin_large."""
    t = c.tok(clip_tok())
    n = 6
    from transformers.models.oneformer import modeling_oneformer as mo

    mo.requires_backends = lambda *_: None  # its loss, whose buffers are in the checkpoint, asks for scipy
    names = ["wall", "building", "sky", "floor", "tree", "person"]
    c.model(
        "OneFormerForUniversalSegmentation",
        T.OneFormerConfig(
            backbone_config={
                "model_type": "swin",
                "image_size": 64,
                "patch_size": 4,
                "embed_dim": 16,
                "depths": [1, 1, 2, 1],
                "num_heads": [1, 2, 2, 4],
                "window_size": 4,
                "drop_path_rate": 0.3,
                "use_absolute_embeddings": False,
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
            },
            num_queries=10,
            text_encoder_width=16,
            text_encoder_context_length=77,
            text_encoder_num_layers=1,
            text_encoder_vocab_size=len(t),
            text_encoder_n_ctx=4,
            conv_dim=64,
            mask_dim=64,
            hidden_dim=64,
            encoder_feedforward_dim=64,
            encoder_layers=2,
            decoder_layers=4,
            num_attention_heads=4,
            dim_feedforward=64,
            is_training=False,
            **named(*names),
        ),
    )
    write_json(
        c.folder, "ade20k_panoptic.json", {str(i): {"isthing": int(i > 3), "name": k} for i, k in enumerate(names)}
    )
    c.pre(
        image_processor_type="OneFormerImageProcessor",
        processor_class="OneFormerProcessor",
        do_normalize=True,
        do_reduce_labels=False,
        do_rescale=True,
        do_resize=True,
        ignore_index=255,
        num_labels=n,
        num_text=6,
        class_info_file="ade20k_panoptic.json",
        repo_path="shi-labs/oneformer_demo",
        resample=2,
        rescale_factor=1 / 255,
        size={"shortest_edge": 64, "longest_edge": 256},
        **IMNET,
    )
    c.proc(processor_class="OneFormerProcessor", max_seq_length=77, task_seq_length=77)
    ti = t("the task is semantic", padding="max_length", max_length=77, truncation=True, return_tensors="pt")[
        "input_ids"
    ]
    c.golden({"pixel_values": normal(1, 3, 64, 96), "task_inputs": ti})


# ------------------------------------------------------------------ videomae
def _vmae(**options: Any) -> Any:
    return T.VideoMAEConfig(
        **{
            "image_size": 32,
            "patch_size": 8,
            "num_frames": 4,
            "tubelet_size": 2,
            "hidden_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "decoder_hidden_size": 32,
            "decoder_num_hidden_layers": 2,
            "decoder_num_attention_heads": 4,
            "decoder_intermediate_size": 64,
            **options,
        }
    )


def _vmae_pre(c: Case) -> None:
    c.pre(
        image_processor_type="VideoMAEImageProcessor",
        do_center_crop=True,
        do_normalize=True,
        do_rescale=True,
        do_resize=True,
        crop_size={"height": 32, "width": 32},
        size={"shortest_edge": 32},
        resample=2,
        rescale_factor=1 / 255,
        **IMNET,
    )


@case
def videomae(c: Case) -> None:
    """MCG-NJU/videomae-large: pre-training head."""
    c.model("VideoMAEForPreTraining", _vmae())
    _vmae_pre(c)
    b = torch.zeros(1, 32, dtype=torch.bool)
    b[:, torch.randperm(32, generator=torch.Generator().manual_seed(0))[:24]] = True
    c.golden({"pixel_values": normal(1, 4, 3, 32, 32), "bool_masked_pos": b})


@case
def videomae_cls(c: Case) -> None:
    """MCG-NJU/videomae-base-finetuned-kinetics."""
    c.model("VideoMAEForVideoClassification", _vmae(**labels(6)))
    _vmae_pre(c)
    c.golden({"pixel_values": normal(1, 4, 3, 32, 32)})
