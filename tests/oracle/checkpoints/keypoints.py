"""Tiny models that find and match keypoints, of other shapes than those of `vision`."""

from __future__ import annotations

from typing import Any

import torch
import transformers as T

from tests.oracle.checkpoints.case import Case, case

_DETECTOR: dict[str, Any] = {
    "encoder_hidden_sizes": [4, 8, 8, 12],
    "decoder_hidden_size": 16,
    "descriptor_decoder_dim": 24,
    "keypoint_threshold": 0.016,
    "nms_radius": 2,
    "border_removal_distance": 6,
}


def _noise(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


@case
def superpoint_b(c: Case) -> None:
    """Other widths, the 40 best keypoints, another radius and border."""
    c.model("SuperPointForKeypointDetection", T.SuperPointConfig(**_DETECTOR, max_keypoints=40))
    c.pre(
        image_processor_type="SuperPointImageProcessor",
        do_grayscale=True,
        do_resize=True,
        do_rescale=True,
        size={"height": 64, "width": 104},
    )
    c.golden({"pixel_values": _noise(3, 3, 64, 104)})


@case
def superglue_b(c: Case) -> None:
    """Layers in another order, three heads, few iterations, a threshold, keypoints that differ in number."""
    c.model(
        "SuperGlueForKeypointMatching",
        T.SuperGlueConfig(
            keypoint_detector_config={"model_type": "superpoint", **_DETECTOR, "keypoint_threshold": 0.026},
            hidden_size=24,
            keypoint_encoder_sizes=[8, 12],
            gnn_layers_types=["cross", "self", "self"],
            num_attention_heads=3,
            sinkhorn_iterations=7,
            matching_threshold=0.009,
        ),
    )
    c.pre(
        image_processor_type="SuperGlueImageProcessor",
        do_resize=True,
        do_rescale=True,
        size={"height": 64, "width": 104},
    )
    x = _noise(1, 1, 3, 64, 104)
    c.golden({"pixel_values": torch.cat([x, (0.5 * x).roll(5, -1)], 1)})
