"""Settings of generation that `GenerationConfig` does not have: what isoform cannot do, and what changes no text."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "assistant_early_exit": (None,),
    "assistant_model": (None,),
    "assistant_tokenizer": (None,),
    "constraints": (None,),
    "custom_generate": (None,),
    "diversity_penalty": (None, 0),
    "dola_layers": (None,),
    "force_bos_token_to_be_generated": (None, False),
    "force_words_ids": (None,),
    "guidance_scale": (None, 1),
    "is_assistant": (None, False),
    "negative_prompt_attention_mask": (None,),
    "negative_prompt_ids": (None,),
    "num_beam_groups": (None, 1),
    "penalty_alpha": (None, 0),
    "token_healing": (None, False),
    "use_mtp": (None, False),
    "watermarking_config": (None,),
}
"""Settings that isoform does not have, with the values that change nothing."""

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


def unsupported(settings: Mapping[str, Any], asked: Collection[str]) -> Iterator[tuple[str, Any]]:
    """The settings that would change the text and that isoform does not have, each with a value that it can compute.

    Of those that a call did not ask for, one of a mode that is off passes, as in transformers.
    """
    beams = (settings.get("num_beams") or 1) != 1
    groups = beams and settings.get("num_beam_groups") not in UNSUPPORTED["num_beam_groups"]
    contrastive = not beams and not settings.get("do_sample") and _above(settings.get("top_k"), 1)
    on = {"diversity_penalty": groups, "num_beam_groups": beams, "penalty_alpha": contrastive}
    for name, neutral in UNSUPPORTED.items():
        if name in settings and settings[name] not in neutral and (name in asked or on.get(name, True)):
            yield name, neutral[-1]
    if settings.get(_ROUNDED[0]) == _ROUNDED[1]:  # its keys and values are rounded to 4 bits or less
        yield _ROUNDED[0], None


def _above(value: Any, least: int) -> bool:
    return isinstance(value, int | float) and value > least
