"""SigLIP: two towers as in CLIP, each pair judged by a sigmoid of its own; a picture is pooled by attention.

Zhai et al. 2023, https://arxiv.org/abs/2303.15343. A text has no mask: the model was trained on texts padded to their
full length, and its last slot, padding or not, stands for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isoform.reference.card import Family, Task
from isoform.reference.config import section
from isoform.reference.modules.attention import Heads, attend
from isoform.reference.modules.layers import MLP, Embedding, Linear
from isoform.reference.multimodal.towers import (
    TEXT_RULES,
    VISION_RULES,
    TextConfig,
    TowersConfig,
    VisionConfig,
    layers,
    similarity,
    towers_signature,
)
from isoform.reference.rules import Rename, Rule, below
from isoform.reference.vision.patches import PatchEmbed, grid, layers_before


@dataclass(frozen=True, slots=True, kw_only=True)
class SiglipTextConfig(TextConfig):
    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_attention_heads: int = 12
    max_position_embeddings: int = 64
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    projection_size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SiglipVisionConfig(VisionConfig):
    patch_size: int | tuple[int, ...] = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    vision_use_head: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class SiglipConfig(TowersConfig[SiglipTextConfig, SiglipVisionConfig]):
    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SiglipConfig:
        cls.account(data)
        text, vision = section(data, "text_config"), section(data, "vision_config")
        return cls(text=SiglipTextConfig.from_dict(text), vision=SiglipVisionConfig.from_dict(vision))


class Text(nn.Module):
    """Tokens (B, T) -> the state of the last slot, projected (B, width)."""

    def __init__(self, c: SiglipTextConfig) -> None:
        super().__init__()
        self.embed = Embedding(c.vocab_size, c.hidden_size)
        self.position_embed = Embedding(c.max_position_embeddings, c.hidden_size)
        self.layers = layers(c)
        self.norm = nn.LayerNorm(c.hidden_size, c.layer_norm_eps)
        self.head = Linear(c.hidden_size, c.projection_size or c.hidden_size)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids) + self.position_embed.weight[: input_ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        y: Tensor = self.head(self.norm(x[:, -1]))
        return y


class Pool(nn.Module):
    """One learned query attends to all patches; its three projections are one matrix, as the checkpoint has it."""

    def __init__(self, c: SiglipVisionConfig) -> None:
        super().__init__()
        dim = c.hidden_size
        self.probe = nn.Parameter(torch.zeros(1, 1, dim))
        self.qkv, self.out = Linear(dim, 3 * dim), Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, c.layer_norm_eps)
        self.mlp = MLP(dim, c.intermediate_size, c.hidden_act)
        self.heads, self.dim = Heads(c.num_attention_heads, c.num_attention_heads, dim // c.num_attention_heads), dim

    def forward(self, x: Tensor) -> Tensor:
        """Patches (B, T, C) -> (B, C)."""
        q = self.qkv(self.probe)[..., : self.dim].expand(x.shape[0], -1, -1)
        _, k, v = self.qkv(x).unflatten(-1, (3, -1)).unbind(-2)
        y = self.out(attend(q, k, v, None, self.heads))
        y = y + self.mlp(self.norm(y))
        return y[:, 0]


class Vision(nn.Module):
    """Pictures (B, channels, H, W) -> (B, C).

    `pools`: if not, the normed states (B, patches, C). `state`: those after a layer, as `layers_before` counts, without
    the norm.
    """

    def __init__(self, c: SiglipVisionConfig, state: int | None = None, pools: bool = True) -> None:
        super().__init__()
        rows, columns = grid(c.image_size, c.patch_size)
        self.patch_embed = PatchEmbed(c.num_channels, c.hidden_size, c.patch_size)
        self.position_embed = Embedding(rows * columns, c.hidden_size)
        self.layers = layers(c, None if state is None else layers_before(state, c.num_hidden_layers))
        self.norm = nn.LayerNorm(c.hidden_size, c.layer_norm_eps) if state is None else None
        self.pool = Pool(c) if pools and state is None else None

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.patch_embed(pixel_values) + self.position_embed.weight
        for layer in self.layers:
            x = layer(x)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.pool is None else self.pool(x)


class Siglip(nn.Module):
    """Both towers; the text is projected to the width of the picture's vector."""

    def __init__(self, c: SiglipConfig) -> None:
        super().__init__()
        self.text, self.vision = Text(c.text), Vision(c.vision)
        self.logit_scale, self.logit_bias = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Tokens (S, T) and pictures (P, channels, H, W) -> as `similarity`."""
        return similarity(self.text(input_ids), self.vision(pixel_values), self.logit_scale, self.logit_bias)


RULES: tuple[Rule, ...] = (
    *below(TEXT_RULES, "text_model", "text"),
    Rename("text_model.head", "text.head"),
    *below(VISION_RULES, "vision_model", "vision"),
    Rename("vision_model.head.probe", "vision.pool.probe"),
    Rename("vision_model.head.attention.in_proj_weight", "vision.pool.qkv.weight"),
    Rename("vision_model.head.attention.in_proj_bias", "vision.pool.qkv.bias"),
    Rename("vision_model.head.attention.out_proj", "vision.pool.out"),
    Rename("vision_model.head.layernorm", "vision.pool.norm"),
    Rename("vision_model.head.mlp.fc1", "vision.pool.mlp.up"),
    Rename("vision_model.head.mlp.fc2", "vision.pool.mlp.down"),
    Rename("logit_scale", "logit_scale"),
    Rename("logit_bias", "logit_bias"),
)

FAMILY = Family(
    name="siglip",
    title="SigLIP",
    model_types=("siglip",),
    config=SiglipConfig,
    rules=RULES,
    tasks=(
        Task(
            name="zero-shot-image-classification",
            architectures=("SiglipModel",),
            build=Siglip,
            signature=lambda c: towers_signature(
                c.vision.num_channels, c.vision.image_size, c.vision.hidden_size, masked=False
            ),
            facts=lambda c: {"scores": "sigmoid"},
        ),
    ),
    prefix="siglip",
    no_gguf="llama.cpp reads SigLIP's vision tower only as part of a language model (mmproj)",
)
