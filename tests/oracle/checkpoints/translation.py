"""Tiny mBART, mBART-50, Marian, M2M-100, NLLB and Pegasus: two of each family, unlike in every size and switch."""

from __future__ import annotations

from typing import Any

import torch
import transformers as T

from isoform.reference.tokenizers.language_codes import MBART, MBART_50
from tests.oracle.checkpoints.case import Case, case, labels, write_json
from tests.oracle.checkpoints.tokenizers import m2m_files, marian_files, nllb_tok, pegasus_tok, spoken_tok

TEXTS = ["Hello, world!", "The old teacher reads a paper in the city."]
SMALL = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 256,
    "scale_embedding": True,
}
OTHER = {
    "d_model": 48,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 6,
    "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 128,
}


def translate(c: Case, inputs: dict[str, Any], start: list[int], **generation: Any) -> None:
    """Golden outputs of two rows, and greedy texts."""
    target = torch.tensor([[*start, 50, 60], [*start, 70, 7]])
    c.golden(
        {**inputs, "decoder_input_ids": target}, {"max_new_tokens": 8, "num_beams": 1, **generation}, gen_inputs=inputs
    )


def read(t: Any, **options: Any) -> dict[str, Any]:
    return dict(t(TEXTS, padding=True, return_tensors="pt", **options))


@case
def mbart(c: Case) -> None:
    """facebook/mbart-large-en-ro."""
    t = c.tok(spoken_tok(T.MBartTokenizer, MBART, src_lang="en_XX", tgt_lang="ro_RO"))
    ro = t.convert_tokens_to_ids("ro_RO")
    c.model("MBartForConditionalGeneration", T.MBartConfig(vocab_size=len(t), **SMALL, decoder_start_token_id=ro))
    translate(c, read(t), [ro])


@case
def mbart_50(c: Case) -> None:
    """facebook/mbart-large-50-many-to-many-mmt."""
    t = c.tok(spoken_tok(T.MBart50Tokenizer, MBART_50, src_lang="en_XX"))
    config = T.MBartConfig(vocab_size=len(t), **OTHER, activation_function="relu", decoder_start_token_id=2)
    c.model("MBartForConditionalGeneration", config)
    fr = t.convert_tokens_to_ids("fr_XX")
    translate(c, read(t), [2, fr], forced_bos_token_id=fr)


def marian_tok(c: Case, vocabulary: dict[str, int]) -> Any:
    files = {"source_spm": str(c.folder / "source.spm"), "target_spm": str(c.folder / "target.spm")}
    t = T.MarianTokenizer(**files, vocab=str(c.folder / "vocab.json"), source_lang="en", target_lang="de")
    settings = {"tokenizer_class": "MarianTokenizer", "model_max_length": 512, "source_lang": "en", "target_lang": "de"}
    named = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    write_json(c.folder, "tokenizer_config.json", settings | named)
    return t


@case
def marian(c: Case) -> None:
    """Helsinki-NLP/opus-mt-en-de: swish, scaled, the token of padding begins a text and is never one of it."""
    found = marian_files(c.folder)
    t, pad = marian_tok(c, found), found["<pad>"]
    ids = {"pad_token_id": pad, "decoder_start_token_id": pad, "eos_token_id": 0, "forced_eos_token_id": 0}
    config = T.MarianConfig(vocab_size=len(found), **SMALL, activation_function="swish", **ids)
    c.model("MarianMTModel", config, bad_words_ids=[[pad]], num_beams=4, max_length=512)
    translate(c, read(t), [pad])


@case
def marian_b(c: Case) -> None:
    """A table of embeddings for each side (opus-mt-tc-big), languages to translate to, not scaled."""
    found = marian_files(c.folder, (">>fra<<", ">>deu<<"))
    t, pad = marian_tok(c, found), found["<pad>"]
    ids = {"pad_token_id": pad, "decoder_start_token_id": pad, "eos_token_id": 0, "forced_eos_token_id": 0}
    sizes = {"decoder_vocab_size": len(found), "share_encoder_decoder_embeddings": False}
    c.model("MarianMTModel", T.MarianConfig(vocab_size=len(found), **OTHER, **sizes, **ids), bad_words_ids=[[pad]])
    translate(c, read(t), [pad])


@case
def m2m_100(c: Case) -> None:
    """facebook/m2m100_418M."""
    found = m2m_files(c.folder)
    files = {"vocab_file": str(c.folder / "vocab.json"), "spm_file": str(c.folder / "sentencepiece.bpe.model")}
    t = T.M2M100Tokenizer(**files, src_lang="en")
    write_json(c.folder, "tokenizer_config.json", {"tokenizer_class": "M2M100Tokenizer", "model_max_length": 1024})
    c.model("M2M100ForConditionalGeneration", T.M2M100Config(vocab_size=len(found) + 108, **SMALL))
    fr = t.get_lang_id("fr")
    translate(c, read(t), [2, fr], forced_bos_token_id=fr)


@case
def nllb(c: Case) -> None:
    """facebook/nllb-200-distilled-600M."""
    t = c.tok(nllb_tok(("deu_Latn", "eng_Latn", "fra_Latn"), src_lang="eng_Latn"))
    config = T.M2M100Config(vocab_size=len(t), **OTHER, scale_embedding=False, tie_word_embeddings=True)
    c.model("M2M100ForConditionalGeneration", config)
    fr = t.convert_tokens_to_ids("fra_Latn")
    translate(c, read(t), [2, fr], forced_bos_token_id=fr)


@case
def pegasus(c: Case) -> None:
    """google/pegasus-xsum; the sinusoids are stored."""
    t = c.tok(pegasus_tok())
    c.model("PegasusForConditionalGeneration", T.PegasusConfig(vocab_size=len(t), **SMALL), num_beams=8, max_length=64)
    translate(c, read(t), [0], min_length=3)


@case
def pegasus_b(c: Case) -> None:
    """Unlike sides, an odd number of heads, sinusoids of another length."""
    t = c.tok(pegasus_tok())
    options = {**OTHER, "encoder_attention_heads": 3, "max_position_embeddings": 96}
    c.model(
        "PegasusForConditionalGeneration", T.PegasusConfig(vocab_size=len(t), **options, activation_function="relu")
    )
    translate(c, read(t), [0])


@case
def mbart_seqcls(c: Case) -> None:
    """Any fine-tuned mBART: the decoder begins with the text's last token."""
    t = c.tok(spoken_tok(T.MBartTokenizer, MBART, src_lang="en_XX"))
    config = T.MBartConfig(vocab_size=len(t), **OTHER, **labels(4))
    c.model("MBartForSequenceClassification", config)
    c.golden(read(t))
