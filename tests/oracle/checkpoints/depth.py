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
