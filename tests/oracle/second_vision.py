"""Configurations of the vision families, in the manner of make_tiny.py and second.py: two of each, unlike in shape.

Widths, depths, patches and switches differ: biases, other activations, one picture that is not square, registers,
a head that is a regression, a pooler of another width, several texts and pictures at once.
"""

from __future__ import annotations

from typing import Any

import make_tiny as M
import transformers as T

LABELS = ("cat", "dog", "house", "river", "mountain", "car", "tree")


def labels(count: int) -> dict[str, Any]:
    names = dict(enumerate(LABELS[:count]))
    return {"id2label": names, "label2id": {name: n for n, name in names.items()}}


def processor(case: Any, kind: str, **settings: Any) -> None:
    case.pre(image_processor_type=kind, do_resize=True, do_rescale=True, do_normalize=True, **settings)


# ------------------------------------------------------------------ dinov2
@M.case
def dinov2_b(c: Any) -> None:  # no bias in q, k, v; patches of 8, a picture that is not square, old processor spelling
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
            **labels(7),
        ),
    )
    c.pre(
        feature_extractor_type="BitFeatureExtractor",
        do_resize=True,
        size=40,
        do_center_crop=True,
        crop_size=32,
        resample=2,
        **M.IMNET,
    )
    c.golden({"pixel_values": M.R(2, 3, 32, 56)})


@M.case
def dinov2_giant_b(c: Any) -> None:  # SwiGLU of another width with a classifier
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
            **labels(3),
        ),
    )
    processor(c, "BitImageProcessor", size={"shortest_edge": 48}, crop_size={"height": 42, "width": 42}, **M.IMNET)
    c.golden({"pixel_values": M.R(1, 3, 70, 28)})


@M.case
def dinov2_registers(c: Any) -> None:  # facebook/dinov2-with-registers-small: positions shrink with antialiasing
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
    processor(c, "BitImageProcessor", size={"shortest_edge": 48}, crop_size={"height": 42, "width": 42}, **M.IMNET)
    c.golden({"pixel_values": M.R(2, 3, 42, 98)})


@M.case
def dinov2_registers_cls(c: Any) -> None:
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
            **labels(4),
        ),
    )
    processor(c, "BitImageProcessor", size={"shortest_edge": 30}, crop_size={"height": 28, "width": 28}, **M.IMNET)
    c.golden({"pixel_values": M.R(1, 3, 28, 28)})


# ------------------------------------------------------------------ vit
@M.case
def vit_cls(c: Any) -> None:  # google/vit-base-patch16-224
    c.model(
        "ViTForImageClassification",
        T.ViTConfig(
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=96,
            image_size=32,
            patch_size=8,
            **labels(7),
        ),
    )
    processor(c, "ViTImageProcessor", size={"height": 32, "width": 32}, resample=2, **M.HALF)
    c.golden({"pixel_values": M.R(2, 3, 32, 32)})


@M.case
def vit_b(c: Any) -> None:  # with a pooler of another width and activation, a picture that is not square
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
    processor(c, "ViTImageProcessor", size={"height": 24, "width": 36}, resample=3, **M.IMNET)
    c.golden({"pixel_values": M.R(2, 3, 24, 36)})


# ------------------------------------------------------------------ clip and siglip
def towers(case: Any, tokenizer: Any, size: int, **padding: Any) -> None:
    texts = ["The small cat reads a book.", "a red house"]
    case.golden({**tokenizer(texts, return_tensors="pt", **padding), "pixel_values": M.R(3, 3, size, size)})


@M.case
def clip(c: Any) -> None:  # openai/clip-vit-base-patch32, with the eos_token_id 2 of its config
    t = c.tok(M.clip_tok())
    c.model(
        "CLIPModel",
        T.CLIPConfig(
            text_config={
                "vocab_size": len(t),
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "max_position_embeddings": 77,
                "bos_token_id": 0,
                "eos_token_id": 2,
            },
            vision_config={
                "hidden_size": 48,
                "intermediate_size": 96,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": 32,
                "patch_size": 8,
            },
            projection_dim=24,
        ),
    )
    processor(
        c,
        "CLIPImageProcessor",
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        resample=3,
        do_center_crop=True,
        do_convert_rgb=True,
        **M.CLIPN,
    )
    towers(c, t, 32, padding=True)


@M.case
def clip_b(c: Any) -> None:  # laion's: gelu, the tokenizer's own end of text, other depths
    t = c.tok(M.clip_tok())
    c.model(
        "CLIPModel",
        T.CLIPConfig(
            text_config={
                "vocab_size": len(t) + 3,
                "hidden_size": 40,
                "intermediate_size": 56,
                "num_hidden_layers": 2,
                "num_attention_heads": 5,
                "max_position_embeddings": 40,
                "hidden_act": "gelu",
                "bos_token_id": t.bos_token_id,
                "eos_token_id": t.eos_token_id,
            },
            vision_config={
                "hidden_size": 36,
                "intermediate_size": 80,
                "num_hidden_layers": 4,
                "num_attention_heads": 3,
                "image_size": 42,
                "patch_size": 14,
                "hidden_act": "gelu",
                "layer_norm_eps": 1e-6,
            },
            projection_dim=28,
        ),
    )
    c.pre(
        feature_extractor_type="CLIPFeatureExtractor",
        do_resize=True,
        do_normalize=True,
        size=42,
        crop_size=42,
        resample=3,
        do_center_crop=True,
        **M.CLIPN,
    )
    towers(c, t, 42, padding=True)


def siglip_case(c: Any, size: int, patch: int, width: int, depths: tuple[int, int], act: str) -> None:
    t = M.t5_tok(model_input_names=["input_ids"])  # as SigLIP's tokenizer, which gives no mask
    t.model_max_length = 64
    c.tok(t)
    tower = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 4, "hidden_act": act}
    c.model(
        "SiglipModel",
        T.SiglipConfig(
            text_config={**tower, "vocab_size": len(t), "max_position_embeddings": 64, "num_hidden_layers": depths[0]},
            vision_config={**tower, "image_size": size, "patch_size": patch, "num_hidden_layers": depths[1]},
        ),
    )
    processor(c, "SiglipImageProcessor", size={"height": size, "width": size}, resample=3, **M.HALF)
    texts = t(["The small cat.", "a red house"], padding="max_length", max_length=64, return_tensors="pt")
    c.golden({"input_ids": texts["input_ids"], "pixel_values": M.R(3, 3, size, size)})


@M.case
def siglip(c: Any) -> None:  # google/siglip-base-patch16-224
    siglip_case(c, 32, 8, 32, (2, 3), "gelu_pytorch_tanh")


@M.case
def siglip_b(c: Any) -> None:
    siglip_case(c, 42, 14, 48, (3, 2), "gelu")
