"""Keys of config.json that change no number in any family: names, labels, training, generation and storage.

Generation settings are here because transformers 5 drops those of config.json and reads generation_config.json.
A key that some family computes with is never here, unless that family reads it as a field of its config: a test reads
transformers' modeling code to hold this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ORIGIN = (
    *("_commit_hash", "_diffusers_version", "_name_or_path", "_num_labels", "architectures", "auto_map"),
    *("base_model", "custom_pipelines", "finetuning_task", "language", "model_name", "model_type", "name"),
    *("name_or_path", "sbert_ce_default_activation_function", "sentence_transformers", "transformers.js_config"),
    *("transformers_version", "unsloth_fixed", "unsloth_version", "license", "tags", "model_max_length"),
)
"""Where the model comes from, and what other programs note in its file. `auto_map` names code, which never runs."""

_LABELS = (
    *("id2label", "label2id", "num_labels", "problem_type", "label_smoothing", "labels"),
    *("classifier_dropout", "classifier_dropout_prob", "summary_first_dropout"),
)
"""Names of classes: a head that counts them has the field `num_labels`."""

_TOKENS = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "mask_token_id"),
    *("unk_token_id", "decoder_start_token_id", "ignore_index", "tokenizer_class", "prefix"),
)
"""Token ids, which the tokenizer and the generation loop read; a family that computes with one has it as a field."""

_STORAGE = (
    *("dtype", "torch_dtype", "torchscript", "use_bfloat16", "tie_word_embeddings", "tie_weights_"),
    *("tf_legacy_loss", "xla_device", "keys_to_ignore_at_inference"),
)
"""How weights are stored and outputs are named. A family that shares tensors has the field `tie_word_embeddings`."""

_RUNNING = (
    *("_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal"),
    *("_experts_implementation", "_flash_attn_2_enabled", "attn_implementation", "experts_implementation"),
    *("cache_implementation", "chunk_size_feed_forward", "gradient_checkpointing", "output_attentions"),
    *("output_hidden_states", "output_past", "pretraining_tp", "return_dict", "use_cache", "use_flash_attn"),
    *("use_return_dict", "use_flash_attention", "_pre_quantization_dtype", "is_encoder_decoder"),
)
"""How the same numbers are computed, and which outputs a call returns."""

_TRAINING = (
    *("activation_dropout", "attention_dropout", "attention_probs_dropout_prob", "attn_pdrop", "dropout"),
    *("embd_pdrop", "embedding_dropout", "hidden_dropout", "hidden_dropout_prob", "resid_pdrop"),
    *("initializer_factor", "initializer_range", "init_std", "drop_path_rate", "layerdrop"),
)
"""Dropout is nothing outside training, and initial values are replaced by the checkpoint's."""

GENERATION = (
    *("assistant_confidence_threshold", "assistant_lookbehind", "bad_words_ids", "begin_suppress_tokens"),
    *("diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size"),
    *("encoder_repetition_penalty", "epsilon_cutoff", "eta_cutoff", "exponential_decay_length_penalty"),
    *("forced_bos_token_id", "forced_decoder_ids", "forced_eos_token_id", "generation", "guidance_scale"),
    *("length_penalty", "max_length", "max_new_tokens", "min_length", "min_new_tokens", "min_p"),
    *("no_repeat_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule", "num_beam_groups"),
    *("num_beams", "num_return_sequences", "output_scores", "remove_invalid_values", "renormalize_logits"),
    *("repetition_penalty", "return_dict_in_generate", "suppress_tokens", "target_lookbehind"),
    *("task_specific_params", "temperature", "top_k", "top_p", "typical_p", "generation_config"),
)
"""What transformers 4 wrote into config.json for generate(), and transformers 5 drops when it reads the file."""

HARMLESS: frozenset[str] = frozenset((*_ORIGIN, *_LABELS, *_TOKENS, *_STORAGE, *_RUNNING, *_TRAINING, *GENERATION))

ONLY: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
    "is_decoder": (False, None),
    "pruned_heads": ({}, [], None),
    "quantization_config": ({}, None),
    "tie_encoder_decoder": (False, None),
}
"""Keys that every old file has, and the values that mean "nothing special". A family may say otherwise of its own."""
