"""Tiny BART: summaries with a decoder as wide as the encoder, another of unlike sides, and the classes with heads."""

from __future__ import annotations

from typing import Any

import torch
import transformers as T

from tests.oracle.checkpoints.case import Case, case, named
from tests.oracle.checkpoints.tokenizers import roberta_tok


def bart_config(t: Any, **options: Any) -> Any:
    return T.BartConfig(
        **{
            "vocab_size": len(t),
            "d_model": 48,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 96,
            "decoder_ffn_dim": 96,
            "max_position_embeddings": 1024,
            "pad_token_id": 1,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "decoder_start_token_id": 2,
            "forced_eos_token_id": 2,
            **options,
        }
    )


@case
def bart(c: Case) -> None:
    """facebook/bart-large-cnn."""
    t = c.tok(roberta_tok(model_max_length=1024), "BartTokenizer")
    c.model(
        "BartForConditionalGeneration",
        bart_config(t),
        num_beams=4,
        max_length=142,
        min_length=56,
        length_penalty=2.0,
        no_repeat_ngram_size=3,
        early_stopping=True,
        forced_bos_token_id=0,
        forced_eos_token_id=2,
        decoder_start_token_id=2,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    e = dict(t("The old teacher reads a paper in the city.", return_tensors="pt"))
    c.golden(
        {**e, "decoder_input_ids": torch.tensor([[2, 0, 50, 60]])},
        {"num_beams": 2, "max_length": 14, "min_length": 5},
        gen_inputs=e,
    )


@case
def bart_b(c: Case) -> None:
    """Unlike sides, scaled embeddings, relu, a bias of the logits that is not 0."""
    t = c.tok(roberta_tok(model_max_length=128), "BartTokenizer")
    config = bart_config(
        t,
        d_model=64,
        encoder_layers=3,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=8,
        encoder_ffn_dim=64,
        decoder_ffn_dim=160,
        max_position_embeddings=128,
        activation_function="relu",
        scale_embedding=True,
    )
    c.model("BartForConditionalGeneration", config, decoder_start_token_id=2, forced_eos_token_id=2)
    e = dict(t(["Hello, world!", "The old teacher reads a paper in the city."], padding=True, return_tensors="pt"))
    c.golden(
        {**e, "decoder_input_ids": torch.tensor([[2, 0, 50], [2, 7, 60]])},
        {"max_new_tokens": 8, "do_sample": False, "num_beams": 1},
        gen_inputs=e,
    )


@case
def bart_mnli(c: Case) -> None:
    """facebook/bart-large-mnli (zero-shot-classification default)."""
    t = c.tok(roberta_tok(model_max_length=1024), "BartTokenizer")
    c.model("BartForSequenceClassification", bart_config(t, **named("contradiction", "neutral", "entailment")))
    c.golden(dict(t("The cat sees a dog.", "This example is animals.", return_tensors="pt")))


@case
def bart_qa(c: Case) -> None:
    """valhalla/bart-large-finetuned-squadv1."""
    t = c.tok(roberta_tok(model_max_length=128), "BartTokenizer")
    c.model("BartForQuestionAnswering", bart_config(t, decoder_layers=3, encoder_ffn_dim=80))
    c.golden(dict(t("Who reads?", "The old teacher reads a paper in the city.", return_tensors="pt")))


@case
def bart_base(c: Case) -> None:
    """facebook/bart-base, without a head."""
    t = c.tok(roberta_tok(model_max_length=1024), "BartTokenizer")
    c.model("BartModel", bart_config(t, d_model=32, encoder_ffn_dim=48, decoder_attention_heads=2))
    c.golden(dict(t(["The old teacher reads.", "Hello"], padding=True, return_tensors="pt")))
