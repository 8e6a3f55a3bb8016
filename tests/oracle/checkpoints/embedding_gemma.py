"""Tiny EmbeddingGemma: Gemma 3 that sees both sides, with a pooling of sentence-transformers."""

from __future__ import annotations

from typing import Any

import transformers as T

from tests.oracle.checkpoints.case import Case, case, write_json
from tests.oracle.checkpoints.text import old_spelling, rope, text_golden
from tests.oracle.checkpoints.tokenizers import gemma_tok

TEXTS = ("The small cat reads a large red book in the old house, and every teacher knows this.", "Hello")


def _gemma(c: Case, rows: int = 0, **options: Any) -> Any:
    t = c.tok(gemma_tok())
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 6,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 6,
        "max_position_embeddings": 256,
        "use_bidirectional_attention": True,
    }
    c.model("Gemma3TextModel", T.Gemma3TextConfig(**{"vocab_size": len(t) + rows, **sizes, **options}))
    return t


def _modules(c: Case, width: int) -> None:
    """Mean pooling and a norm, with prompts; the Dense modules of the real one are in folders of their own."""
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    listed = [
        {"idx": n, "name": str(n), "path": place, "type": f"sentence_transformers.models.{kind}"}
        for n, (place, kind) in enumerate(kinds)
    ]
    write_json(c.folder, "modules.json", listed)
    (c.folder / "1_Pooling").mkdir()
    settings = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
    write_json(c.folder, "1_Pooling/config.json", settings)
    write_json(c.folder, "sentence_bert_config.json", {"max_seq_length": 256, "do_lower_case": False})
    prompts = {"query": "task: search result | query: ", "document": "title: none | text: "}
    write_json(c.folder, "config_sentence_transformers.json", {"prompts": prompts, "similarity_fn_name": "cosine"})


@case
def embedding_gemma(c: Case) -> None:
    """google/embeddinggemma-300m: both sides, windows of 3 tokens to each, prompts."""
    text_golden(c, _gemma(c), list(TEXTS), generate=False, padding=True)
    _modules(c, 32)


@case
def embedding_gemma_b(c: Case) -> None:
    """Another pattern of layers, a scaled base, other heads, and no modules beside the model."""
    ropes = {"full_attention": rope("linear", 1e6, factor=8.0), "sliding_attention": rope("default", 2e4)}
    heads = {"hidden_size": 44, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10}
    sizes = {"query_pre_attn_scalar": 12, "sliding_window": 4, "sliding_window_pattern": 3, "num_hidden_layers": 4}
    t = _gemma(c, 3, rope_parameters=ropes, **heads, **sizes)
    old_spelling(c)
    text_golden(c, t, list(TEXTS), generate=False, padding=True)
