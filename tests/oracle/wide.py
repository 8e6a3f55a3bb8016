"""Random checkpoints wide and deep enough for llama.cpp's mixes: rows of 256, and layers enough for every rule."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from isoform.reference.families import load_family
from isoform.reference.weights import hub_names
from tests.oracle import tiny

BASES = {"llama": "llama", "qwen2": "qwen2", "gemma2": "gemma2_b", "gemma3": "gemma3_b", "qwen3": "qwen3_b"}
SMALL_SHAPE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}


def wide(family: str, folder: Path, seed: int = 0, dtype: str = "float32", **config: Any) -> Path:
    """Write the checkpoint `folder`, with the tokenizer of a tiny one; `config` replaces settings of it."""
    import torch
    from safetensors.torch import save_file

    base = tiny(BASES[family])
    folder.mkdir(parents=True)
    for path in base.glob("*token*.json"):
        shutil.copyfile(path, folder / path.name)
    settings: dict[str, Any] = {**json.loads((base / "config.json").read_text()), "num_hidden_layers": 8, **SMALL_SHAPE}
    own = {"max_window_layers": 8, "query_pre_attn_scalar": 64}  # where the family has such a setting
    settings |= {"head_dim": 64, "dtype": dtype, **{key: own[key] for key in own if key in settings}} | config
    if settings.get("layer_types"):
        settings["layer_types"] = (
            ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(settings["num_hidden_layers"])]
            if family == "gemma3"
            else ["full_attention"] * settings["num_hidden_layers"]
        )
    (folder / "config.json").write_text(json.dumps(settings))
    card = load_family(settings["model_type"])
    task = next(task for task in card.tasks if task.name == "text-generation")
    typed = card.config.from_dict(settings)
    with torch.device("meta"):
        shapes = {key: p.shape for key, p in task.built(typed).named_parameters(remove_duplicate=False)}
    tied = card.tied(typed)
    names = hub_names([key for key in shapes if key not in tied], card.rules)
    draw = torch.Generator().manual_seed(seed)
    tensors = {
        key: (torch.randn(shapes[name], generator=draw) * 0.05 + name.endswith("norm.weight")).to(getattr(torch, dtype))
        for name, (key, _) in names.items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
