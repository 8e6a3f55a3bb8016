"""Deformable DETR: cells and queries attend to a few points of several maps, which they choose themselves.

Zhu et al. 2020, https://arxiv.org/abs/2010.04159. The padding around a picture holds zeros, and boxes are shares of the
picture without it. With `with_box_refine` each layer of the decoder corrects the boxes of the one before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoform.errors import CheckpointError
from isoform.reference.card import Family, Pyramid, Task
from isoform.reference.config import Config, with_labels
from isoform.reference.families import Tower
from isoform.reference.modules import ops
from isoform.reference.modules.layers import MLP, Embedding, Linear, head_size
from isoform.reference.rules import Copy, Rename, Rule, below
from isoform.reference.vision.box_heads import Head
from isoform.reference.vision.maps import ConvNorm, LearnedPositions, masked_sine_positions, sequence
from isoform.reference.vision.placed_attention import PlacedAttention
from isoform.reference.vision.pyramids import pyramid_of
from isoform.reference.vision.timm_backbone import detector_backbone, detector_rules
from isoform.signature import BATCH, HEIGHT, WIDTH, Port, Signature

GROUPS = 32  # of the norms behind the backbone
MIDDLE = 0.5  # of a cell
EDGE = math.log(1e5)  # of a box before the sigmoid: what is refined is between 0.00001 and 0.99999
MASK_ROWS, MASK_COLUMNS = "mask_height", "mask_width"

Sizes = Sequence[tuple[Any, Any]]
"""Rows and columns of each map."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeformableDetrConfig(Config):
    """`tower` is the backbone, whose weights are spelled as timm has them where `timm`."""

    reads = frozenset(("backbone", "backbone_config", "backbone_kwargs", "use_timm_backbone"))
    harmless = frozenset(
        (
            *("bbox_cost", "bbox_loss_coefficient", "class_cost", "dice_loss_coefficient", "eos_coefficient"),
            *("focal_alpha", "giou_cost", "giou_loss_coefficient", "init_xavier_std", "mask_loss_coefficient"),
            *("auxiliary_loss", "encoder_layerdrop", "decoder_layerdrop", "use_pretrained_backbone"),  # of training
            *("disable_custom_kernels", "return_intermediate"),
            *("max_position_embeddings", "scale_embedding", "two_stage_num_proposals"),  # never read, or of two stages
        )
    )
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "dilation": (False, None),  # the last stage with the stride of the one before
        "two_stage": (False, None),  # cells propose the boxes
    }
    aliases: ClassVar[Mapping[str, str]] = {
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
    }

    num_channels: int = 3
    num_queries: int = 300
    encoder_layers: int = 6
    encoder_ffn_dim: int = 1024
    encoder_attention_heads: int = 8
    decoder_layers: int = 6
    decoder_ffn_dim: int = 1024
    decoder_attention_heads: int = 8
    activation_function: str = "relu"
    d_model: int = 256
    position_embedding_type: str = "sine"
    num_feature_levels: int = 4
    encoder_n_points: int = 4
    decoder_n_points: int = 4
    with_box_refine: bool = False
    num_labels: int = 2
    timm: bool = False
    tower: Tower | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DeformableDetrConfig:
        config = super(DeformableDetrConfig, cls).from_dict(with_labels(data))
        levels = config.num_feature_levels
        tower, timm = detector_backbone(data, config.num_channels, (2, 3, 4) if levels > 1 else (4,))
        config = replace(config, tower=tower, timm=timm)
        if config.position_embedding_type not in ("sine", "learned"):
            raise CheckpointError(
                f"config.json: position_embedding_type is {config.position_embedding_type!r:.40}, not sine or learned"
            )
        if config.d_model % GROUPS:
            raise CheckpointError(f"config.json: d_model is {config.d_model}, no multiple of {GROUPS}")
        if levels < len(config.stages):
            raise CheckpointError(
                f"config.json: num_feature_levels is {levels}, and the backbone gives {len(config.stages)} maps"
            )
        return config

    @property
    def pyramid(self) -> Pyramid:
        """How the backbone's maps are read."""
        assert self.tower is not None
        return pyramid_of(self.tower)

    @property
    def backbone_config(self) -> Any:
        assert self.tower is not None
        return self.tower.config

    @property
    def stages(self) -> tuple[str, ...]:
        found: tuple[str, ...] = self.backbone_config.stages
        return found

    @property
    def num_hidden_layers(self) -> int:
        return self.decoder_layers


class SampledAttention(nn.Module):
    """Attention to a few points of each map around a place, or around a box in measures of its width and height."""

    def __init__(self, dim: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        head_size(dim, heads, "d_model", "the attention heads")
        self.heads, self.levels, self.points = heads, levels, points
        self.offsets = Linear(dim, heads * levels * points * 2)
        self.shares = Linear(dim, heads * levels * points)
        self.value, self.out = Linear(dim, dim), Linear(dim, dim)

    def forward(self, x: Tensor, around: Tensor, cells: Tensor, real: Tensor, sizes: Sizes) -> Tensor:
        """Shapes: x (B, T, C), around (B, T, levels, 2 or 4), cells (B, S, C), real (B, S, 1) -> (B, T, C)."""
        offsets = self.offsets(x).unflatten(-1, (self.heads, self.levels, self.points, 2)).to(around.dtype)
        shares = self.shares(x).unflatten(-1, (self.heads, self.levels * self.points)).softmax(-1)
        shares = shares.unflatten(-1, (self.levels, self.points))
        values, start, found = self.value(cells) * real, 0, []
        for level, (rows, columns) in enumerate(sizes):
            end = start + rows * columns
            mine = around[:, :, level].unsqueeze(2).unsqueeze(2)
            if around.shape[-1] == 4:
                steps = mine[..., 2:] * (0.5 / self.points)
            else:
                one = torch.ones(1, device=x.device, dtype=around.dtype)
                steps = 1 / torch.stack([one * side for side in (columns, rows)], -1)
            places = mine[..., :2] + offsets[:, :, :, level] * steps
            maps = values[:, start:end].unflatten(1, (rows, columns))
            found.append(ops.sampled_attention(maps, places, shares[:, :, :, level], self.heads, 0))
            start = end
        y: Tensor = self.out(sum(found[1:], found[0]))
        return y


class EncoderLayer(nn.Module):
    """Cells attend to points of all maps, then an MLP; a norm after each residual sum."""

    def __init__(self, c: DeformableDetrConfig) -> None:
        super().__init__()
        dim = c.d_model
        self.attn = SampledAttention(dim, c.encoder_attention_heads, c.num_feature_levels, c.encoder_n_points)
        self.attn_norm = nn.LayerNorm(dim)
        self.mlp, self.mlp_norm = MLP(dim, c.encoder_ffn_dim, c.activation_function), nn.LayerNorm(dim)

    def forward(self, x: Tensor, places: Tensor, around: Tensor, real: Tensor, sizes: Sizes) -> Tensor:
        x = self.attn_norm(x + self.attn(x + places, around, x, real, sizes))
        y: Tensor = self.mlp_norm(x + self.mlp(x))
        return y


class DecoderLayer(nn.Module):
    """Queries attend to each other, then to points of all maps; a norm after each residual sum."""

    def __init__(self, c: DeformableDetrConfig) -> None:
        super().__init__()
        dim, heads = c.d_model, c.decoder_attention_heads
        self.attn, self.attn_norm = PlacedAttention(dim, heads), nn.LayerNorm(dim)
        self.cross = SampledAttention(dim, heads, c.num_feature_levels, c.decoder_n_points)
        self.cross_norm = nn.LayerNorm(dim)
        self.mlp, self.mlp_norm = MLP(dim, c.decoder_ffn_dim, c.activation_function), nn.LayerNorm(dim)

    def forward(self, x: Tensor, places: Tensor, around: Tensor, cells: Tensor, real: Tensor, sizes: Sizes) -> Tensor:
        placed = x + places
        x = self.attn_norm(x + self.attn(placed, placed, x))
        x = self.cross_norm(x + self.cross(x + places, around, cells, real, sizes))
        y: Tensor = self.mlp_norm(x + self.mlp(x))
        return y


class DeformableDetr(nn.Module):
    """The detector: pixels to class logits and boxes of every query."""

    def __init__(self, c: DeformableDetrConfig) -> None:
        super().__init__()
        self.dim, self.refines = c.d_model, c.with_box_refine
        self.backbone = c.pyramid.build(c.backbone_config, c.stages)
        widths = c.pyramid.channels(c.backbone_config, c.stages)
        more = range(c.num_feature_levels - len(widths))
        self.project = nn.ModuleList(
            (
                *(ConvNorm(width, c.d_model, 1, GROUPS, True) for width in widths),
                *(ConvNorm(c.d_model if n else widths[-1], c.d_model, 3, GROUPS, True, 2) for n in more),
            )
        )
        self.positions = LearnedPositions(c.d_model) if c.position_embedding_type == "learned" else None
        self.level_embed = nn.Parameter(torch.zeros(c.num_feature_levels, c.d_model))
        self.encoder = nn.ModuleList(EncoderLayer(c) for _ in range(c.encoder_layers))
        self.queries = Embedding(c.num_queries, 2 * c.d_model)
        self.points = Linear(c.d_model, 2)
        self.layers = nn.ModuleList(DecoderLayer(c) for _ in range(c.decoder_layers))
        heads = c.decoder_layers if c.with_box_refine else 1
        self.box_heads = nn.ModuleList(Head(*[c.d_model] * 3, 4) for _ in range(heads))
        self.classifier = Linear(c.d_model, c.num_labels)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> tuple[Tensor, ...]:
        """Pictures (B, channels, H, W), and a mask of any size, 1 where they are and 0 where padding is.

        Returns logits (B, queries, labels) and boxes (B, queries, 4): the x and y of the centre, width and height, as
        shares of the picture without its padding.
        """
        found = self.backbone(pixel_values)
        maps = [layer(x) for layer, x in zip(self.project, found, strict=False)]
        for n in range(len(maps), len(self.project)):
            maps.append(self.project[n](maps[-1] if n > len(found) else found[-1]))
        sizes = [(x.shape[2], x.shape[3]) for x in maps]
        masks = [
            F.interpolate(pixel_mask.unsqueeze(1).float(), size=size, mode="nearest").squeeze(1).to(maps[0].dtype)
            for size in sizes
        ]
        places = torch.cat([self._placed(mask) + self.level_embed[n] for n, mask in enumerate(masks)], 1)
        ratios = torch.stack([_ratios(mask) for mask in masks], 1)  # (B, levels, 2)
        centres = torch.cat([_centres(mask) for mask in masks], 1)
        around = centres.unsqueeze(2) * ratios.unsqueeze(1)
        real = torch.cat([mask.flatten(1) for mask in masks], 1).unsqueeze(-1)
        cells = torch.cat([sequence(x) for x in maps], 1)
        for layer in self.encoder:
            cells = layer(cells, places, around, real, sizes)
        return self._decoded(cells, ratios, real, sizes)

    def _decoded(self, cells: Tensor, ratios: Tensor, real: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor]:
        told = self.queries.weight.unsqueeze(0).expand(cells.shape[0], -1, -1)
        places, x = told[..., : self.dim], told[..., self.dim :]
        guess = self.points(places)  # before the sigmoid: x and y, and once they are refined width and height
        for n, layer in enumerate(self.layers):
            shares = ratios if guess.shape[-1] == 2 else torch.cat((ratios, ratios), -1)
            around = torch.sigmoid(guess).to(ratios.dtype).unsqueeze(2) * shares.unsqueeze(1)
            x = layer(x, places, around, cells, real, sizes)
            if self.refines:
                guess = _moved(self.box_heads[n](x), guess)
        boxes = guess if self.refines else _moved(self.box_heads[0](x), guess)
        return self.classifier(x), torch.sigmoid(boxes)

    def _placed(self, mask: Tensor) -> Tensor:
        if self.positions is None:
            return masked_sine_positions(mask, self.dim, MIDDLE)
        places: Tensor = self.positions(mask.shape[1], mask.shape[2])
        return places.expand(mask.shape[0], -1, -1)


def _moved(change: Tensor, guess: Tensor) -> Tensor:
    """A box before the sigmoid, moved from where it was guessed, (B, Q, 2 or 4): (B, Q, 4)."""
    guess = guess.clamp(-EDGE, EDGE)
    if guess.shape[-1] == 4:
        return change + guess
    return torch.cat((change[..., :2] + guess, change[..., 2:]), -1)


def _ratios(mask: Tensor) -> Tensor:
    """The share of columns, and of rows, that are no padding: (B, H, W) -> (B, 2), in float32 or wider."""
    wide = mask.to(torch.promote_types(mask.dtype, torch.float32))
    return torch.stack((wide[:, 0].mean(-1), wide[:, :, 0].mean(-1)), -1)


def _centres(mask: Tensor) -> Tensor:
    """The x and y of the middle of each cell, as shares of the columns and rows that are no padding: (B, H * W, 2)."""
    wide = mask.to(torch.promote_types(mask.dtype, torch.float32))
    rows, columns = mask.shape[1], mask.shape[2]
    counts = wide[:, 0].sum(-1), wide[:, :, 0].sum(-1)
    across, down = (
        (torch.arange(size, device=mask.device).to(wide.dtype) + MIDDLE).unsqueeze(0) / count.unsqueeze(1)
        for size, count in zip((columns, rows), counts, strict=True)
    )
    x, y = across.unsqueeze(1).expand(-1, rows, -1), down.unsqueeze(2).expand(-1, -1, columns)
    return torch.stack((x, y), -1).flatten(1, 2)


def signature(c: DeformableDetrConfig) -> Signature:
    pixels = c.pyramid.pixels(c.backbone_config)
    stride = c.pyramid.strides(c.backbone_config, c.stages)[-1]
    outputs = (
        Port("logits", "float", (BATCH, c.num_queries, c.num_labels)),
        Port("pred_boxes", "float", (BATCH, c.num_queries, 4)),
    )
    mask = Port("pixel_mask", "int64", (BATCH, MASK_ROWS, MASK_COLUMNS))
    return Signature((pixels, mask), outputs, units={HEIGHT: stride, WIDTH: stride})


def _sampled(hub: str, canonical: str) -> tuple[Rule, ...]:
    names = {
        "sampling_offsets": "offsets",
        "attention_weights": "shares",
        "value_proj": "value",
        "output_proj": "out",
    }
    return tuple(Rename(f"{hub}.{name}", f"{canonical}.{own}") for name, own in names.items())


_LAYER: tuple[Rule, ...] = (
    Rename("self_attn_layer_norm", "attn_norm"),
    Rename("fc1", "mlp.up"),
    Rename("fc2", "mlp.down"),
    Rename("final_layer_norm", "mlp_norm"),
)
_ENCODER = (*_sampled("self_attn", "attn"), *_LAYER)
_DECODER = (
    *(
        Rename(f"self_attn.{hub}", f"attn.{own}")
        for hub, own in {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "out"}.items()
    ),
    *_LAYER,
    *_sampled("encoder_attn", "cross"),
    Rename("encoder_attn_layer_norm", "cross_norm"),
)

RULES: tuple[Rule, ...] = (
    Rename("model.input_proj.*.0", "project.*.conv"),
    Rename("model.input_proj.*.1", "project.*.norm"),
    Rename("model.position_embedding.row_embeddings", "positions.rows"),
    Rename("model.position_embedding.column_embeddings", "positions.columns"),
    Rename("model.level_embed", "level_embed"),
    *below(_ENCODER, "model.encoder.layers.*", "encoder.*"),
    Rename("model.query_position_embeddings", "queries"),
    Rename("model.reference_points", "points"),
    *below(_DECODER, "model.decoder.layers.*", "layers.*"),
)


def _heads(c: Any) -> tuple[Rule, ...]:
    """The rules of the heads: one that files repeat for each layer, or one for each layer, which they repeat as well.

    Those that classify the states of other layers than the last are of training.
    """
    layers = range(c.decoder_layers)
    if c.with_box_refine:
        last = c.decoder_layers - 1
        return (
            Rename("bbox_embed.*.layers.*", "box_heads.*.layers.*"),
            Copy("model.decoder.bbox_embed.*.layers.*", "box_heads.*.layers.*"),
            *(Rename(f"class_embed.{n}", "classifier" if n == last else f"class_heads.{n}") for n in layers),
        )
    return (
        Rename("bbox_embed.0.layers.*", "box_heads.0.layers.*"),
        Rename("class_embed.0", "classifier"),
        *(Copy(f"bbox_embed.{n}.layers.*", "box_heads.0.layers.*") for n in layers[1:]),
        *(Copy(f"class_embed.{n}", "classifier") for n in layers[1:]),
    )


FAMILY = Family(
    name="deformable_detr",
    title="Deformable DETR",
    model_types=("deformable_detr",),
    config=DeformableDetrConfig,
    rules=RULES,
    towers=lambda c: (*detector_rules(c.tower, c.timm), *_heads(c)),
    tasks=(
        Task(
            name="object-detection",
            architectures=("DeformableDetrForObjectDetection",),
            build=DeformableDetr,
            signature=signature,
            carried=lambda c: (
                "class_heads",
                *(f"backbone.{name}" for name in c.pyramid.left_out(c.backbone_config, c.stages)),
            ),
        ),
    ),
    prefix="",
    no_gguf="llama.cpp has no detectors",
)
