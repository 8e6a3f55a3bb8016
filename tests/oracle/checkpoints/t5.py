"""Tiny T5, mT5 and UMT5: encoder-decoders, encoders alone, and the heads of each."""

from __future__ import annotations

from typing import Any

import torch
import transformers as T
from safetensors.torch import load_file, save_file

from tests.oracle.checkpoints.case import Case, case, labels, named
from tests.oracle.checkpoints.tokenizers import t5_tok

GREEDY = {"max_new_tokens": 8, "do_sample": False}
TEXT = "translate English to German: The house is wonderful and the garden is very beautiful."


def _golden(c: Case, tokenizer: Any, text: str = TEXT, ids: tuple[int, ...] = (0, 50, 60, 7)) -> None:
    inputs = dict(tokenizer(text, return_tensors="pt"))
    c.golden({**inputs, "decoder_input_ids": torch.tensor([ids])}, GREEDY, gen_inputs=inputs)


@case
def t5(c: Case) -> None:
    """google-t5/t5-base: relu, tied, scaled logits, one table of distances for all layers."""
    t = c.tok(t5_tok())
    c.model(
        "T5ForConditionalGeneration",
        T.T5Config(
            vocab_size=len(t) + 7,
            d_model=48,
            d_kv=16,
            d_ff=96,
            num_layers=2,
            num_decoder_layers=2,
            num_heads=4,
            decoder_start_token_id=0,
            task_specific_params={
                "translation_en_to_de": {
                    "early_stopping": True,
                    "max_length": 300,
                    "num_beams": 4,
                    "prefix": "translate English to German: ",
                }
            },
        ),
    )
    _golden(c, t)


@case
def t5_v1_1(c: Case) -> None:
    """google/t5-v1_1-base and Flan-T5: gated, heads narrower than the model, a head of its own, nothing scaled.

    transformers 5 makes every T5 tied, and leaves one untied whose file holds another head.
    """
    t = c.tok(t5_tok())
    c.model(
        "T5ForConditionalGeneration",
        T.T5Config(
            vocab_size=len(t),
            d_model=40,
            d_kv=12,
            d_ff=64,
            num_layers=3,
            num_decoder_layers=1,
            num_heads=4,
            decoder_start_token_id=0,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        ),
    )
    file = c.folder / "model.safetensors"
    tensors = load_file(file)
    head = 0.3 * torch.randn(tensors["shared.weight"].shape, generator=torch.Generator().manual_seed(11))
    copies = {f"{side}.embed_tokens.weight": tensors["shared.weight"].clone() for side in ("encoder", "decoder")}
    save_file({**tensors, **copies, "lm_head.weight": head}, file, metadata={"format": "pt"})
    c.m = T.T5ForConditionalGeneration.from_pretrained(c.folder, dtype=torch.float32).eval()
    _golden(c, t, "The house is wonderful.", (0, 50, 60))


@case
def umt5_b(c: Case) -> None:
    """google/umt5-small with other sizes: a table in every layer, few buckets, a short farthest distance, silu."""
    t = c.tok(t5_tok())
    c.model(
        "UMT5ForConditionalGeneration",
        T.UMT5Config(
            vocab_size=len(t) + 3,
            d_model=32,
            d_kv=8,
            d_ff=96,
            num_layers=2,
            num_decoder_layers=2,
            num_heads=6,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=20,
            layer_norm_epsilon=1e-5,
            feed_forward_proj="gated-silu",
        ),
    )
    _golden(c, t, TEXT * 2)


@case
def t5_seqcls(c: Case) -> None:
    """T5ForSequenceClassification: the text goes through both sides, and its last end is classified."""
    t = c.tok(t5_tok())
    config = T.T5Config(
        vocab_size=len(t),
        d_model=48,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_decoder_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        **labels(3),
    )
    c.model("T5ForSequenceClassification", config)
    c.golden(dict(t(["The cat sees a dog in the old garden.", "Hello"], padding=True, return_tensors="pt")))


@case
def mt5_encoder(c: Case) -> None:
    """MT5EncoderModel: as text encoders are stored."""
    t = c.tok(t5_tok())
    config = T.MT5Config(vocab_size=len(t), d_model=48, d_kv=16, d_ff=64, num_layers=3, num_heads=4)
    c.model("MT5EncoderModel", config)
    c.golden(dict(t(["The cat sees a dog in the old garden.", "Hello"], padding=True, return_tensors="pt")))


@case
def mt5_qa(c: Case) -> None:
    """MT5ForQuestionAnswering: the decoder's states of the text give the two ends."""
    t = c.tok(t5_tok())
    config = T.MT5Config(
        vocab_size=len(t), d_model=32, d_kv=16, d_ff=64, num_layers=1, num_decoder_layers=2, num_heads=2
    )
    c.model("MT5ForQuestionAnswering", config)
    c.golden(dict(t("Who sees a dog?", "The small cat sees a large dog in the old garden.", return_tensors="pt")))


@case
def umt5_ner(c: Case) -> None:
    """UMT5ForTokenClassification: a head over the encoder's states."""
    t = c.tok(t5_tok())
    config = T.UMT5Config(
        vocab_size=len(t),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        **named("O", "B-PER", "I-PER", "B-LOC", "I-LOC"),
    )
    c.model("UMT5ForTokenClassification", config)
    c.golden(dict(t(["The cat sees a dog in the old garden.", "Hello"], padding=True, return_tensors="pt")))
