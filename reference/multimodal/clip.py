"""CLIP: a causal text encoder and a vision transformer whose vectors are compared.

Radford et al. 2021, https://arxiv.org/abs/2103.00020.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isoform.reference.card import Family, Task
from isoform.reference.config import section
from isoform.reference.modules.layers import Embedding, Linear, causal_bias, true_positions
from isoform.reference.multimodal.towers import (
    TEXT_RULES,
    TextConfig,
    TowersConfig,
    VisionConfig,
    layers,
    similarity,
    towers_signature,
)
from isoform.reference.rules import Rename, Rule, below
from isoform.reference.vision.clip_vision import TOWER, ClipVision

OLD_EOS = 2
"""The eos_token_id that old configs state and that is none: the end of a text is its highest token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipTextConfig(TextConfig):
    eos_token_id: int = 49407


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipConfig(TowersConfig[ClipTextConfig, VisionConfig]):
    projection_dim: int = 512

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ClipConfig:
        cls.account(data)
        return cls(
            text=ClipTextConfig.from_dict(section(data, "text_config")),
            vision=VisionConfig.from_dict(section(data, "vision_config")),
            projection_dim=data.get("projection_dim") or 512,
        )


class Text(nn.Module):
    """Tokens (B, T) and their mask -> the state of the end-of-text token (B, C)."""

    def __init__(self, c: ClipTextConfig) -> None:
        super().__init__()
        self.embed = Embedding(c.vocab_size, c.hidden_size)
        self.position_embed = Embedding(c.max_position_embeddings, c.hidden_size)
        self.layers = layers(c)
        self.norm = nn.LayerNorm(c.hidden_size, c.layer_norm_eps)
        self.eos = c.eos_token_id

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        positions = true_positions(attention_mask)
        x = self.embed(input_ids) + self.position_embed(positions)
        bias = causal_bias(attention_mask, positions, None, x.dtype)
        for layer in self.layers:
            x = layer(x, bias)
        # The first end of text, or the first token where there is none; padding is not looked at.
        score = input_ids if self.eos == OLD_EOS else (input_ids == self.eos).to(torch.int64)
        end = ((score + 1) * attention_mask).argmax(1)
        last = x.gather(1, end.unsqueeze(-1).unsqueeze(-1).expand(-1, 1, x.shape[-1])).squeeze(1)
        y: Tensor = self.norm(last)
        return y


class Clip(nn.Module):
    """Both towers, projected into one space."""

    def __init__(self, c: ClipConfig) -> None:
        super().__init__()
        self.text, self.vision = Text(c.text), ClipVision(c.vision)
        self.vision_projection = Linear(c.vision.hidden_size, c.projection_dim, False)
        self.text_projection = Linear(c.text.hidden_size, c.projection_dim, False)
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def forward(
        self, input_ids: Tensor, pixel_values: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Tokens (S, T) with their mask and pictures (P, channels, H, W) -> as `similarity`."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        text = self.text_projection(self.text(input_ids, mask))
        _, pooled = self.vision(pixel_values)
        return similarity(text, self.vision_projection(pooled), self.logit_scale)


RULES: tuple[Rule, ...] = (
    *below(TEXT_RULES, "text_model", "text"),
    *below(TOWER, "vision_model", "vision"),
    Rename("visual_projection", "vision_projection"),
    Rename("text_projection", "text_projection"),
    Rename("logit_scale", "logit_scale"),
)

FAMILY = Family(
    name="clip",
    title="CLIP",
    model_types=("clip",),
    config=ClipConfig,
    rules=RULES,
    tasks=(
        Task(
            name="zero-shot-image-classification",
            architectures=("CLIPModel",),
            build=Clip,
            signature=lambda c: towers_signature(
                c.vision.num_channels, c.vision.image_size, c.projection_dim, masked=True
            ),
            facts=lambda c: {"scores": "softmax"},
        ),
    ),
    prefix="clip",
    no_gguf="llama.cpp reads CLIP's vision tower only as part of a language model (mmproj)",
)
