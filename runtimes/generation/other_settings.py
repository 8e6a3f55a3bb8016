"""Settings of generation that `GenerationConfig` does not have: what isoform cannot do, and what changes no text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "assistant_early_exit": (None,),
    "assistant_model": (None,),
    "assistant_tokenizer": (None,),
    "custom_generate": (None,),
    "dola_layers": (None,),
    "force_bos_token_to_be_generated": (None, False),
    "is_assistant": (None, False),
    "negative_prompt_attention_mask": (None,),
    "token_healing": (None, False),
    "use_mtp": (None, False),
    "watermarking_config": (None,),
}
"""Settings that isoform does not have, with the values that change nothing."""

_REASONS: Mapping[str, str] = {
    "assistant_early_exit": "a draft from the first layers alone needs a graph of its own, which no form has",
    "cache_implementation": "keys and values are kept as they are computed, not rounded to 4 bits or less",
    "custom_generate": "code from the Hub is never run",
    "dola_layers": "the logits of layers below the last (DoLa) are in no form of a model",
    "token_healing": "a prompt is fed as it is given, its last token included",
    "use_mtp": "heads that predict several tokens are in no form of a model",
    "watermarking_config": "a watermark is hidden in random numbers of torch, which are not those drawn here",
}

HARMLESS = frozenset(
    (
        *("_from_model_config", "assistant_ensemble_weight"),
        *("assistant_lookbehind", "cache_config", "cache_implementation", "compile_config"),
        *("continuous_batching_config", "disable_compile", "low_memory"),
        *("max_cache_len", "output_attentions", "output_hidden_states", "output_logits"),
        *("output_scores", "prefill_chunk_size", "return_dict_in_generate", "speculation_type"),
        *("synced_gpus", "target_lookbehind", "tokenizer", "transformers_version", "use_cache"),
    )
)
"""Settings that do not change the text: how it is computed, and what else is returned.

`cache_implementation` is one of them, except the value "quantized".
"""

NOTES = frozenset(
    (
        *("_attn_implementation", "_commit_hash", "_name_or_path", "architectures", "assistant_token_id"),
        *("attn_implementation", "chat_format", "dtype", "frequency_penalty", "is_encoder_decoder"),
        *("max_position_embeddings", "max_window_size", "model_type", "name_or_path", "presence_penalty"),
        *("task_specific_params", "torch_dtype", "trust_remote_code", "user_token_id", "vocab_size"),
    )
)
"""Keys of generation_config.json that transformers reads nowhere: copies of config.json, settings of other programs."""

_ROUNDED = ("cache_implementation", "quantized")


def unsupported(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings that would change the text and that isoform does not have, each with a value that it can compute."""
    for name, neutral in UNSUPPORTED.items():
        if name in settings and settings[name] not in neutral:
            yield name, neutral[-1]
    if settings.get(_ROUNDED[0]) == _ROUNDED[1]:  # its keys and values are rounded to 4 bits or less
        yield _ROUNDED[0], None


def reason(name: str) -> str:
    """Why isoform does not have a setting."""
    return _REASONS.get(name, "isoform does not generate so")
