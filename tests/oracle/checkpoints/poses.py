"""Tiny models of poses and videos in other shapes than those of `vision.py`."""

from __future__ import annotations

import json

import torch
import transformers as T

from tests.oracle.checkpoints.case import HALF, IMNET, Case, case, labels, named, normal, write_json


@case
def vitpose_b(c: Case) -> None:
    """Few experts, a simple head, and a layer after the one that the head reads."""
    c.model(
        "VitPoseForPoseEstimation",
        T.VitPoseConfig(
            backbone_config={
                "model_type": "vitpose_backbone",
                "image_size": [32, 48],
                "patch_size": [16, 8],
                "hidden_size": 40,
                "num_hidden_layers": 3,
                "num_attention_heads": 5,
                "mlp_ratio": 2,
                "num_experts": 3,
                "part_features": 8,
                "hidden_act": "relu",
                "qkv_bias": False,
                "layer_norm_eps": 1e-6,
                "out_indices": [-2],
            },
            scale_factor=3,
            use_simple_decoder=True,
            **named("Nose", "L_Paw", "R_Paw", "Tail", "L_Ear"),
        ),
    )
    # As the Hub's files have it: lines between the keypoints, and no statement of what the backbone is loaded from.
    data = json.loads((c.folder / "config.json").read_text())
    write_json(c.folder, "config.json", {**data, "edges": [[0, 1], [0, 2]], "use_timm_backbone": False})
    c.pre(image_processor_type="VitPoseImageProcessor", size={"height": 32, "width": 48}, **HALF)
    c.golden({"pixel_values": normal(3, 3, 32, 48), "dataset_index": torch.tensor([2, 0, 1])})


@case
def videomae_b(c: Case) -> None:
    """Pre-trained with a norm after the encoder, without biases of queries and values, on tubelets of three frames."""
    sizes = {"hidden_size": 40, "num_attention_heads": 5, "num_hidden_layers": 2, "intermediate_size": 64}
    decoder = {"decoder_hidden_size": 24, "decoder_num_attention_heads": 3, "decoder_num_hidden_layers": 1}
    video = {"image_size": [16, 24], "patch_size": 8, "num_frames": 6, "tubelet_size": 3}
    options = {"decoder_intermediate_size": 40, "use_mean_pooling": False, "qv_bias": False, "hidden_act": "relu"}
    c.model("VideoMAEForPreTraining", T.VideoMAEConfig(**sizes, **decoder, **video, **options))
    _crop(c, 16, 24)
    mask = torch.zeros(2, 12, dtype=torch.bool)
    mask[0, [0, 3, 4, 9, 11]] = True
    mask[1, [1, 2, 5, 6, 10]] = True
    c.golden({"pixel_values": normal(2, 6, 3, 16, 24), "bool_masked_pos": mask})


@case
def videomae_cls_b(c: Case) -> None:
    """A classifier that reads the first tubelet; patches that are not square, and a frame that is left over."""
    sizes = {"hidden_size": 40, "num_attention_heads": 5, "num_hidden_layers": 2, "intermediate_size": 64}
    video = {"image_size": [24, 16], "patch_size": [12, 8], "num_frames": 5, "tubelet_size": 2}
    options = {"use_mean_pooling": False, "layer_norm_eps": 1e-6, "problem_type": "multi_label_classification"}
    c.model("VideoMAEForVideoClassification", T.VideoMAEConfig(**sizes, **video, **options, **labels(3, "gesture ")))
    data = json.loads((c.folder / "config.json").read_text())
    write_json(c.folder, "config.json", {**data, "qkv_bias": data["qv_bias"]})  # as the Hub's files have it
    _crop(c, 24, 16)
    c.golden({"pixel_values": normal(2, 5, 3, 24, 16)})


def _crop(c: Case, height: int, width: int) -> None:
    size = {"height": height, "width": width}
    kind = "VideoMAEFeatureExtractor"  # the older name
    c.pre(feature_extractor_type=kind, size={"shortest_edge": max(size.values())}, crop_size=size, resample=2, **IMNET)
