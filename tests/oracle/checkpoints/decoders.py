"""Tiny decoders: the families that differ from Llama in a norm, a scale or a projection, and heads that classify."""

from __future__ import annotations

import json
from typing import Any

import transformers as T

from tests.oracle.checkpoints.case import Case, case, write_json
from tests.oracle.checkpoints.text import TEXT, old_spelling, rope, text_golden
from tests.oracle.checkpoints.tokenizers import byte_level, gemma_tok, llama3_tok, llama_tok


def gpt2_tok() -> Any:
    """Byte-level BPE with GPT-2's way of cutting words, as Granite and OLMo 2 have it."""
    vocabulary, merges = byte_level(450, end="<|endoftext|>")
    t = T.GPT2Tokenizer(vocab=vocabulary, merges=merges, model_max_length=8192)
    t.pad_token = "<|endoftext|>"
    return t


# ------------------------------------------------------------------ gemma
@case
def gemma(c: Case) -> None:
    """google/gemma-2b: one key head, head_dim that is not hidden/heads, "gelu" that means its approximation."""
    t = c.tok(gemma_tok())
    c.model(
        "GemmaForCausalLM",
        T.GemmaConfig(
            vocab_size=len(t),
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=256,
        ),
    )
    old_spelling(c)
    config = json.loads((c.folder / "config.json").read_text(encoding="utf-8"))
    write_json(c.folder, "config.json", {**config, "hidden_act": "gelu", "hidden_activation": None})
    text_golden(c, t)


@case
def gemma_b(c: Case) -> None:
    """Gemma 7B's own key heads, another base, heads that no kernel takes."""
    t = c.tok(gemma_tok())
    c.model(
        "GemmaForCausalLM",
        T.GemmaConfig(
            vocab_size=len(t) + 3,
            hidden_size=64,
            intermediate_size=80,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=20,
            max_position_embeddings=512,
            rms_norm_eps=1e-5,
            rope_parameters=rope("default", 20000.0),
        ),
    )
    text_golden(c, t)


# ------------------------------------------------------------------ granite
@case
def granite(c: Case) -> None:
    """ibm-granite/granite-3.1-2b-instruct: four multipliers, tied, GQA 4:1."""
    t = c.tok(gpt2_tok())
    c.model(
        "GraniteForCausalLM",
        T.GraniteConfig(
            vocab_size=len(t),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=8,
            num_key_value_heads=2,
            max_position_embeddings=512,
            rms_norm_eps=1e-5,
            embedding_multiplier=12.0,
            logits_scaling=8.0,
            residual_multiplier=0.22,
            attention_multiplier=0.09,
            tie_word_embeddings=True,
            rope_parameters=rope("default", 5e6),
            bos_token_id=t.eos_token_id,
            eos_token_id=t.eos_token_id,
            pad_token_id=t.eos_token_id,
        ),
    )
    text_golden(c, t)


@case
def granite_b(c: Case) -> None:
    """Every bias, a separate head, no multiplier on the embeddings."""
    t = c.tok(llama3_tok())
    c.model(
        "GraniteForCausalLM",
        T.GraniteConfig(
            vocab_size=len(t) + 6,
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            attention_bias=True,
            mlp_bias=True,
            logits_scaling=1.5,
            residual_multiplier=0.7,
            attention_multiplier=0.4,
            rope_parameters=rope("linear", 10000.0, factor=2.0),
            bos_token_id=t.bos_token_id,
            eos_token_id=t.eos_token_id,
        ),
    )
    old_spelling(c)
    text_golden(c, t)


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


# ------------------------------------------------------------------ olmo2
@case
def olmo2(c: Case) -> None:
    """allenai/OLMo-2-0425-1B: norms after attention and MLP, one key head per query head."""
    t = c.tok(gpt2_tok())
    c.model(
        "Olmo2ForCausalLM",
        T.Olmo2Config(
            vocab_size=len(t),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=512,
            rms_norm_eps=1e-6,
            rope_parameters=rope("default", 500000.0),
            eos_token_id=t.eos_token_id,
            pad_token_id=t.pad_token_id,
        ),
    )
    text_golden(c, t)


@case
def olmo2_b(c: Case) -> None:
    """OLMo 2 32B: grouped queries; heads that no kernel takes."""
    t = c.tok(gpt2_tok())
    c.model(
        "Olmo2ForCausalLM",
        T.Olmo2Config(
            vocab_size=len(t) + 9,
            hidden_size=60,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=256,
            rope_parameters=rope("default", 10000.0),
            eos_token_id=t.eos_token_id,
            pad_token_id=t.pad_token_id,
        ),
    )
    old_spelling(c)
    text_golden(c, t)


# ------------------------------------------------------------------ phi3
@case
def phi4(c: Case) -> None:
    """microsoft/phi-4: grouped queries, no window. (llama.cpp wants "</s>" in a model whose name holds "phi3".)"""
    t = c.tok(gpt2_tok())
    c.model(
        "Phi3ForCausalLM",
        T.Phi3Config(
            vocab_size=len(t),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            original_max_position_embeddings=512,
            rope_parameters=rope("default", 250000.0),
            bos_token_id=t.eos_token_id,
            eos_token_id=t.eos_token_id,
            pad_token_id=t.eos_token_id,
        ),
    )
    text_golden(c, t)


@case
def phi3_b(c: Case) -> None:
    """microsoft/Phi-3-mini-4k-instruct: a window of 5 tokens, one key head per query head."""
    t = c.tok(llama_tok(("<|user|>", "<|assistant|>", "<|end|>")))
    c.model(
        "Phi3ForCausalLM",
        T.Phi3Config(
            vocab_size=len(t) + 3,
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=256,
            original_max_position_embeddings=256,
            sliding_window=5,
            rope_parameters=rope("default", 10000.0),
            bos_token_id=t.bos_token_id,
            eos_token_id=t.eos_token_id,
            pad_token_id=t.eos_token_id,
        ),
    )
    old_spelling(c)
    text_golden(c, t)


@case
def phi4_mini(c: Case) -> None:
    """microsoft/Phi-4-mini-instruct: three quarters of a head are rotated; tied. Its LongRoPE is another case's."""
    t = c.tok(gpt2_tok())
    c.model(
        "Phi3ForCausalLM",
        T.Phi3Config(
            vocab_size=len(t),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=1,
            max_position_embeddings=256,
            original_max_position_embeddings=256,
            partial_rotary_factor=0.75,
            sliding_window=256,
            tie_word_embeddings=True,
            bos_token_id=t.eos_token_id,
            eos_token_id=t.eos_token_id,
            pad_token_id=t.eos_token_id,
        ),
    )
    text_golden(c, t)


@case
def phi3_longrope(c: Case) -> None:
    """microsoft/Phi-3.5-mini-instruct: LongRoPE in the old spelling; the answer crosses the original length."""
    t = c.tok(llama_tok())
    text = "The small cat reads"
    original = len(t(text)["input_ids"]) + 3
    factors = {"short_factor": [1.0 + n / 8 for n in range(8)], "long_factor": [1.0 + n for n in range(8)]}
    c.model(
        "Phi3ForCausalLM",
        T.Phi3Config(
            vocab_size=len(t),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4 * original,
            original_max_position_embeddings=original,
            rope_parameters=rope("longrope", 10000.0, original_max_position_embeddings=original, **factors),
            bos_token_id=t.bos_token_id,
            eos_token_id=t.eos_token_id,
            pad_token_id=t.eos_token_id,
        ),
    )
    old_spelling(c)
    config = json.loads((c.folder / "config.json").read_text(encoding="utf-8"))
    scaling = {key: value for key, value in config["rope_scaling"].items() if key in factors}
    write_json(c.folder, "config.json", {**config, "rope_scaling": {"type": "longrope", **scaling}})
    text_golden(c, t, text)


# ------------------------------------------------------------------ smollm3
@case
def smollm3(c: Case) -> None:
    """HuggingFaceTB/SmolLM3-3B: the fourth layer has no positions; tied, GQA 4:1."""
    t = c.tok(llama3_tok())
    c.model(
        "SmolLM3ForCausalLM",
        T.SmolLM3Config(
            vocab_size=len(t),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=5,
            num_attention_heads=4,
            num_key_value_heads=1,
            max_position_embeddings=512,
            rope_parameters=rope("default", 5e6),
            bos_token_id=t.bos_token_id,
            eos_token_id=t.eos_token_id,
            pad_token_id=t.eos_token_id,
        ),
    )
    text_golden(c, t)


@case
def smollm3_b(c: Case) -> None:
    """Layers without positions by a list, which see 6 tokens; every bias, a separate head."""
    t = c.tok(llama_tok())
    c.model(
        "SmolLM3ForCausalLM",
        T.SmolLM3Config(
            vocab_size=len(t) + 2,
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            attention_bias=True,
            mlp_bias=True,
            tie_word_embeddings=False,
            use_sliding_window=True,
            sliding_window=6,
            no_rope_layers=[1, 0, 1],
            rope_parameters=rope("default", 10000.0),
            bos_token_id=t.bos_token_id,
            eos_token_id=t.eos_token_id,
            pad_token_id=t.eos_token_id,
        ),
    )
    text_golden(c, t)
