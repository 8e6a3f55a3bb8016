"""LayoutLMv3 of other shapes and switches: two types, no picture, no biases by distance, a head of two layers."""

from __future__ import annotations

from typing import Any

import transformers as T

from tests.oracle.checkpoints.case import HALF, Case, case, labels, normal
from tests.oracle.checkpoints.tokenizers import roberta_tok

WORDS = ["Invoice", "total:", "42.50", "due", "7/12"]
BOXES = [[10, 20, 200, 40], [10, 60, 150, 80], [160, 60, 300, 80], [500, 900, 480, 1000], [0, 0, 1000, 1000]]


def _documents(c: Case, head: str, **settings: Any) -> None:
    t = c.tok(roberta_tok(T.LayoutLMv3Tokenizer, add_prefix_space=True), "LayoutLMv3TokenizerFast")
    shape = {
        "hidden_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 5,
        "intermediate_size": 56,
        "coordinate_size": 6,
        "shape_size": 8,
        "max_position_embeddings": 80,
        "type_vocab_size": 2,
        "input_size": 36,
        "patch_size": 12,
        "rel_pos_bins": 12,
        "max_rel_pos": 9,
        "rel_2d_pos_bins": 20,
        "max_rel_2d_pos": 300,
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-6,
    }
    cfg = T.LayoutLMv3Config(**{**shape, "vocab_size": len(t), **settings})
    c.model(head, cfg)
    c.pre(
        feature_extractor_type="LayoutLMv3FeatureExtractor",
        apply_ocr=False,
        do_normalize=True,
        do_resize=True,
        resample=2,
        size=cfg.input_size,
        **HALF,
    )
    e = t("what is due?", WORDS, boxes=BOXES, return_tensors="pt")
    pixels = {"pixel_values": normal(1, 3, cfg.input_size, cfg.input_size)} if cfg.visual_embed else {}
    c.golden({**dict(e), **pixels})


@case
def layoutlmv3_qa_b(c: Case) -> None:
    _documents(c, "LayoutLMv3ForQuestionAnswering", **labels(2))


@case
def layoutlmv3_seqcls(c: Case) -> None:
    _documents(
        c,
        "LayoutLMv3ForSequenceClassification",
        visual_embed=False,
        has_spatial_attention_bias=False,
        **labels(3),
    )


@case
def layoutlmv3_tokcls_b(c: Case) -> None:
    """A bias by distance on the page alone, which nothing adds."""
    _documents(
        c, "LayoutLMv3ForTokenClassification", has_relative_attention_bias=False, type_vocab_size=1, **labels(11)
    )
