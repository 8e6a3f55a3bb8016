"""A GGUF file that holds a vocabulary and nothing else, and a look into one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_vocabulary(metadata: Mapping[str, Any], path: Path) -> Path:
    """Write `metadata` (as `tokenizer_metadata` gives it) with the least that llama.cpp asks for; returns `path`."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def read_metadata(path: Path, prefix: str = "tokenizer.") -> dict[str, Any]:
    """The keys of a GGUF file under `prefix`, as plain Python values."""
    from gguf import GGUFReader

    return {key: field.contents() for key, field in GGUFReader(path).fields.items() if key.startswith(prefix)}
