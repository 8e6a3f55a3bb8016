"""The registry: which module holds a family, by its `model_type` in config.json or its architecture in a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from isoform.errors import UnsupportedModel
from isoform.reference.card import Family
from isoform.reference.checkpoints.checkpoint import Checkpoint
from isoform.reference.config import Config, section, where
from isoform.reference.rules import Rule

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
    "sam": "vision.sam",
    "siglip": "multimodal.siglip",
    "vit": "vision.vit",
    "wav2vec2": "audio.wav2vec2",
    "whisper": "audio.whisper",
}

GGUF_FAMILIES = {
    "bert": "text.bert",
    "gemma2": "text.gemma2",
    "gemma3": "text.gemma3",
    "llama": "text.llama",
    "qwen2": "text.qwen2",
    "qwen3": "text.qwen3",
}
"""`general.architecture` of a GGUF file -> the module that holds the family."""


def load_family(model_type: str) -> Family:
    """Import one family's card."""
    return _card(FAMILIES[model_type])


def gguf_family(arch: str) -> Family | None:
    """Import the card of the family that reads a GGUF architecture; None for an unknown one."""
    return _card(GGUF_FAMILIES[arch]) if arch in GGUF_FAMILIES else None


def _card(module: str) -> Family:
    family: Family = import_module(f"isoform.reference.{module}").FAMILY
    return family


def all_families() -> Iterator[Family]:
    """Every card, by name."""
    for module in sorted(set(FAMILIES.values())):
        yield _card(module)


@dataclass(frozen=True, slots=True)
class Tower:
    """One model inside another: its family, and its config under a name of the Hub (`text_config`)."""

    family: Family
    config: Config

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The family's, with the sizes of this config; `rules.below` puts them in their place."""
        return self.family.rules_of(self.config)


def tower(data: Mapping[str, Any], key: str, default: str) -> Tower:
    """The tower that config.json describes under `key`; `default` is its model_type where the file states none."""
    found = section(data, key)
    model_type = found.get("model_type", default)
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        file, path = where(found, "model_type")
        raise UnsupportedModel(f"{file}: {path} {model_type!r} is not supported; isoform knows {', '.join(FAMILIES)}")
    family = load_family(model_type)
    return Tower(family, family.config.from_dict({**found, "model_type": model_type}))


def family_for(checkpoint: Checkpoint) -> Family:
    """The family of a checkpoint's `model_type`. Raises UnsupportedModel with the known ones."""
    model_type = checkpoint.config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UnsupportedModel(
            f"{checkpoint.name}: model_type {model_type!r} is not supported; isoform knows {', '.join(FAMILIES)}"
        )
    return load_family(model_type)
