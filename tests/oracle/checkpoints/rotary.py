"""Decoders whose rotary positions are stretched; the texts of their goldens are longer than the original length."""

from __future__ import annotations

from typing import Any

import transformers as T

from tests.oracle.checkpoints.case import Case, case
from tests.oracle.checkpoints.text import rope, text_golden
from tests.oracle.checkpoints.tokenizers import llama_tok, qwen_tok

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@case
def llama_yarn(c: Case) -> None:
    """Every setting of YaRN, the old spelling of none."""
    t = c.tok(llama_tok())
    scaling = {"beta_fast": 8.0, "beta_slow": 0.25, "mscale": 0.9, "mscale_all_dim": 0.5}
    parameters = rope("yarn", 10000.0, factor=8.0, original_max_position_embeddings=8, **scaling)
    c.model(
        "LlamaForCausalLM",
        T.LlamaConfig(vocab_size=len(t), max_position_embeddings=64, rope_parameters=parameters, **SIZES),
    )
    text_golden(c, t)


@case
def qwen2_yarn(c: Case) -> None:
    """As Qwen2.5 recommends it for long texts: factor 4, max_position_embeddings unchanged."""
    t = c.tok(qwen_tok())
    parameters = rope("yarn", 1e6, factor=4.0, original_max_position_embeddings=16)
    c.model(
        "Qwen2ForCausalLM",
        T.Qwen2Config(vocab_size=len(t), max_position_embeddings=16, rope_parameters=parameters, **SIZES),
    )
    text_golden(c, t)


@case
def llama_dynamic(c: Case) -> None:
    t = c.tok(llama_tok())
    c.model(
        "LlamaForCausalLM",
        T.LlamaConfig(
            vocab_size=len(t), max_position_embeddings=8, rope_parameters=rope("dynamic", 10000.0, factor=4.0), **SIZES
        ),
    )
    text_golden(c, t)


@case
def llama_longrope(c: Case) -> None:
    t = c.tok(llama_tok())
    factors = {"short_factor": [1.0 + n / 8 for n in range(8)], "long_factor": [1.0 + n for n in range(8)]}
    parameters = rope("longrope", 10000.0, original_max_position_embeddings=16, factor=4.0, **factors)
    c.model(
        "LlamaForCausalLM",
        T.LlamaConfig(vocab_size=len(t), max_position_embeddings=64, rope_parameters=parameters, **SIZES),
    )
    text_golden(c, t)
