"""Llava: a language model that reads the patches of a vision tower, projected, in the place of image tokens.

Liu et al. 2023, https://arxiv.org/abs/2304.08485 and https://arxiv.org/abs/2310.03744 (1.5: a projector of two layers).
Both towers are found by their model_type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.card import Family, Part, States, Task
from isoform.reference.config import Config, section
from isoform.reference.families import Tower, tower
from isoform.reference.modules.layers import Linear, activation
from isoform.reference.rules import Rename, Rule, below
from isoform.signature import PICTURES, Port, Signature

VICUNA: Mapping[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
}
"""The sizes of the first Llava's language model, which its config.json leaves out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LlavaSettings(Config):
    """The keys beside the towers that are read with their types."""

    reads = frozenset(("text_config", "vision_config", "vision_feature_layer", "vision_feature_select_strategy"))
    harmless = frozenset(("image_seq_length", "projection_dim", "vocab_size"))  # the towers' counts
    aliases: ClassVar[Mapping[str, str]] = {"image_token_id": "image_token_index"}

    image_token_index: int = 32000
    projector_hidden_act: str = "gelu"
    multimodal_projector_bias: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class LlavaConfig(Config):
    text: Tower
    vision: Tower
    image_token_index: int = 32000
    projector_hidden_act: str = "gelu"
    multimodal_projector_bias: bool = True
    vision_feature_layer: int = -2
    vision_feature_select_strategy: str = "default"

    @property
    def states(self) -> States:
        """How the vision tower is read; its family has them, or the config is refused."""
        assert self.vision.family.states is not None
        return self.vision.family.states

    @property
    def num_hidden_layers(self) -> int:
        return int(getattr(self.text.config, "num_hidden_layers", 1))

    @property
    def context(self) -> int | None:
        return self.text.config.context

    @property
    def vocabulary(self) -> int | None:
        return self.text.config.vocabulary

    @property
    def picture(self) -> int | None:
        return self.vision.config.picture

    @property
    def skipped(self) -> int:
        """Slots of the tower that are no patches and are left out."""
        return self.states.special if self.vision_feature_select_strategy == "default" else 0

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LlavaConfig:
        layer = data.get("vision_feature_layer", -2)
        if type(layer) is not int:
            raise UnsupportedModel(
                f"config.json: vision_feature_layer is {layer!r}: features of several layers side by side are not "
                "supported; one layer is"
            )
        strategy = data.get("vision_feature_select_strategy", "default")
        if strategy not in ("default", "full"):
            raise CheckpointError(f"config.json: vision_feature_select_strategy is {strategy!r}, not default or full")
        settings = LlavaSettings.from_dict(data)
        given = section(data, "text_config")
        if given.get("model_type", "llama") == "llama":
            data = {**data, "text_config": {**VICUNA, **given}}
        text, vision = tower(data, "text_config", "llama"), tower(data, "vision_config", "clip_vision_model")
        if not {"embed_tokens", "decoder"} <= text.family.parts.keys():
            raise UnsupportedModel(f"Llava with {text.family.title} as its language model is not supported")
        if vision.family.states is None:
            raise UnsupportedModel(f"Llava with {vision.family.title} as its vision tower is not supported")
        return cls(
            text=text,
            vision=vision,
            image_token_index=settings.image_token_index,
            projector_hidden_act=settings.projector_hidden_act,
            multimodal_projector_bias=settings.multimodal_projector_bias,
            vision_feature_layer=layer,
            vision_feature_select_strategy=strategy,
        )


class Projector(nn.Module):
    """Two linear layers into the width of the language model."""

    def __init__(self, c: LlavaConfig, inner: int, out: int) -> None:
        super().__init__()
        self.up, self.down = (Linear(size, out, c.multimodal_projector_bias) for size in (inner, out))
        self.act = activation(c.projector_hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.act(self.up(x)))
        return y


class VisionEncoder(nn.Module):
    """The tower up to a layer, without its class token where the config says so, and the projector."""

    def __init__(self, c: LlavaConfig) -> None:
        super().__init__()
        self.tower = c.states.build(c.vision.config, c.vision_feature_layer)
        self.projector = Projector(c, c.states.shape(c.vision.config)[1], text_width(c))
        self.skipped = c.skipped

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Pictures (B, channels, H, W) -> features (B, patches, C of the language model)."""
        (states,) = self.tower(pixel_values)
        return (self.projector(states[:, self.skipped :]),)


def text_width(c: LlavaConfig) -> int:
    """Channels of the language model."""
    port = c.text.family.parts["embed_tokens"].signature(c.text.config).outputs[0]
    width = port.axes[-1]
    assert isinstance(width, int)
    return width


def vision_signature(c: LlavaConfig) -> Signature:
    slots, _ = c.states.shape(c.vision.config)
    given = c.states.pixels(c.vision.config)
    features = Port("image_features", "float", (PICTURES, slots - c.skipped, text_width(c)))
    return Signature((replace(given, axes=(PICTURES, *given.axes[1:])),), (features,))


def _text(name: str) -> Part:
    """A graph of the language model, whatever its family."""
    return Part(
        build=lambda c: c.text.family.parts[name].build(c.text.config),
        signature=lambda c: c.text.family.parts[name].signature(c.text.config),
        roots={"": "language"},
        file=FILES[name],
    )


FILES = {"embed_tokens": "embed_tokens", "decoder": "decoder_model_merged"}

RULES: tuple[Rule, ...] = (
    Rename("multi_modal_projector.linear_1", "projector.up"),
    Rename("multi_modal_projector.linear_2", "projector.down"),
)

FAMILY = Family(
    name="llava",
    title="Llava",
    model_types=("llava",),
    config=LlavaConfig,
    rules=RULES,
    towers=lambda c: (
        *below(c.text.rules, "language_model", "language"),
        *below(c.vision.rules, "vision_tower", "vision"),
    ),
    tasks=(
        Task(
            name="image-text-to-text",
            architectures=("LlavaForConditionalGeneration",),
            parts={
                "vision_encoder": Part(
                    build=VisionEncoder,
                    signature=vision_signature,
                    roots={"tower": "vision", "projector": "projector"},
                    file="vision_encoder",
                ),
                "embed_tokens": _text("embed_tokens"),
                "decoder": _text("decoder"),
            },
            wires={
                "place_features.tokens": "embed_tokens.input_ids",
                "place_features.embeddings": "embed_tokens.inputs_embeds",
                "place_features.features": "vision_encoder.image_features",
                "decoder.inputs_embeds": "place_features.embeddings",
            },
            steps=lambda c: {"place_features": {"token": c.image_token_index}},
            carried=lambda c: tuple(
                f"vision.{name}" for name in c.states.left_out(c.vision.config, c.vision_feature_layer)
            ),
        ),
    ),
    tied=lambda c: {
        f"language.{name}": f"language.{source}" for name, source in c.text.family.tied(c.text.config).items()
    },
    prefix="model",
    no_gguf="the text file and the mmproj file that llama.cpp reads are not written yet",
)
