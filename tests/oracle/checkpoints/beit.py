"""Tiny BEiTs: numbers of distances in each layer, or shared by all; a mean, or the class token."""

from __future__ import annotations

import transformers as T
from safetensors.torch import load_file, save_file

from tests.oracle.checkpoints.case import HALF, Case, case, labels, normal


@case
def beit_cls(c: Case) -> None:
    """microsoft/beit-base-patch16-224."""
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
    options = {"image_size": 32, "patch_size": 8, "use_relative_position_bias": True, "use_mask_token": True}
    c.model("BeitForImageClassification", T.BeitConfig(**sizes, **options, **labels(7)))
    edges = {"height": 32, "width": 32}
    settings = {"size": edges, "crop_size": edges, "do_center_crop": False, "resample": 2, "do_reduce_labels": False}
    c.pre(feature_extractor_type="BeitFeatureExtractor", do_resize=True, do_normalize=True, **settings, **HALF)
    c.golden({"pixel_values": normal(2, 3, 32, 32)})
    # Older versions stored the places of the numbers as well.
    stored = load_file(c.folder / "model.safetensors")
    key = "beit.encoder.layer.1.attention.attention.relative_position_bias.relative_position_index"
    save_file({**stored, key: normal(17, 17).long()}, c.folder / "model.safetensors", {"format": "pt"})


@case
def beit_b(c: Case) -> None:
    """Pre-training's numbers, shared by all layers, with absolute positions, no LayerScale, and the class token."""
    sizes = {"hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 5, "intermediate_size": 64}
    options = {"image_size": 18, "patch_size": 6, "use_shared_relative_position_bias": True, "hidden_act": "relu"}
    more = {"use_absolute_position_embeddings": True, "layer_scale_init_value": 0.0, "use_mean_pooling": False}
    c.model("BeitModel", T.BeitConfig(**sizes, **options, **more, layer_norm_eps=1e-6))
    c.pre(image_processor_type="BeitImageProcessor", size={"height": 18, "width": 18}, do_center_crop=False, **HALF)
    c.golden({"pixel_values": normal(2, 3, 18, 18)})
    stored = load_file(c.folder / "model.safetensors")
    index = "encoder.relative_position_bias.relative_position_index"
    save_file({**stored, index: normal(10, 10).long()}, c.folder / "model.safetensors", {"format": "pt"})
