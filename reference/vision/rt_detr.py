"""RT-DETR: a detector whose decoder refines the boxes of the likeliest places of a picture, without suppressing any.

Zhao et al. 2023, https://arxiv.org/abs/2304.08069; version 2 is Lv et al. 2024, https://arxiv.org/abs/2407.17140. The
maps of a backbone are mixed by an encoder that attends within the smallest and convolves across all. Each place of each
map proposes a box; those of the highest class scores become the queries.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.card import Family, Pyramid, Task
from isoform.reference.config import Config, with_labels
from isoform.reference.families import Tower
from isoform.reference.modules import ops
from isoform.reference.modules.layers import MLP, Linear, activation, head_size
from isoform.reference.rules import Copy, Drop, Rename, Rule, below
from isoform.reference.vision.box_heads import Head
from isoform.reference.vision.convolutions import ConvNorm, conv_norm
from isoform.reference.vision.patches import pixels
from isoform.reference.vision.placed_attention import PlacedAttention
from isoform.reference.vision.pyramids import backbone, pyramid_of
from isoform.signature import BATCH, HEIGHT, WIDTH, Port, Signature

ANCHOR = 0.05  # a side of the boxes that the first map proposes; each further map doubles it
MARGIN = 0.01  # a box closer to 0 or 1 than that proposes nothing
EDGE = math.log(1e5)  # of a box before the sigmoid: what is refined is between 0.00001 and 0.99999
METHODS = {"default": 0, "discrete": 1}
"""config.json's `decoder_method` -> the method of `ops.sampled_attention`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RtDetrConfig(Config):
    """`tower` is the backbone, `version` 1 or 2."""

    reads = frozenset(("backbone_config",))
    harmless = frozenset(
        (
            *("auxiliary_loss", "box_noise_scale", "disable_custom_kernels", "eos_coefficient", "focal_loss_alpha"),
            *("focal_loss_gamma", "freeze_backbone_batch_norms", "initializer_bias_prior_prob", "label_noise_ratio"),
            *("matcher_alpha", "matcher_bbox_cost", "matcher_class_cost", "matcher_gamma", "matcher_giou_cost"),
            *("num_denoising", "use_focal_loss", "use_pretrained_backbone", "weight_loss_bbox", "weight_loss_giou"),
            *("weight_loss_vfl", "with_box_refine"),  # of training, and never read
        )
    )
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "backbone": (None,),
        "backbone_kwargs": (None, {}),
        "learn_initial_query": (False, None),  # transformers has no code that runs with it
        "use_timm_backbone": (False, None),
    }
    aliases: ClassVar[Mapping[str, str]] = {
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
    }

    layer_norm_eps: float = 1e-5
    batch_norm_eps: float = 1e-5
    encoder_hidden_dim: int = 256
    encoder_in_channels: tuple[int, ...] = (512, 1024, 2048)
    feat_strides: tuple[int, ...] = (8, 16, 32)
    encoder_layers: int = 1
    encoder_ffn_dim: int = 1024
    encoder_attention_heads: int = 8
    encode_proj_layers: tuple[int, ...] = (2,)
    positional_encoding_temperature: float = 10000
    encoder_activation_function: str = "gelu"
    activation_function: str | None = "silu"
    eval_size: int | None = None
    normalize_before: bool = False
    hidden_expansion: float = 1.0
    d_model: int = 256
    num_queries: int = 300
    decoder_in_channels: tuple[int, ...] = (256, 256, 256)
    decoder_ffn_dim: int = 1024
    num_feature_levels: int = 3
    decoder_n_points: int = 4
    decoder_layers: int = 6
    decoder_attention_heads: int = 8
    decoder_activation_function: str = "relu"
    anchor_image_size: tuple[int, ...] | None = None
    decoder_n_levels: int | None = None
    decoder_offset_scale: float = 0.5
    decoder_method: str = "default"
    num_labels: int = 2
    version: int = 2
    tower: Tower | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RtDetrConfig:
        version = 1 if data.get("model_type") == "rt_detr" else 2
        layers = data.get("encoder_layers")
        config = super(RtDetrConfig, cls).from_dict(with_labels({**data, "encoder_layers": layers or None}))
        given = data if data.get("backbone_config") else {**data, "backbone_config": {"out_indices": [2, 3, 4]}}
        config = replace(
            config,
            version=version,
            tower=backbone(given, "backbone_config", "rt_detr_resnet"),
            encoder_layers=0 if layers == 0 else config.encoder_layers,
        )
        config._check()
        return config

    def _check(self) -> None:
        """Raise CheckpointError for settings that exclude each other, UnsupportedModel for those of another version."""
        maps, levels = len(self.widths), self.num_feature_levels
        wrong = [
            ("the length of encoder_in_channels", (len(self.encoder_in_channels),), (maps,)),
            ("decoder_in_channels", self.decoder_in_channels, (self.encoder_hidden_dim,) * maps),
            ("decoder_n_levels", (self.decoder_n_levels or (levels if self.version == 1 else 3),), (levels,)),
        ]
        if self.anchor_image_size is not None:
            wrong.append(("feat_strides", self.feat_strides, self.strides[:maps]))
        for key, found, expected in wrong:
            if found != expected:
                raise CheckpointError(f"config.json: {key} is {found}, and the maps of the model say {expected}")
        if levels < maps:
            raise CheckpointError(f"config.json: num_feature_levels is {levels}, and the backbone gives {maps} maps")
        if any(after != 2 * before for before, after in pairwise(self.strides[:maps])):
            raise CheckpointError(
                f"config.json: the backbone's maps have strides {self.strides}; each doubles the last"
            )
        if any(not 0 <= n < maps for n in self.encode_proj_layers):
            raise CheckpointError(f"config.json: encode_proj_layers is {self.encode_proj_layers}, of {maps} maps")
        if self.encoder_hidden_dim % 4:
            raise CheckpointError(f"config.json: encoder_hidden_dim is {self.encoder_hidden_dim}, no multiple of 4")
        if self.anchor_image_size is not None and len(self.anchor_image_size) != 2:
            raise CheckpointError(f"config.json: anchor_image_size is {self.anchor_image_size}, not height and width")
        if self.anchor_image_size is not None and levels > maps:
            raise UnsupportedModel("config.json: anchor_image_size with more levels than maps is not supported")
        if self.decoder_method not in METHODS:
            raise CheckpointError(
                f"config.json: decoder_method is {self.decoder_method!r:.40}, not default or discrete"
            )
        if self.version == 1 and (self.decoder_method, self.decoder_offset_scale) != ("default", 0.5):
            raise UnsupportedModel(
                "config.json: decoder_method and decoder_offset_scale are of rt_detr_v2, not rt_detr"
            )

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
    def widths(self) -> tuple[int, ...]:
        """Channels of the backbone's maps."""
        return self.pyramid.channels(self.backbone_config, self.stages)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels to a cell of each level; all that are added to the backbone's have one size."""
        found = self.pyramid.strides(self.backbone_config, self.stages)
        return (*found, *(2 * found[-1] for _ in range(self.num_feature_levels - len(found))))

    @property
    def num_hidden_layers(self) -> int:
        return self.decoder_layers

    @property
    def image_size(self) -> tuple[int, ...] | None:
        return self.anchor_image_size

    @property
    def unit(self) -> int:
        """Rows and columns of pixels come in multiples of it; three by four of them hold all queries."""
        stride = self.strides[len(self.stages) - 1]
        times = 1
        while sum(12 * (times * stride) ** 2 // level**2 for level in self.strides) < self.num_queries:
            times *= 2
        return times * stride


def positions(like: Tensor, rows: Any, columns: Any, width: int, temperature: float) -> Tensor:
    """Sines and cosines of a cell's row, then of its column: (rows * columns, width), in the dtype of `like`."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    steps = torch.arange(width // 4, device=like.device).to(dtype) / (width // 4)
    speeds = 1 / temperature**steps
    down, across = (
        torch.arange(count, device=like.device).to(dtype).unsqueeze(-1) * speeds for count in (rows, columns)
    )
    down, across = (torch.cat((angles.sin(), angles.cos()), -1) for angles in (down, across))
    down = down.unsqueeze(1).expand(-1, columns, -1)
    across = across.unsqueeze(0).expand(rows, -1, -1)
    return torch.cat((down, across), -1).flatten(0, 1).to(like.dtype)


class EncoderLayer(nn.Module):
    """Self-attention and an MLP, with norms after both residual sums, or before both branches (`first`)."""

    def __init__(self, c: RtDetrConfig) -> None:
        super().__init__()
        dim = c.encoder_hidden_dim
        self.first = c.normalize_before
        self.attn, self.attn_norm = PlacedAttention(dim, c.encoder_attention_heads), nn.LayerNorm(dim, c.layer_norm_eps)
        self.mlp = MLP(dim, c.encoder_ffn_dim, c.encoder_activation_function)
        self.mlp_norm = nn.LayerNorm(dim, c.layer_norm_eps)

    def forward(self, x: Tensor, places: Tensor | None) -> Tensor:
        if not self.first:
            x = self.attn_norm(x + self._attended(x, places))
            y: Tensor = self.mlp_norm(x + self.mlp(x))
            return y
        x = x + self._attended(self.attn_norm(x), places)
        x = self.mlp_norm(x)  # what is added to is normed, too: so the Hub's code has it
        return x + self.mlp(x)

    def _attended(self, x: Tensor, places: Tensor | None) -> Tensor:
        placed = x if places is None else x + places
        y: Tensor = self.attn(placed, placed, x)
        return y


class MapEncoder(nn.Module):
    """Layers over the cells of one map (AIFI). Where `eval_size` is set they are told no places outside training."""

    def __init__(self, c: RtDetrConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(c) for _ in range(c.encoder_layers))
        self.width, self.temperature = c.encoder_hidden_dim, c.positional_encoding_temperature
        self.placed = c.eval_size is None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        rows, columns = x.shape[2], x.shape[3]
        places = positions(x, rows, columns, self.width, self.temperature).unsqueeze(0) if self.placed else None
        y = x.flatten(2).transpose(1, 2)
        for layer in self.layers:
            y = layer(y, places)
        return y.transpose(1, 2).unflatten(2, (rows, columns))


class RepBlock(nn.Module):
    """act(convolution of 3 x 3 + convolution of 1 x 1), computed as one convolution.

    Ding et al. 2021, https://arxiv.org/abs/2101.03697.
    """

    def __init__(self, dim: int, act: str | None, eps: float) -> None:
        super().__init__()
        self.wide, self.narrow = ConvNorm(dim, dim, 3, eps=eps), ConvNorm(dim, dim, 1, eps=eps)
        self.act = activation(act or "linear")

    def forward(self, x: Tensor) -> Tensor:
        wide, shift = self.wide.folded()
        narrow, other = self.narrow.folded()
        return self.act(F.conv2d(x, wide + F.pad(narrow, [1, 1, 1, 1]), shift + other, padding=1))


class Fusion(nn.Module):
    """Two maps of one size, their channels side by side, to one: a deep branch and a shallow one, added."""

    def __init__(self, c: RtDetrConfig) -> None:
        super().__init__()
        dim, act, eps = c.encoder_hidden_dim, c.activation_function, c.batch_norm_eps
        inner = int(dim * c.hidden_expansion)
        self.deep, self.shallow = (ConvNorm(2 * dim, inner, 1, act=act, eps=eps) for _ in range(2))
        self.blocks = nn.ModuleList(RepBlock(inner, act, eps) for _ in range(3))
        self.out = ConvNorm(inner, dim, 1, act=act, eps=eps) if inner != dim else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.deep(x)
        for block in self.blocks:
            y = block(y)
        y = y + self.shallow(x)
        return y if self.out is None else self.out(y)


class Encoder(nn.Module):
    """The hybrid encoder: attention within chosen maps, then from the smallest up to the largest, and down again."""

    def __init__(self, c: RtDetrConfig) -> None:
        super().__init__()
        dim, act, eps, steps = c.encoder_hidden_dim, c.activation_function, c.batch_norm_eps, len(c.widths) - 1
        self.chosen = c.encode_proj_layers if c.encoder_layers else ()
        self.within = nn.ModuleList(MapEncoder(c) for _ in self.chosen)
        self.laterals = nn.ModuleList(ConvNorm(dim, dim, 1, act=act, eps=eps) for _ in range(steps))
        self.up = nn.ModuleList(Fusion(c) for _ in range(steps))
        self.shrink = nn.ModuleList(ConvNorm(dim, dim, 3, 2, act=act, eps=eps) for _ in range(steps))
        self.down = nn.ModuleList(Fusion(c) for _ in range(steps))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps (B, C, H, W), each with half the rows and columns of the one before it; the same sizes come out."""
        maps = list(maps)
        for n, layers in zip(self.chosen, self.within, strict=True):
            maps[n] = layers(maps[n])
        grown = [maps[-1]]
        for lateral, fusion, below_it in zip(self.laterals, self.up, maps[-2::-1], strict=True):
            grown[-1] = lateral(grown[-1])
            larger = F.interpolate(grown[-1], scale_factor=2.0, mode="nearest")
            grown.append(fusion(torch.cat((larger, below_it), 1)))
        found = [grown.pop()]
        for shrink, fusion in zip(self.shrink, self.down, strict=True):
            found.append(fusion(torch.cat((shrink(found[-1]), grown.pop()), 1)))
        return found


class SampledAttention(nn.Module):
    """Attention to a few points of each map, which lie around the query's box in measures of its width and height."""

    def __init__(self, c: RtDetrConfig) -> None:
        super().__init__()
        dim, self.heads = c.d_model, c.decoder_attention_heads
        head_size(dim, self.heads, "d_model", "decoder_attention_heads")
        self.levels, self.points = c.num_feature_levels, c.decoder_n_points
        self.reach, self.method = c.decoder_offset_scale / self.points, METHODS[c.decoder_method]
        self.offsets = Linear(dim, self.heads * self.levels * self.points * 2)
        self.shares = Linear(dim, self.heads * self.levels * self.points)
        self.value, self.out = Linear(dim, dim), Linear(dim, dim)

    def forward(self, x: Tensor, boxes: Tensor, cells: Tensor, sizes: Sequence[tuple[Any, Any]]) -> Tensor:
        """Shapes: x (B, T, C), boxes (B, T, 4), cells (B, S, C) of maps of these rows and columns -> (B, T, C)."""
        each = self.levels * self.points
        offsets = self.offsets(x).unflatten(-1, (self.heads, each, 2))
        centres, spans = (part.unsqueeze(2).unsqueeze(2) for part in (boxes[..., :2], boxes[..., 2:]))
        places = centres + offsets * (spans * self.reach)
        weights = self.shares(x).unflatten(-1, (self.heads, each)).softmax(-1)
        values, start, found = self.value(cells), 0, []
        for n, (rows, columns) in enumerate(sizes):
            end, mine = start + rows * columns, slice(n * self.points, (n + 1) * self.points)
            level = values[:, start:end].unflatten(1, (rows, columns))
            picked = ops.sampled_attention(level, places[:, :, :, mine], weights[..., mine], self.heads, self.method)
            found.append(picked)
            start = end
        y: Tensor = self.out(sum(found[1:], found[0]))
        return y


class DecoderLayer(nn.Module):
    """Queries attend to each other, then to the maps; a norm after each residual sum."""

    def __init__(self, c: RtDetrConfig) -> None:
        super().__init__()
        dim, eps = c.d_model, c.layer_norm_eps
        self.attn, self.attn_norm = PlacedAttention(dim, c.decoder_attention_heads), nn.LayerNorm(dim, eps)
        self.cross, self.cross_norm = SampledAttention(c), nn.LayerNorm(dim, eps)
        self.mlp, self.mlp_norm = MLP(dim, c.decoder_ffn_dim, c.decoder_activation_function), nn.LayerNorm(dim, eps)

    def forward(
        self, x: Tensor, places: Tensor, boxes: Tensor, cells: Tensor, sizes: Sequence[tuple[Any, Any]]
    ) -> Tensor:
        placed = x + places
        x = self.attn_norm(x + self.attn(placed, placed, x))
        x = self.cross_norm(x + self.cross(x + places, boxes, cells, sizes))
        y: Tensor = self.mlp_norm(x + self.mlp(x))
        return y


class Anchors(nn.Module):
    """The box that each cell of all maps proposes, before the sigmoid, and whether it is one."""

    def forward(self, like: Tensor, sizes: Sequence[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
        """Rows and columns of each map -> float32 or wider (1, cells, 4), and bool (1, cells, 1).

        Of a box that touches an edge the numbers are the largest that `like` could hold.
        """
        dtype = torch.promote_types(like.dtype, torch.float32)
        boxes = []
        for n, (rows, columns) in enumerate(sizes):
            down, across = (
                (torch.arange(count, device=like.device).to(dtype) + 0.5) / count for count in (rows, columns)
            )
            x, y = across.unsqueeze(0).expand(rows, -1), down.unsqueeze(1).expand(-1, columns)
            size = torch.ones_like(x) * (ANCHOR * 2.0**n)
            boxes.append(torch.stack((x, y, size, size), -1).flatten(0, 1))
        every = torch.cat(boxes).unsqueeze(0)
        inside = (every > MARGIN) & (every < 1 - MARGIN)
        real = inside[..., :1] & inside[..., 1:2] & inside[..., 2:3] & inside[..., 3:]
        largest = torch.finfo(like.dtype).max
        return torch.where(real, torch.log(every / (1 - every)), largest), real


class RtDetr(nn.Module):
    """The detector: pixels to class logits and boxes of every query."""

    def __init__(self, c: RtDetrConfig) -> None:
        super().__init__()
        dim, inner, eps = c.d_model, c.encoder_hidden_dim, c.batch_norm_eps
        self.queries = c.num_queries
        self.backbone = c.pyramid.build(c.backbone_config, c.stages)
        self.encoder_inputs = nn.ModuleList(ConvNorm(width, inner, 1) for width in c.widths)
        self.encoder = Encoder(c)
        more = range(c.num_feature_levels - len(c.widths))
        self.decoder_inputs = nn.ModuleList(
            (
                *(ConvNorm(width, dim, 1, eps=eps) for width in c.decoder_in_channels),
                *(ConvNorm(dim if n else inner, dim, 3, 2, eps=eps) for n in more),
            )
        )
        self.anchors = Anchors()
        self.propose = nn.ModuleDict({"dense": Linear(dim, dim), "norm": nn.LayerNorm(dim, c.layer_norm_eps)})
        self.propose_class, self.propose_box = Linear(dim, c.num_labels), Head(dim, dim, dim, 4)
        self.box_embed = Head(4, 2 * dim, dim)
        self.layers = nn.ModuleList(DecoderLayer(c) for _ in range(c.decoder_layers))
        self.box_heads = nn.ModuleList(Head(dim, dim, dim, 4) for _ in range(c.decoder_layers))
        self.class_heads = nn.ModuleDict({str(c.decoder_layers - 1): Linear(dim, c.num_labels)})

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Pictures (B, 3, H, W) -> logits (B, queries, labels) and boxes (B, queries, 4).

        A box is the x and y of its centre, its width and its height, as shares of the picture's.
        """
        maps = [layer(x) for layer, x in zip(self.encoder_inputs, self.backbone(pixel_values), strict=True)]
        maps = self.encoder(maps)
        last = [maps[-1]] * (len(self.decoder_inputs) - len(maps))
        maps = [layer(x) for layer, x in zip(self.decoder_inputs, (*maps, *last), strict=True)]
        sizes = [(level.shape[2], level.shape[3]) for level in maps]
        cells = torch.cat([level.flatten(2) for level in maps], 2).transpose(1, 2)
        x, places = self.proposed(cells, sizes)
        for layer, head in zip(self.layers, self.box_heads, strict=True):
            boxes = torch.sigmoid(places)
            x = layer(x, self.box_embed(boxes), boxes, cells, sizes)
            places = head(x) + places.clamp(-EDGE, EDGE)
        (classify,) = self.class_heads.values()
        return classify(x), torch.sigmoid(places)

    def proposed(self, cells: Tensor, sizes: Sequence[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
        """The states of the cells with the highest scores of any class, and their boxes before the sigmoid.

        Shapes: (B, queries, C) and (B, queries, 4).
        """
        starts, real = self.anchors(cells, sizes)
        states = self.propose["norm"](self.propose["dense"](real.to(cells.dtype) * cells))
        best = self.propose_class(states).amax(-1)
        _, chosen = torch.topk(best, self.queries, 1)
        chosen = chosen.unsqueeze(-1)
        x = states.gather(1, chosen.expand(-1, -1, states.shape[-1]))
        starts = starts.expand(x.shape[0], -1, -1).gather(1, chosen.expand(-1, -1, 4))
        return x, self.propose_box(x) + starts.to(x.dtype)


def signature(c: RtDetrConfig) -> Signature:
    channels = c.pyramid.pixels(c.backbone_config).axes[1]
    assert isinstance(channels, int)
    outputs = (
        Port("logits", "float", (BATCH, c.num_queries, c.num_labels)),
        Port("pred_boxes", "float", (BATCH, c.num_queries, 4)),
    )
    fixed = c.anchor_image_size
    return Signature((pixels(channels, fixed),), outputs, units={} if fixed else {HEIGHT: c.unit, WIDTH: c.unit})


_ATTENTION = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "out"}
_LAYER = (
    *(Rename(f"self_attn.{hub}", f"attn.{name}") for hub, name in _ATTENTION.items()),
    Rename("self_attn_layer_norm", "attn_norm"),
    Rename("fc1", "mlp.up"),
    Rename("fc2", "mlp.down"),
    Rename("final_layer_norm", "mlp_norm"),
)
_CROSS = (
    Rename("encoder_attn.sampling_offsets", "cross.offsets"),
    Rename("encoder_attn.attention_weights", "cross.shares"),
    Rename("encoder_attn.value_proj", "cross.value"),
    Rename("encoder_attn.output_proj", "cross.out"),
    Rename("encoder_attn_layer_norm", "cross_norm"),
    Drop("encoder_attn.n_points_scale"),  # one divided by the number of points
)


def _fusion(hub: str, canonical: str) -> tuple[Rule, ...]:
    names = {"conv1": "deep", "conv2": "shallow", "conv3": "out"}
    names |= {"bottlenecks.*.conv1": "blocks.*.wide", "bottlenecks.*.conv2": "blocks.*.narrow"}
    rules = (rule for conv, name in names.items() for rule in conv_norm((f"{conv}.conv", f"{conv}.norm"), name))
    return below(rules, hub, canonical)


RULES: tuple[Rule, ...] = (
    *conv_norm(("model.encoder_input_proj.*.0", "model.encoder_input_proj.*.1"), "encoder_inputs.*"),
    *conv_norm(("model.decoder_input_proj.*.0", "model.decoder_input_proj.*.1"), "decoder_inputs.*"),
    *below(_LAYER, "model.encoder.encoder.*.layers.*", "encoder.within.*.layers.*"),
    *conv_norm(("model.encoder.lateral_convs.*.conv", "model.encoder.lateral_convs.*.norm"), "encoder.laterals.*"),
    *conv_norm(("model.encoder.downsample_convs.*.conv", "model.encoder.downsample_convs.*.norm"), "encoder.shrink.*"),
    *_fusion("model.encoder.fpn_blocks.*", "encoder.up.*"),
    *_fusion("model.encoder.pan_blocks.*", "encoder.down.*"),
    Rename("model.enc_output.0", "propose.dense"),
    Rename("model.enc_output.1", "propose.norm"),
    Rename("model.enc_score_head", "propose_class"),
    Rename("model.enc_bbox_head.layers.*", "propose_box.layers.*"),
    Rename("model.decoder.query_pos_head.layers.*", "box_embed.layers.*"),
    *below((*_LAYER, *_CROSS), "model.decoder.layers.*", "layers.*"),
    Rename("model.decoder.bbox_embed.*.layers.*", "box_heads.*.layers.*"),
    Rename("model.decoder.class_embed.*", "class_heads.*"),
    Copy("bbox_embed.*.layers.*", "box_heads.*.layers.*"),
    Copy("class_embed.*", "class_heads.*"),
    Rename("model.denoising_class_embed", "denoise"),
)

FAMILY = Family(
    name="rt_detr",
    title="RT-DETR",
    model_types=("rt_detr", "rt_detr_v2"),
    config=RtDetrConfig,
    rules=RULES,
    towers=lambda c: below(c.tower.rules, "model.backbone.model", "backbone"),
    tasks=(
        Task(
            name="object-detection",
            architectures=("RTDetrForObjectDetection", "RTDetrV2ForObjectDetection"),
            build=RtDetr,
            signature=signature,
            carried=lambda c: (
                "denoise",
                *(f"class_heads.{n}" for n in range(c.decoder_layers - 1)),
                *(f"backbone.{name}" for name in c.pyramid.left_out(c.backbone_config, c.stages)),
            ),
        ),
    ),
    prefix="",
    no_gguf="llama.cpp has no detectors",
)
