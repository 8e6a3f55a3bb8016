"""Tiny Mixtrals: the matrices of each expert on their own or of all in one tensor, with a window, with a head."""

from __future__ import annotations

from typing import Any

import torch
import transformers as T

from tests.oracle.checkpoints.case import Case, case, labels
from tests.oracle.checkpoints.text import TEXT, old_spelling, rope, text_golden
from tests.oracle.checkpoints.tokenizers import llama_tok

INSTRUCT = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
"""The template of mistralai/Mixtral-8x7B-Instruct-v0.1."""


def _mixtral(c: Case, t: Any, options: dict[str, Any], rows: int = 0, kind: str = "MixtralForCausalLM") -> Any:
    c.tok(t)
    model = c.model(kind, T.MixtralConfig(**{"vocab_size": len(t) + rows, **options}))
    with torch.no_grad():  # a stack is drawn as one matrix, too small for what each expert reads
        for name, parameter in model.named_parameters():
            if ".experts." in name:
                parameter *= parameter.shape[1] ** 0.5
    model.save_pretrained(c.folder)
    return t


@case
def mixtral(c: Case) -> None:
    """mistralai/Mixtral-8x7B-v0.1: 8 experts top-2, GQA, theta 1e6, each expert's matrices on their own."""
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    places = {"max_position_embeddings": 32768, "rope_parameters": rope("default", 1e6), "sliding_window": None}
    t = _mixtral(c, llama_tok(), {**sizes, **places, "num_key_value_heads": 2, "num_local_experts": 8})
    old_spelling(c)
    c.golden(dict(t("Question: what is a river?", return_tensors="pt")), {"max_new_tokens": 6, "do_sample": False})


@case
def mixtral_b(c: Case) -> None:
    """An instructed one: 6 experts top-3, heads of another size, tied, the matrices of all experts in one tensor."""
    sizes = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 6}
    heads = {"num_key_value_heads": 3, "head_dim": 24, "tie_word_embeddings": True, "rms_norm_eps": 1e-6}
    experts = {"num_local_experts": 6, "num_experts_per_tok": 3, "router_jitter_noise": 0.1}
    places = {"max_position_embeddings": 512, "rope_parameters": rope("default", 2e4)}
    t = llama_tok()
    t.chat_template = INSTRUCT
    _mixtral(c, t, {**sizes, **heads, **experts, **places}, rows=3)
    c.m.save_pretrained(c.folder, save_original_format=False)
    text_golden(c, t)


@case
def mixtral_seqcls(c: Case) -> None:
    """A head over labels, behind a window of five tokens on every layer."""
    sizes = {"hidden_size": 40, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 5}
    experts = {"num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 1, "sliding_window": 5}
    t = llama_tok()
    t.pad_token = t.eos_token
    _mixtral(c, t, {**sizes, **experts, **labels(3), "pad_token_id": 2}, kind="MixtralForSequenceClassification")
    text_golden(c, t, [TEXT, "Hello"], generate=False, padding=True)
