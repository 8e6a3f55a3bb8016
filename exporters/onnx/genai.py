"""`genai_config.json`: how onnxruntime-genai reads the graph, beside the tokenizer files at the root of the bundle.

Its fields: https://onnxruntime.ai/docs/genai/reference/config.html
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoform.reference.model import Model

NAME = "genai_config.json"
TYPE = "decoder"  # its name for any decoder with a key/value cache, without habits of its own
LENGTH = 4096  # a shared cache is allocated for `max_length` slots at once: the whole context may not fit into memory

SEARCH = (
    *("do_sample", "early_stopping", "length_penalty", "min_length", "no_repeat_ngram_size", "num_beams"),
    *("num_return_sequences", "repetition_penalty", "temperature", "top_k", "top_p"),
)
"""Settings of generation_config.json that it knows, with the same meaning."""


def genai_config(model: Model, filename: str, *, in_place: bool) -> str | None:
    """The file's text for the graph at `filename`; None for a model that gives no logits or keeps no cache.

    `in_place`: past and present of a layer may be one buffer.
    """
    signature = model.signature
    logits, layout = signature.output("logits"), signature.layout()
    context = model.config.context
    if layout is None or context is None or logits is None:
        return None
    layers, heads, head_size = layout
    keys, values = signature.states[:2]
    settings = generation_settings(model)
    ends = settings.get("eos_token_id")
    first = ends[0] if isinstance(ends, list) and ends else ends
    tokens = {**settings, "pad_token_id": settings.get("pad_token_id", first)}
    search = {name: settings[name] for name in SEARCH if _plain(settings.get(name))}
    described = {
        "model": {
            "type": TYPE,
            **{name: tokens[name] for name in sorted(tokens) if name in TOKENS and tokens[name] is not None},
            "context_length": context,
            "vocab_size": logits.axes[-1],
            "decoder": {
                "filename": filename,
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "head_size": head_size,
                "num_key_value_heads": heads,
                "num_hidden_layers": layers,
                **{name: value for name in SIZES if (value := getattr(model.config, name, None)) is not None},
                "inputs": {
                    **{p.name: p.name for p in signature.given},
                    "past_key_names": _by_layer(keys.input),
                    "past_value_names": _by_layer(values.input),
                },
                "outputs": {
                    "logits": logits.name,
                    "present_key_names": _by_layer(keys.output),
                    "present_value_names": _by_layer(values.output),
                },
            },
        },
        "search": {
            "do_sample": False,
            **search,
            "max_length": min(context, LENGTH),
            "past_present_share_buffer": in_place,
        },
    }
    return json.dumps(described, indent=2) + "\n"


TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
SIZES = ("hidden_size", "num_attention_heads")


def generation_settings(model: Model) -> Mapping[str, Any]:
    """generation_config.json, else the token ids of config.json, without what is null."""
    found = model.checkpoint.read_json("generation_config.json")
    if not isinstance(found, dict):
        found = {name: model.checkpoint.config.get(name) for name in TOKENS}
    return {name: value for name, value in found.items() if value is not None}


def _by_layer(name: str) -> str:
    """The name of a layer's port, with a placeholder for the number of the layer."""
    return re.sub(r"\d+", "%d", name, count=1)


def _plain(value: Any) -> bool:
    return isinstance(value, bool | int | float)
