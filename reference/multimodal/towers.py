"""What the two-tower families share: configs of a text and a vision tower, the similarity, and its signature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

from torch import Tensor, nn

from isoform.reference.config import Config
from isoform.reference.modules.layers import MLP
from isoform.reference.rules import Drop, Rename, Rule, below
from isoform.reference.vision.patches import Layer, pixels
from isoform.signature import LENGTH, PICTURES, SENTENCES, Port, Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig(Config):
    """A text tower; the defaults are CLIP's."""

    harmless = frozenset(("projection_dim",))  # the model's counts

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig(Config):
    """A vision tower; the defaults are CLIP's."""

    harmless = frozenset(("projection_dim", "vocab_size"))  # the model's count

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int | tuple[int, ...] = 224
    patch_size: int | tuple[int, ...] = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5


Text = TypeVar("Text", bound=TextConfig)
Vision = TypeVar("Vision", bound=VisionConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class TowersConfig(Config, Generic[Text, Vision]):
    """Both towers; what others ask a config for is answered by the one that has it."""

    reads = frozenset(("text_config", "text_config_dict", "vision_config", "vision_config_dict"))
    harmless = frozenset(("logit_scale_init_value", "projection_dim"))

    text: Text
    vision: Vision

    @property
    def vocab_size(self) -> int:
        return self.text.vocab_size

    @property
    def max_position_embeddings(self) -> int:
        return self.text.max_position_embeddings

    @property
    def image_size(self) -> int | tuple[int, ...]:
        return self.vision.image_size

    @property
    def num_hidden_layers(self) -> int:
        return max(self.text.num_hidden_layers, self.vision.num_hidden_layers)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        raise NotImplementedError


def layers(c: TextConfig | VisionConfig, count: int | None = None) -> nn.ModuleList:
    """The first `count` layers, or all."""
    return nn.ModuleList(
        Layer(
            c.hidden_size,
            c.num_attention_heads,
            MLP(c.hidden_size, c.intermediate_size, c.hidden_act),
            c.layer_norm_eps,
        )
        for _ in range(c.num_hidden_layers if count is None else count)
    )


_LAYERS: tuple[Rule, ...] = below(
    (
        Rename("layer_norm1", "attn_norm"),
        Rename("self_attn.q_proj", "attn.q"),
        Rename("self_attn.k_proj", "attn.k"),
        Rename("self_attn.v_proj", "attn.v"),
        Rename("self_attn.out_proj", "attn.out"),
        Rename("layer_norm2", "mlp_norm"),
        Rename("mlp.fc1", "mlp.up"),
        Rename("mlp.fc2", "mlp.down"),
    ),
    "encoder.layers.*",
    "layers.*",
)
TEXT_RULES: tuple[Rule, ...] = (
    Rename("embeddings.token_embedding", "embed"),
    Rename("embeddings.position_embedding", "position_embed"),
    Drop("embeddings.position_ids"),
    *_LAYERS,
    Rename("final_layer_norm", "norm"),
)
VISION_RULES: tuple[Rule, ...] = (
    Rename("embeddings.patch_embedding", "patch_embed"),
    Rename("embeddings.position_embedding", "position_embed"),
    Drop("embeddings.position_ids"),
    *_LAYERS,
    Rename("post_layernorm", "norm"),
)


def similarity(text: Tensor, image: Tensor, scale: Tensor, bias: Tensor | None = None) -> tuple[Tensor, ...]:
    """Both made unit vectors, and how alike they are: text (S, C), image (P, C) -> per image (P, S), per text (S, P),
    text and image."""
    text, image = (x / (x * x).sum(-1, keepdim=True).sqrt() for x in (text, image))
    per_text = text @ image.transpose(0, 1) * scale.exp()
    per_text = per_text if bias is None else per_text + bias
    return per_text.transpose(0, 1), per_text, text, image


def towers_signature(channels: int, image_size: int | tuple[int, ...], width: int, *, masked: bool) -> Signature:
    """So many texts and so many pictures in; `masked`: texts may be padded."""
    mask = (Port("attention_mask", "int64", (SENTENCES, LENGTH)),) if masked else ()
    return Signature(
        (Port("input_ids", "int64", (SENTENCES, LENGTH)), pixels(channels, image_size, PICTURES), *mask),
        (
            Port("logits_per_image", "float", (PICTURES, SENTENCES)),
            Port("logits_per_text", "float", (SENTENCES, PICTURES)),
            Port("text_embeds", "float", (SENTENCES, width)),
            Port("image_embeds", "float", (PICTURES, width)),
        ),
    )
