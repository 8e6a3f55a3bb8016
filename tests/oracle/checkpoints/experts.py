"""Tiny models whose MLPs are experts: every layer or some, their matrices one by one or stacked."""

from __future__ import annotations

from typing import Any

import torch
import transformers as T

from tests.oracle.checkpoints.case import Case, case
from tests.oracle.checkpoints.text import old_spelling, rope, text_golden
from tests.oracle.checkpoints.tokenizers import qwen_tok


def _qwen3_moe(c: Case, rows: int = 0, **options: Any) -> Any:
    t = c.tok(qwen_tok(("<think>", "</think>")))
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "moe_intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
        "max_position_embeddings": 512,
        "rope_parameters": rope("default", 1e6),
        "eos_token_id": t.convert_tokens_to_ids("<|im_end|>"),
    }
    model = c.model("Qwen3MoeForCausalLM", T.Qwen3MoeConfig(**{"vocab_size": len(t) + rows, **sizes, **options}))
    with torch.no_grad():  # a stack is drawn as one matrix, too small for what each expert reads
        for name, parameter in model.named_parameters():
            if name.endswith("experts.gate_up_proj"):
                parameter *= parameter.shape[1] ** 0.5
    model.save_pretrained(c.folder)
    return t


@case
def qwen3_moe(c: Case) -> None:
    """Qwen/Qwen3-30B-A3B: experts in every layer, weights that add up to 1, each expert's matrices on their own."""
    t = _qwen3_moe(c)
    old_spelling(c)
    text_golden(c, t)


@case
def qwen3_moe_b(c: Case) -> None:
    """Experts in the middle layer alone, weights as they are, biases, matrices of all experts in one tensor."""
    sizes = {"hidden_size": 40, "intermediate_size": 72, "moe_intermediate_size": 24, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 10, "attention_bias": True}
    experts = {"num_experts": 5, "num_experts_per_tok": 2, "norm_topk_prob": False}
    t = _qwen3_moe(c, 3, **sizes, **heads, **experts, decoder_sparse_step=2, tie_word_embeddings=True)
    c.m.save_pretrained(c.folder, save_original_format=False)
    text_golden(c, t)


@case
def qwen3_moe_window(c: Case) -> None:
    """A window on every layer, and layers that are named to have no experts."""
    t = _qwen3_moe(c, use_sliding_window=True, sliding_window=5, mlp_only_layers=[0], num_experts_per_tok=1)
    text_golden(c, t)
