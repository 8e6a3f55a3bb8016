"""ViT: a pre-norm transformer over patches of a picture of one size, with a class token in front.

Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from isoform.reference.card import Family, Task
from isoform.reference.config import Config, with_labels
from isoform.reference.modules.layers import MLP, Linear, activation
from isoform.reference.rules import Rename, Rule
from isoform.reference.vision.patches import Layer, PatchEmbed, grid, layers_before, pixels
from isoform.signature import BATCH, Port, Signature

if TYPE_CHECKING:
    from isoform.reference.checkpoints.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class ViTConfig(Config):
    """`pooled`: the checkpoint holds a pooler; one that was saved with a classifier does not."""

    harmless = frozenset(("encoder_stride",))  # of masked image modelling

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    image_size: int | tuple[int, ...] = 224
    patch_size: int | tuple[int, ...] = 16
    num_channels: int = 3
    qkv_bias: bool = True
    pooler_output_size: int | None = None
    pooler_act: str = "tanh"
    num_labels: int = 2
    pooled: bool = True

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ViTConfig:
        return super(ViTConfig, cls).from_dict(with_labels(data))

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> ViTConfig:
        pooled = any(key.endswith("pooler.dense.weight") for key in checkpoint)
        return replace(cls.from_dict(checkpoint.config), pooled=pooled)


class Pooler(nn.Module):
    """A dense layer on the class token."""

    def __init__(self, c: ViTConfig) -> None:
        super().__init__()
        self.dense = Linear(c.hidden_size, c.pooler_output_size or c.hidden_size)
        self.act = activation(c.pooler_act)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.dense(x[:, 0]))


class ViT(nn.Module):
    """The trunk; `classifies`: with a linear layer on the class token, else with the pooler where there is one.

    `state`: neither, and no norm: it ends after a layer, as `layers_before` counts.
    """

    def __init__(self, c: ViTConfig, classifies: bool, state: int | None = None) -> None:
        super().__init__()
        dim, (rows, columns) = c.hidden_size, grid(c.image_size, c.patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position_embed = nn.Parameter(torch.zeros(1, 1 + rows * columns, dim))
        self.patch_embed = PatchEmbed(c.num_channels, dim, c.patch_size)
        self.layers = nn.ModuleList(
            Layer(
                dim,
                c.num_attention_heads,
                MLP(dim, c.intermediate_size, c.hidden_act),
                c.layer_norm_eps,
                bias=c.qkv_bias,
            )
            for _ in range(c.num_hidden_layers if state is None else layers_before(state, c.num_hidden_layers))
        )
        self.norm = nn.LayerNorm(dim, c.layer_norm_eps) if state is None else None
        self.classifies = classifies
        if classifies:
            self.classifier = Linear(dim, c.num_labels)
        self.pooler = Pooler(c) if c.pooled and not classifies and state is None else None

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Pictures (B, channels, H, W) -> the last hidden state (B, 1 + patches, C) and what the pooler makes of it,
        or logits (B, labels)."""
        x = self.patch_embed(pixel_values)
        x = torch.cat((self.class_token.expand(x.shape[0], -1, -1), x), 1) + self.position_embed
        for layer in self.layers:
            x = layer(x)
        if self.norm is None:
            return (x,)
        x = self.norm(x)
        if self.classifies:
            return (self.classifier(x[:, 0]),)
        return (x,) if self.pooler is None else (x, self.pooler(x))


def _features(c: ViTConfig) -> Signature:
    rows, columns = grid(c.image_size, c.patch_size)
    outputs = [Port("last_hidden_state", "float", (BATCH, 1 + rows * columns, c.hidden_size))]
    if c.pooled:
        outputs.append(Port("pooler_output", "float", (BATCH, c.pooler_output_size or c.hidden_size)))
    return Signature((pixels(c.num_channels, c.image_size),), tuple(outputs))


RULES: tuple[Rule, ...] = (
    Rename("vit.embeddings.cls_token", "class_token"),
    Rename("vit.embeddings.position_embeddings", "position_embed"),
    Rename("vit.embeddings.patch_embeddings.projection", "patch_embed"),
    Rename("vit.embeddings.mask_token", "mask.token"),
    Rename("vit.encoder.layer.*.layernorm_before", "layers.*.attn_norm"),
    Rename("vit.encoder.layer.*.attention.attention.query", "layers.*.attn.q"),
    Rename("vit.encoder.layer.*.attention.attention.key", "layers.*.attn.k"),
    Rename("vit.encoder.layer.*.attention.attention.value", "layers.*.attn.v"),
    Rename("vit.encoder.layer.*.attention.output.dense", "layers.*.attn.out"),
    Rename("vit.encoder.layer.*.layernorm_after", "layers.*.mlp_norm"),
    Rename("vit.encoder.layer.*.intermediate.dense", "layers.*.mlp.up"),
    Rename("vit.encoder.layer.*.output.dense", "layers.*.mlp.down"),
    Rename("vit.layernorm", "norm"),
    Rename("vit.pooler.dense", "pooler.dense"),
    Rename("classifier", "classifier"),
)

FAMILY = Family(
    name="vit",
    title="ViT",
    model_types=("vit",),
    config=ViTConfig,
    rules=RULES,
    tasks=(
        Task(
            name="image-classification",
            architectures=("ViTForImageClassification",),
            build=lambda c: ViT(c, True),
            signature=lambda c: Signature(
                (pixels(c.num_channels, c.image_size),), (Port("logits", "float", (BATCH, c.num_labels)),)
            ),
        ),
        Task(
            name="image-feature-extraction",
            architectures=("ViTModel",),
            build=lambda c: ViT(c, False),
            signature=_features,
        ),
    ),
    prefix="vit",
    heads=("classifier", "mask", "pooler"),
    no_gguf="llama.cpp has no ViT that runs alone",
)
