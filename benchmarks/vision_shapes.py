"""The models of pictures that are timed: configurations of the real checkpoints with random weights, and their inputs.

`config` is what differs from the defaults of transformers' class, which are mostly the published checkpoint's.
`processor` is its preprocessor_config.json. `picture` is the size (width, height) of the JPEG file that a pipeline
reads. `part` is the graph that is timed of a model of several.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.oracle.checkpoints.case import HALF, IMNET

_SWIN_L = {
    "model_type": "swin",
    "embed_dim": 192,
    "depths": [2, 2, 18, 2],
    "num_heads": [6, 12, 24, 48],
    "window_size": 12,
    "image_size": 384,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
_DINOV2_L = {
    "model_type": "dinov2",
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 16,
    "image_size": 384,
    "use_mask_token": False,
}
_ADE = {str(n): f"thing {n}" for n in range(150)}
_BODY = {str(n): f"joint {n}" for n in range(17)}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """`inputs`: port -> its shape, or the number of tokens of a text. `forward`: the method that is timed."""

    task: str
    model: str
    inputs: Mapping[str, tuple[int, ...]]
    config: Mapping[str, Any] = field(default_factory=dict)
    processor: Mapping[str, Any] = field(default_factory=dict)
    picture: tuple[int, int] = (640, 480)
    part: str = ""
    forward: str = ""
    portable: bool = True
    tiny: str = ""  # the tiny checkpoint whose tokenizer and other files it takes


def _resized(kind: str, height: int, width: int, **settings: Any) -> dict[str, Any]:
    return {
        "image_processor_type": f"{kind}ImageProcessor",
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "resample": 2,
        "size": {"height": height, "width": width},
        **settings,
    }


SHAPES: dict[str, Shape] = {
    "SAM ViT-B, encoder": Shape(
        task="mask-generation",
        model="SamModel",
        inputs={"pixel_values": (1, 3, 1024, 1024)},
        processor={
            **_resized("Sam", 0, 0, do_normalize=True, do_pad=True, do_convert_rgb=True, **IMNET),
            "size": {"longest_edge": 1024},
            "pad_size": {"height": 1024, "width": 1024},
            "mask_size": {"longest_edge": 256},
            "mask_pad_size": {"height": 256, "width": 256},
        },
        part="vision_encoder",
        forward="get_image_embeddings",
    ),
    "RT-DETRv2-R50": Shape(
        task="object-detection",
        model="RTDetrV2ForObjectDetection",
        inputs={"pixel_values": (1, 3, 640, 640)},
        config={"num_labels": 80},
        processor=_resized("RTDetr", 640, 640, do_normalize=False, do_pad=False, **IMNET),
    ),
    "DepthPro": Shape(
        task="depth-estimation",
        model="DepthProForDepthEstimation",
        inputs={"pixel_values": (1, 3, 1536, 1536)},
        config={
            "use_fov_model": True,
            **{f"{name}_model_config": _DINOV2_L for name in ("fov", "image", "patch")},
        },
        processor=_resized("DepthPro", 1536, 1536, do_normalize=True, antialias=False, **HALF),
    ),
    "VitPose-base": Shape(
        task="pose-estimation",
        model="VitPoseForPoseEstimation",
        inputs={"pixel_values": (8, 3, 256, 192)},
        config={
            "backbone_config": {"model_type": "vitpose_backbone", "out_features": ["stage12"], "out_indices": [12]},
            "use_simple_decoder": True,
            "id2label": _BODY,
        },
        processor=_resized(
            *("VitPose", 256, 192), do_affine_transform=True, do_normalize=True, normalize_factor=200.0, **IMNET
        ),
    ),
    "OneFormer Swin-L": Shape(
        task="image-segmentation",
        model="OneFormerForUniversalSegmentation",
        inputs={"pixel_values": (1, 3, 512, 672), "task_inputs": (1, 77)},
        config={"backbone_config": _SWIN_L, "num_queries": 250, "is_training": False, "id2label": _ADE},
        processor={"image_processor_type": "OneFormerImageProcessor"},
        tiny="oneformer",
    ),
    "SegFormer-B0": Shape(
        task="image-segmentation",
        model="SegformerForSemanticSegmentation",
        inputs={"pixel_values": (1, 3, 512, 512)},
        config={"id2label": _ADE},
        processor=_resized("Segformer", 512, 512, do_normalize=True, do_reduce_labels=True, **IMNET),
    ),
    "SuperPoint 640 x 480": Shape(
        task="keypoint-detection",
        model="SuperPointForKeypointDetection",
        inputs={"pixel_values": (1, 3, 480, 640)},
        processor=_resized("SuperPoint", 480, 640),
    ),
    "VideoMAE-base": Shape(
        task="video-classification",
        model="VideoMAEForVideoClassification",
        inputs={"pixel_values": (1, 16, 3, 224, 224)},
        config={"num_labels": 400},
        processor={
            **_resized("VideoMAE", 0, 0, do_center_crop=True, do_normalize=True, **IMNET),
            "size": {"shortest_edge": 224},
            "crop_size": {"height": 224, "width": 224},
        },
    ),
}
