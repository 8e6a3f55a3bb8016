"""Tiny models that estimate depths, besides the first DepthPro in `vision`."""

from __future__ import annotations

import torch
import transformers as T

from tests.oracle.checkpoints.case import IMNET, Case, case, normal


@torch.no_grad()
def lift(c: Case) -> None:
    """Depths that the last activation does not cut off, and a field of view of some 40 degrees."""
    c.m.head.layers[4].bias += 8
    c.m.fov_model.head.layers[-1].bias += 40
    c.m.save_pretrained(c.folder)


@case
def depth_pro_b(c: Case) -> None:
    """Two scales and one hook, batch norms instead of biases, towers of unlike shape, of which one has registers."""
    c.model(
        "DepthProForDepthEstimation",
        T.DepthProConfig(
            fusion_hidden_size=20,
            patch_size=48,
            intermediate_hook_ids=[0],
            intermediate_feature_dims=[12],
            scaled_images_ratios=[0.5, 1],
            scaled_images_overlap_ratios=[0.0, 0.5],
            scaled_images_feature_dims=[24, 16],
            merge_padding_value=2,
            use_batch_norm_in_fusion_residual=True,
            use_bias_in_fusion_residual=False,
            use_fov_model=True,
            num_fov_head_layers=1,
            image_model_config={
                "model_type": "dinov2",
                "hidden_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 3,
                "mlp_ratio": 2,
                "image_size": 48,
                "patch_size": 8,
                "qkv_bias": False,
            },
            patch_model_config={
                "model_type": "dinov2_with_registers",
                "hidden_size": 28,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "mlp_ratio": 2,
                "image_size": 48,
                "patch_size": 12,
                "num_register_tokens": 2,
            },
            fov_model_config={
                "model_type": "dinov2",
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "mlp_ratio": 2,
                "image_size": 48,
                "patch_size": 16,
                "use_swiglu_ffn": True,
            },
        ),
    )
    lift(c)
    c.pre(
        image_processor_type="DepthProImageProcessorFast",
        do_normalize=True,
        do_rescale=True,
        do_resize=True,
        resample=2,
        rescale_factor=1 / 255,
        size={"height": 96, "width": 96},
        **IMNET,
    )
    c.golden({"pixel_values": normal(2, 3, 96, 96)})


@case
def depth_anything(c: Case) -> None:
    """depth-anything/Depth-Anything-V2-Small-hf: four states of a DINOv2, each in a size of its own."""
    c.model(
        "DepthAnythingForDepthEstimation",
        T.DepthAnythingConfig(
            backbone_config={
                "model_type": "dinov2",
                "hidden_size": 32,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "mlp_ratio": 2,
                "image_size": 70,
                "patch_size": 14,
                "out_indices": [1, 2, 3, 4],
                "reshape_hidden_states": False,
            },
            reassemble_hidden_size=32,
            neck_hidden_sizes=[8, 12, 16, 20],
            fusion_hidden_size=16,
            head_hidden_size=12,
        ),
    )
    c.image_processor(
        "DPTImageProcessor",
        ensure_multiple_of=14,
        keep_aspect_ratio=True,
        resample=3,
        size={"height": 70, "width": 70},
        **IMNET,
    )
    c.golden({"pixel_values": normal(2, 3, 42, 70)})


@case
def depth_anything_b(c: Case) -> None:
    """Metric depths of three states without their norm, of which the last layer's is none."""
    c.model(
        "DepthAnythingForDepthEstimation",
        T.DepthAnythingConfig(
            backbone_config={
                "model_type": "dinov2",
                "hidden_size": 24,
                "num_hidden_layers": 4,
                "num_attention_heads": 2,
                "mlp_ratio": 3,
                "image_size": 32,
                "patch_size": 8,
                "out_features": ["stem", "stage1", "stage3"],
                "apply_layernorm": False,
                "reshape_hidden_states": False,
            },
            patch_size=8,
            reassemble_hidden_size=24,
            reassemble_factors=[2, 1, 0.5],
            neck_hidden_sizes=[10, 12, 14],
            fusion_hidden_size=20,
            head_hidden_size=8,
            depth_estimation_type="metric",
            max_depth=20,
        ),
    )
    c.image_processor("DPTImageProcessor", ensure_multiple_of=8, resample=2, size={"height": 32, "width": 48}, **IMNET)
    c.golden({"pixel_values": normal(1, 3, 40, 24)})
