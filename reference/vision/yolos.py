"""YOLOS: a vision transformer with tokens behind its patches, each of which finds one thing or nothing.

Fang et al. 2021, https://arxiv.org/abs/2106.00666. Positions are interpolated to any picture, those that are added
between layers as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isoform.errors import CheckpointError
from isoform.reference.card import Family, Task
from isoform.reference.config import Config, with_labels
from isoform.reference.modules.layers import MLP
from isoform.reference.rules import Rename, Rule
from isoform.reference.vision.box_heads import Head
from isoform.reference.vision.patches import Layer, PatchEmbed, grid, pixels, resized, units
from isoform.signature import BATCH, Port, Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class YolosConfig(Config):
    harmless = frozenset(
        (
            *("auxiliary_loss", "bbox_cost", "bbox_loss_coefficient", "class_cost", "eos_coefficient"),
            *("giou_cost", "giou_loss_coefficient"),  # of training
        )
    )

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    image_size: tuple[int, ...] = (512, 864)
    patch_size: int = 16
    num_channels: int = 3
    qkv_bias: bool = True
    num_detection_tokens: int = 100
    use_mid_position_embeddings: bool = True
    num_labels: int = 2

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> YolosConfig:
        config = super(YolosConfig, cls).from_dict(with_labels(data))
        grid(config.image_size, config.patch_size)
        if config.use_mid_position_embeddings and config.num_hidden_layers < 2:
            raise CheckpointError(
                "config.json: use_mid_position_embeddings is true, and there is nothing between layers"
            )
        return config


class Yolos(nn.Module):
    """Pixels to class logits and boxes of every detection token."""

    def __init__(self, c: YolosConfig) -> None:
        super().__init__()
        dim, self.found = c.hidden_size, c.num_detection_tokens
        self.grid = grid(c.image_size, c.patch_size)
        slots = 1 + self.grid[0] * self.grid[1] + self.found
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.detection_tokens = nn.Parameter(torch.zeros(1, self.found, dim))
        self.position_embed = nn.Parameter(torch.zeros(1, slots, dim))
        self.patch_embed = PatchEmbed(c.num_channels, dim, c.patch_size)
        between = c.num_hidden_layers - 1 if c.use_mid_position_embeddings else 0
        self.between_embed = nn.Parameter(torch.zeros(between, 1, slots, dim)) if between else None
        self.layers = nn.ModuleList(
            Layer(
                dim,
                c.num_attention_heads,
                MLP(dim, c.intermediate_size, c.hidden_act),
                c.layer_norm_eps,
                bias=c.qkv_bias,
            )
            for _ in range(c.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(dim, c.layer_norm_eps)
        self.class_head, self.box_head = Head(dim, dim, dim, c.num_labels + 1), Head(dim, dim, dim, 4)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Pictures (B, channels, H, W) -> logits (B, tokens, labels + 1), of which the last is nothing, and boxes.

        A box (B, tokens, 4) is the x and y of its centre, its width and its height, as shares of the picture's.
        """
        x = self.patch_embed(pixel_values)
        down, across = self.patch_embed.kernel_size
        sizes = pixel_values.shape[2] // down, pixel_values.shape[3] // across
        rows = x.shape[0]
        x = torch.cat((self.class_token.expand(rows, -1, -1), x, self.detection_tokens.expand(rows, -1, -1)), 1)
        x = x + self._placed(self.position_embed[0], sizes)
        added = [] if self.between_embed is None else self._between(self.between_embed, sizes)
        for n, layer in enumerate(self.layers):
            x = layer(x)
            if n < len(added):
                x = x + added[n]
        x = self.norm(x[:, x.shape[1] - self.found :])
        return self.class_head(x), torch.sigmoid(self.box_head(x))

    def _placed(self, table: Tensor, sizes: tuple[Any, Any]) -> Tensor:
        """Positions (slots, C), those of the patches interpolated."""
        patches = resized(table[1 : -self.found], self.grid, sizes)
        return torch.cat((table[:1], patches, table[-self.found :]))

    def _between(self, tables: Tensor, sizes: tuple[Any, Any]) -> tuple[Tensor, ...]:
        """Those of every layer but the last, interpolated together as the channels of one table."""
        count = tables.shape[0]
        wide = tables[:, 0].transpose(0, 1).flatten(1)
        return self._placed(wide, sizes).unflatten(1, (count, -1)).unbind(1)


def signature(c: YolosConfig) -> Signature:
    outputs = (
        Port("logits", "float", (BATCH, c.num_detection_tokens, c.num_labels + 1)),
        Port("pred_boxes", "float", (BATCH, c.num_detection_tokens, 4)),
    )
    return Signature((pixels(c.num_channels),), outputs, units=units(c.patch_size))


RULES: tuple[Rule, ...] = (
    Rename("vit.embeddings.cls_token", "class_token"),
    Rename("vit.embeddings.detection_tokens", "detection_tokens"),
    Rename("vit.embeddings.position_embeddings", "position_embed"),
    Rename("vit.embeddings.patch_embeddings.projection", "patch_embed"),
    Rename("vit.encoder.mid_position_embeddings", "between_embed"),
    Rename("vit.encoder.layer.*.layernorm_before", "layers.*.attn_norm"),
    Rename("vit.encoder.layer.*.attention.attention.query", "layers.*.attn.q"),
    Rename("vit.encoder.layer.*.attention.attention.key", "layers.*.attn.k"),
    Rename("vit.encoder.layer.*.attention.attention.value", "layers.*.attn.v"),
    Rename("vit.encoder.layer.*.attention.output.dense", "layers.*.attn.out"),
    Rename("vit.encoder.layer.*.layernorm_after", "layers.*.mlp_norm"),
    Rename("vit.encoder.layer.*.intermediate.dense", "layers.*.mlp.up"),
    Rename("vit.encoder.layer.*.output.dense", "layers.*.mlp.down"),
    Rename("vit.layernorm", "norm"),
    Rename("class_labels_classifier.layers.*", "class_head.layers.*"),
    Rename("bbox_predictor.layers.*", "box_head.layers.*"),
)

FAMILY = Family(
    name="yolos",
    title="YOLOS",
    model_types=("yolos",),
    config=YolosConfig,
    rules=RULES,
    tasks=(
        Task(
            name="object-detection",
            architectures=("YolosForObjectDetection",),
            build=Yolos,
            signature=signature,
        ),
    ),
    prefix="",
    no_gguf="llama.cpp has no detectors",
)
