"""The registry: model_type of config.json -> the module that holds the family."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING

from isoform.errors import UnsupportedModel
from isoform.reference.card import Family

if TYPE_CHECKING:
    from isoform.reference.checkpoints.checkpoint import Checkpoint

FAMILIES = {
    "bert": "text.bert",
    "blip": "multimodal.blip",
    "clip": "multimodal.clip",
    "dinov2": "vision.dinov2",
    "dinov2_with_registers": "vision.dinov2_registers",
    "gemma2": "text.gemma2",
    "gemma3_text": "text.gemma3",
    "llama": "text.llama",
    "mistral": "text.llama",
    "moonshine": "audio.moonshine",
    "qwen2": "text.qwen2",
    "qwen3": "text.qwen3",
    "siglip": "multimodal.siglip",
    "vit": "vision.vit",
    "wav2vec2": "audio.wav2vec2",
    "whisper": "audio.whisper",
}


def load_family(model_type: str) -> Family:
    """Import one family's card."""
    family: Family = import_module(f"isoform.reference.{FAMILIES[model_type]}").FAMILY
    return family


def all_families() -> Iterator[Family]:
    """Every card, by name."""
    for module in sorted(set(FAMILIES.values())):
        yield load_family(next(key for key, value in FAMILIES.items() if value == module))


def family_for(checkpoint: Checkpoint) -> Family:
    """The family of a checkpoint's `model_type`. Raises UnsupportedModel with the known ones."""
    model_type = checkpoint.config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UnsupportedModel(
            f"{checkpoint.name}: model_type {model_type!r} is not supported; isoform knows {', '.join(FAMILIES)}"
        )
    return load_family(model_type)
