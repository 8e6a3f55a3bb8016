"""The registry: which module holds a family, by its `model_type` in config.json or its architecture in a GGUF file."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any

from isoform.errors import UnsupportedModel
from isoform.reference.card import Family
from isoform.reference.checkpoints.checkpoint import Checkpoint, first_line
from isoform.reference.config import Config, section, where
from isoform.reference.rules import Rule

FAMILIES = {
    "albert": "text.albert",
    "bart": "text.bart",
    "beit": "vision.beit",
    "bert": "text.bert",
    "blip": "multimodal.blip",
    "camembert": "text.roberta",
    "clip": "multimodal.clip",
    "clip_vision_model": "vision.clip_vision",
    "convnext": "vision.convnext",
    "deberta-v2": "text.deberta",
    "deformable_detr": "vision.deformable_detr",
    "depth_anything": "vision.depth_anything",
    "depth_pro": "vision.depth_pro",
    "detr": "vision.detr",
    "dinov2": "vision.dinov2",
    "dinov2_with_registers": "vision.dinov2_registers",
    "distilbert": "text.distilbert",
    "electra": "text.electra",
    "gemma": "text.gemma",
    "gemma2": "text.gemma2",
    "gemma3_text": "text.gemma3",
    "granite": "text.granite",
    "gpt2": "text.gpt2",
    "layoutlmv3": "multimodal.layoutlmv3",
    "llama": "text.llama",
    "llava": "multimodal.llava",
    "m2m_100": "text.m2m_100",
    "marian": "text.marian",
    "mask2former": "vision.mask2former",
    "mbart": "text.mbart",
    "mistral": "text.llama",
    "mixtral": "text.mixtral",
    "modernbert": "text.modernbert",
    "moonshine": "audio.moonshine",
    "mpnet": "text.mpnet",
    "mt5": "text.t5",
    "olmo2": "text.olmo2",
    "oneformer": "vision.oneformer",
    "pegasus": "text.pegasus",
    "phi3": "text.phi3",
    "qwen2": "text.qwen2",
    "qwen3": "text.qwen3",
    "qwen3_moe": "text.qwen3_moe",
    "resnet": "vision.resnet",
    "roberta": "text.roberta",
    "rt_detr": "vision.rt_detr",
    "rt_detr_resnet": "vision.rt_detr_resnet",
    "rt_detr_v2": "vision.rt_detr",
    "sam": "vision.sam",
    "segformer": "vision.segformer",
    "siglip": "multimodal.siglip",
    "smollm3": "text.smollm3",
    "superglue": "vision.superglue",
    "superpoint": "vision.superpoint",
    "swin": "vision.swin",
    "t5": "text.t5",
    "tapas": "text.tapas",
    "umt5": "text.t5",
    "videomae": "vision.videomae",
    "vit": "vision.vit",
    "vitpose": "vision.vitpose",
    "wav2vec2": "audio.wav2vec2",
    "whisper": "audio.whisper",
    "xlm-roberta": "text.roberta",
    "yolos": "vision.yolos",
}

VARIANTS = {"gemma3_text": (("use_bidirectional_attention", "text.embedding_gemma"),)}
"""model_type -> keys of config.json that, where they are set, make another family of it, with its module."""

GGUF_FAMILIES = {
    "bert": ("text.roberta", "text.bert", "text.distilbert"),
    "gemma": ("text.gemma",),
    "gemma-embedding": ("text.embedding_gemma",),
    "gemma2": ("text.gemma2",),
    "gemma3": ("text.gemma3",),
    "granite": ("text.granite",),
    "gpt2": ("text.gpt2",),
    "llama": ("text.mixtral", "text.llama"),
    "modern-bert": ("text.modernbert",),
    "olmo2": ("text.olmo2",),
    "phi3": ("text.phi3",),
    "qwen2": ("text.qwen2",),
    "qwen3": ("text.qwen3",),
    "qwen3moe": ("text.qwen3_moe",),
    "smollm3": ("text.smollm3",),
    "t5": ("text.t5",),
    "t5encoder": ("text.t5",),
}
"""`general.architecture` of a GGUF file -> its families' modules; the first that finds its `holds` and its kind of
vocabulary reads the file."""


PLUGINS = "isoform.families"
"""The entry-point group of packages that add a family: the name is its model_type, the value its card, or a module that
holds the card as `FAMILY`. Read only for a model_type, or a GGUF architecture, that no table here has."""


def load_family(model_type: str, config: Mapping[str, Any] = MappingProxyType({})) -> Family:
    """Import one family's card, of this package or of another's. Raises UnsupportedModel for an unknown one.

    `config` is the config.json, whose switches may make another family of a model_type.
    """
    family = _find(model_type, config)
    if family is None:
        raise UnsupportedModel(f"model_type {_unknown(model_type)}")
    return family


def gguf_family(arch: str, tensors: Collection[str], vocabulary: str = "") -> Family | None:
    """Import the card of the family that reads a GGUF file; None for an unknown architecture.

    `tensors` are the file's, `vocabulary` is its `tokenizer.ggml.model`.
    """
    if arch in GGUF_FAMILIES:
        cards = (_card(module) for module in GGUF_FAMILIES[arch])
    else:
        cards = (_plugin(entry) for entry in entry_points(group=PLUGINS))
    for card in cards:
        gguf = next((one for one in card.ggufs if one.arch == arch), None)
        if gguf is None or not set(gguf.holds) <= set(tensors):
            continue
        if not gguf.vocabularies or vocabulary in gguf.vocabularies:
            return card
    return None


def _find(model_type: Any, config: Mapping[str, Any]) -> Family | None:
    if not isinstance(model_type, str):
        return None
    if model_type in FAMILIES:
        others = (module for key, module in VARIANTS.get(model_type, ()) if config.get(key))
        return _card(next(others, FAMILIES[model_type]))
    found = entry_points(group=PLUGINS, name=model_type)
    return _plugin(next(iter(found)), model_type) if found else None


def _plugin(entry: EntryPoint, model_type: str | None = None) -> Family:
    """The card of another package. Raises UnsupportedModel for one that cannot be imported or holds no such card."""
    package = entry.dist.name if entry.dist is not None else entry.module
    try:
        loaded = entry.load()
    except Exception as error:  # of a package that is not ours, which may raise anything
        raise UnsupportedModel(
            f"the family {entry.name!r} of {package} cannot be imported ({first_line(error)}); update or remove it"
        ) from error
    card = getattr(loaded, "FAMILY", loaded)
    if not isinstance(card, Family) or (model_type is not None and model_type not in card.model_types):
        raise UnsupportedModel(
            f"{package} registers {entry.value} as the family {entry.name!r}, which is no card with this model_type"
        )
    return card


def _unknown(model_type: Any) -> str:
    near = get_close_matches(str(model_type), FAMILIES, 3)
    meant = f" (is {' or '.join(near)} meant?)" if near else ""
    return (
        f"{model_type!r:.80} is not supported{meant}; `isoform models` lists the {len(FAMILIES)} that are, and a "
        f"package may add a family (entry point {PLUGINS})"
    )


def _card(module: str) -> Family:
    family: Family = import_module(f"isoform.reference.{module}").FAMILY
    return family


def all_families() -> Iterator[Family]:
    """Every card of this package, by module."""
    for module in modules():
        yield _card(module)


def modules() -> list[str]:
    """The module of every card of this package."""
    return sorted({*FAMILIES.values(), *(module for others in VARIANTS.values() for _, module in others)})


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
    if (family := _find(model_type, found)) is None:
        file, path = where(found, "model_type")
        raise UnsupportedModel(f"{file}: {path} {_unknown(model_type)}")
    return Tower(family, family.config.from_dict({**found, "model_type": model_type}))


def family_for(checkpoint: Checkpoint) -> Family:
    """The family of a checkpoint's `model_type`. Raises UnsupportedModel with the known ones."""
    model_type = checkpoint.config.get("model_type")
    if (family := _find(model_type, checkpoint.config)) is None:
        raise UnsupportedModel(f"{checkpoint.name}: model_type {_unknown(model_type)}")
    return family
