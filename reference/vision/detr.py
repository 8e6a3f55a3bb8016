"""DETR: an encoder-decoder on the last map of a backbone, whose queries each find one thing or nothing.

Carion et al. 2020, https://arxiv.org/abs/2005.12872. The padding around a picture is no part of it: a mask of the
pixels says where it is, and boxes are shares of what is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoform.errors import CheckpointError
from isoform.reference.card import Family, Pyramid, Task
from isoform.reference.config import Config, with_labels
from isoform.reference.families import Tower
from isoform.reference.modules.layers import MLP, Embedding, Linear, hidden
from isoform.reference.rules import Rename, Rule, below
from isoform.reference.vision.box_heads import Head
from isoform.reference.vision.convolutions import Conv
from isoform.reference.vision.maps import LearnedPositions, masked_sine_positions, sequence
from isoform.reference.vision.placed_attention import PlacedAttention
from isoform.reference.vision.pyramids import pyramid_of
from isoform.reference.vision.timm_backbone import detector_backbone, detector_rules
from isoform.signature import BATCH, HEIGHT, WIDTH, Port, Signature

MASK_ROWS, MASK_COLUMNS = "mask_height", "mask_width"
"""The mask may be of another size than the picture; clients give one of 64 by 64 for any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DetrConfig(Config):
    """`tower` is the backbone, whose weights are spelled as timm has them where `timm`."""

    reads = frozenset(("backbone", "backbone_config", "backbone_kwargs", "use_timm_backbone"))
    harmless = frozenset(
        (
            *("bbox_cost", "bbox_loss_coefficient", "class_cost", "dice_loss_coefficient", "eos_coefficient"),
            *("giou_cost", "giou_loss_coefficient", "init_xavier_std", "mask_loss_coefficient"),  # of training
            *("decoder_layerdrop", "encoder_layerdrop", "use_pretrained_backbone"),
            *("max_position_embeddings", "scale_embedding"),  # of old files, and never read
        )
    )
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "dilation": (False, None),  # the last stage with the stride of the one before
    }
    aliases: ClassVar[Mapping[str, str]] = {
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
    }

    num_channels: int = 3
    num_queries: int = 100
    encoder_layers: int = 6
    encoder_ffn_dim: int = 2048
    encoder_attention_heads: int = 8
    decoder_layers: int = 6
    decoder_ffn_dim: int = 2048
    decoder_attention_heads: int = 8
    activation_function: str = "relu"
    d_model: int = 256
    auxiliary_loss: bool = False
    position_embedding_type: str = "sine"
    num_labels: int = 2
    timm: bool = False
    tower: Tower | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DetrConfig:
        config = super(DetrConfig, cls).from_dict(with_labels(data))
        tower, timm = detector_backbone(data, config.num_channels, (1, 2, 3, 4))
        if config.position_embedding_type not in ("sine", "learned"):
            raise CheckpointError(
                f"config.json: position_embedding_type is {config.position_embedding_type!r:.40}, not sine or learned"
            )
        if config.d_model % 4:
            raise CheckpointError(f"config.json: d_model is {config.d_model}, no multiple of 4")
        return replace(config, tower=tower, timm=timm)

    @property
    def pyramid(self) -> Pyramid:
        """How the backbone's map is read."""
        assert self.tower is not None
        return pyramid_of(self.tower)

    @property
    def backbone_config(self) -> Any:
        assert self.tower is not None
        return self.tower.config

    @property
    def stages(self) -> tuple[str, ...]:
        """The stage whose map is read: the last of those that the config names."""
        found: tuple[str, ...] = self.backbone_config.stages
        return found[-1:]

    @property
    def num_hidden_layers(self) -> int:
        return self.decoder_layers


class EncoderLayer(nn.Module):
    """Cells attend to each other, then an MLP; a norm after each residual sum."""

    def __init__(self, dim: int, heads: int, inner: int, act: str) -> None:
        super().__init__()
        self.attn, self.attn_norm = PlacedAttention(dim, heads), nn.LayerNorm(dim)
        self.mlp, self.mlp_norm = MLP(dim, inner, act), nn.LayerNorm(dim)

    def forward(self, x: Tensor, places: Tensor, bias: Tensor) -> Tensor:
        """Shapes: x and places (B or 1, S, C), bias (B, 1, 1, S) -> (B, S, C)."""
        placed = x + places
        x = self.attn_norm(x + self.attn(placed, placed, x, bias))
        y: Tensor = self.mlp_norm(x + self.mlp(x))
        return y


class DecoderLayer(nn.Module):
    """Queries attend to each other, then to the cells; a norm after each residual sum."""

    def __init__(self, dim: int, heads: int, inner: int, act: str) -> None:
        super().__init__()
        self.attn, self.attn_norm = PlacedAttention(dim, heads), nn.LayerNorm(dim)
        self.cross, self.cross_norm = PlacedAttention(dim, heads), nn.LayerNorm(dim)
        self.mlp, self.mlp_norm = MLP(dim, inner, act), nn.LayerNorm(dim)

    def forward(self, x: Tensor, places: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """Shapes: x and places (B or 1, Q, C), key and value (B, S, C), bias (B, 1, 1, S) -> (B, Q, C)."""
        placed = x + places
        x = self.attn_norm(x + self.attn(placed, placed, x))
        x = self.cross_norm(x + self.cross(x + places, key, value, bias))
        y: Tensor = self.mlp_norm(x + self.mlp(x))
        return y


class Detr(nn.Module):
    """The detector: pixels to class logits and boxes of every query."""

    def __init__(self, c: DetrConfig) -> None:
        super().__init__()
        self.dim = c.d_model
        self.backbone = c.pyramid.build(c.backbone_config, c.stages)
        (width,) = c.pyramid.channels(c.backbone_config, c.stages)
        self.project = Conv(width, c.d_model, 1)
        self.positions = LearnedPositions(c.d_model) if c.position_embedding_type == "learned" else None
        self.encoder = nn.ModuleList(
            EncoderLayer(c.d_model, c.encoder_attention_heads, c.encoder_ffn_dim, c.activation_function)
            for _ in range(c.encoder_layers)
        )
        self.queries = Embedding(c.num_queries, c.d_model)
        self.layers = nn.ModuleList(
            DecoderLayer(c.d_model, c.decoder_attention_heads, c.decoder_ffn_dim, c.activation_function)
            for _ in range(c.decoder_layers)
        )
        self.norm, self.between = nn.LayerNorm(c.d_model), c.auxiliary_loss
        self.classifier, self.box_head = Linear(c.d_model, c.num_labels + 1), Head(*[c.d_model] * 3, 4)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> tuple[Tensor, ...]:
        """Pictures (B, channels, H, W), and a mask of any size, 1 where they are and 0 where padding is.

        Returns logits (B, queries, labels + 1), of which the last is nothing, and boxes (B, queries, 4): the x and y
        of the centre, width and height, as shares of the picture without its padding.
        """
        (found,) = self.backbone(pixel_values)
        rows, columns = found.shape[2], found.shape[3]
        real = F.interpolate(pixel_mask.unsqueeze(1).float(), size=(rows, columns), mode="nearest")
        real = real.squeeze(1).to(found.dtype)
        if self.positions is None:
            cell_places = masked_sine_positions(real, self.dim)
        else:
            cell_places = self.positions(rows, columns)
        bias = ((1 - real.flatten(1)) * hidden(found.dtype)).unsqueeze(1).unsqueeze(1)
        cells = sequence(self.project(found))
        for layer in self.encoder:
            cells = layer(cells, cell_places, bias)
        places, key = self.queries.weight.unsqueeze(0), cells + cell_places
        x = torch.zeros_like(places.expand(cells.shape[0], -1, -1))
        for layer in self.layers:
            x = layer(x, places, key, cells, bias)
            if self.between:  # where transformers keeps the states of all layers, the next reads them normed
                x = self.norm(x)
        x = self.norm(x)
        return self.classifier(x), torch.sigmoid(self.box_head(x))


def signature(c: DetrConfig) -> Signature:
    pixels = c.pyramid.pixels(c.backbone_config)
    (stride,) = c.pyramid.strides(c.backbone_config, c.stages)
    outputs = (
        Port("logits", "float", (BATCH, c.num_queries, c.num_labels + 1)),
        Port("pred_boxes", "float", (BATCH, c.num_queries, 4)),
    )
    mask = Port("pixel_mask", "int64", (BATCH, MASK_ROWS, MASK_COLUMNS))
    return Signature((pixels, mask), outputs, units={HEIGHT: stride, WIDTH: stride})


def _attention(hub: str, canonical: str) -> tuple[Rule, ...]:
    names = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "out"}
    return tuple(Rename(f"{hub}.{name}", f"{canonical}.{own}") for name, own in names.items())


_LAYER: tuple[Rule, ...] = (
    *_attention("self_attn", "attn"),
    Rename("self_attn_layer_norm", "attn_norm"),
    Rename("fc1", "mlp.up"),
    Rename("fc2", "mlp.down"),
    Rename("final_layer_norm", "mlp_norm"),
)
_CROSS = (*_attention("encoder_attn", "cross"), Rename("encoder_attn_layer_norm", "cross_norm"))

RULES: tuple[Rule, ...] = (
    Rename("model.input_projection", "project"),
    Rename("model.position_embedding.row_embeddings", "positions.rows"),
    Rename("model.position_embedding.column_embeddings", "positions.columns"),
    *below(_LAYER, "model.encoder.layers.*", "encoder.*"),
    Rename("model.query_position_embeddings", "queries"),
    *below((*_LAYER, *_CROSS), "model.decoder.layers.*", "layers.*"),
    Rename("model.decoder.layernorm", "norm"),
    Rename("class_labels_classifier", "classifier"),
    Rename("bbox_predictor.layers.*", "box_head.layers.*"),
)


FAMILY = Family(
    name="detr",
    title="DETR",
    model_types=("detr",),
    config=DetrConfig,
    rules=RULES,
    towers=lambda c: detector_rules(c.tower, c.timm),
    tasks=(
        Task(
            name="object-detection",
            architectures=("DetrForObjectDetection",),
            build=Detr,
            signature=signature,
            carried=lambda c: tuple(f"backbone.{name}" for name in c.pyramid.left_out(c.backbone_config, c.stages)),
        ),
    ),
    prefix="",
    no_gguf="llama.cpp has no detectors",
)
