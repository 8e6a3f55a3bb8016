"""Tiny GPT-2: with each of its heads, its keys in both spellings."""

from __future__ import annotations

import json
from typing import Any

import transformers as T
from safetensors.torch import load_file, save_file

from tests.oracle.checkpoints.case import Case, case, named, write_json
from tests.oracle.checkpoints.text import text_golden
from tests.oracle.checkpoints.tokenizers import byte_level

END = "<|endoftext|>"


def gpt2_tok() -> Any:
    vocabulary, merges = byte_level(420, end=END)
    return T.GPT2Tokenizer(vocab=vocabulary, merges=merges, model_max_length=128)


def _gpt2(c: Case, cls: str, rows: int = 0, **options: Any) -> Any:
    t = c.tok(gpt2_tok())
    end = t.convert_tokens_to_ids(END)
    sizes = {"n_embd": 48, "n_layer": 2, "n_head": 6, "n_positions": 128, "bos_token_id": end, "eos_token_id": end}
    c.model(cls, T.GPT2Config(**{"vocab_size": len(t) + rows, **sizes, **options}))
    return t


def _padded(c: Case, t: Any, *texts: Any) -> None:
    """`texts` as one batch, padded on the right as transformers' pipelines do it."""
    t.pad_token = END
    text_golden(c, t, list(texts), generate=False, padding=True)


@case
def gpt2(c: Case) -> None:
    """openai-community/gpt2: keys without `transformer.`, n_ctx stated."""
    t = _gpt2(c, "GPT2LMHeadModel", n_layer=3)
    file = c.folder / "model.safetensors"
    tensors = {key.removeprefix("transformer."): tensor for key, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((c.folder / "config.json").read_text(encoding="utf-8"))
    write_json(c.folder, "config.json", {**config, "n_ctx": 128})
    text_golden(c, t)


@case
def gpt2_b(c: Case) -> None:
    """Scores scaled by the number of the layer, an inner width of its own, heads of 10 channels, an untied head."""
    switches = {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True, "tie_word_embeddings": False}
    sizes = {"n_embd": 40, "n_layer": 4, "n_head": 4, "n_inner": 72, "n_positions": 160, "layer_norm_epsilon": 1e-6}
    text_golden(c, _gpt2(c, "GPT2LMHeadModel", 3, activation_function="relu", **switches, **sizes))


@case
def gpt2_unscaled(c: Case) -> None:
    """scale_attn_weights off: scores are not divided by the root of the head size."""
    text_golden(c, _gpt2(c, "GPT2LMHeadModel", n_embd=32, n_head=2, scale_attn_weights=False))


@case
def gpt2_seqcls(c: Case) -> None:
    t = _gpt2(c, "GPT2ForSequenceClassification", pad_token_id=gpt2_tok().convert_tokens_to_ids(END), **named("A", "B"))
    _padded(c, t, "The cat sees a dog.", "Hello")


@case
def gpt2_ner(c: Case) -> None:
    t = _gpt2(c, "GPT2ForTokenClassification", **named("O", "B-PER", "I-PER"))
    _padded(c, t, "The teacher opens a window.", "Hello")


@case
def gpt2_qa(c: Case) -> None:
    t = _gpt2(c, "GPT2ForQuestionAnswering", n_embd=32, n_head=4)
    c.golden(dict(t("what is a cat?", "The cat sees a river.", return_tensors="pt")))
