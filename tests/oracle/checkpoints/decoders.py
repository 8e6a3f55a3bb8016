"""Tiny decoders: the families that differ from Llama in a norm, a scale or a projection, and heads that classify."""

from __future__ import annotations

import transformers as T

from tests.oracle.checkpoints.case import Case, case
from tests.oracle.checkpoints.text import TEXT, rope
from tests.oracle.checkpoints.tokenizers import llama3_tok


# ------------------------------------------------------------------ llama
@case
def llama_qa(c: Case) -> None:
    """LlamaForQuestionAnswering, whose trunk is called "transformer"."""
    t = c.tok(llama3_tok())
    c.model(
        "LlamaForQuestionAnswering",
        T.LlamaConfig(
            vocab_size=len(t),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            rope_parameters=rope("default", 500000.0),
            pad_token_id=t.eos_token_id,
        ),
    )
    c.golden(dict(t("What reads the book?", TEXT, return_tensors="pt")))
