"""SAM: a vision transformer with windows whose picture is segmented where a prompt (points, a box, a mask) says.

Kirillov et al. 2023, https://arxiv.org/abs/2304.02643; the encoder is ViTDet's, https://arxiv.org/abs/2203.16527. The
picture is encoded once, the decoder runs for every prompt. A box is two points with labels of their own, so that the
decoder keeps the inputs that clients know. A mask is added to the picture's embeddings by a graph of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.card import Family, Part, Task
from isoform.reference.config import Config, section
from isoform.reference.modules.attention import Heads, Projections, attend
from isoform.reference.modules.layers import MLP, Embedding, Linear, activation, head_size, padding_bias
from isoform.reference.rules import Copy, Rename, Rule, below
from isoform.reference.vision.convolutions import Conv, Upsample
from isoform.reference.vision.patches import PatchEmbed, grid, pixels
from isoform.signature import BATCH, Port, Signature

PROMPTS, POINTS = "point_batch_size", "nb_points_per_image"
FIRST_CORNER, NO_POINT, PADDING, NOTHING = 2, -1, -10, -11  # labels; 0 is outside, 1 inside, 3 a second corner
QUERIES = 512  # at a time in attention over all patches
NECK_EPS = 1e-6  # the Hub's code has it as a constant, as it has the final norm's 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class SamVisionConfig(Config):
    harmless = frozenset(
        ("intermediate_size", "projection_dim", "scale")
    )  # `mlp_dim` is read; `scale` is of the initial frequencies, which are stored

    hidden_size: int = 768
    output_channels: int = 256
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 1024
    patch_size: int = 16
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    use_abs_pos: bool = True
    use_rel_pos: bool = True
    window_size: int = 14
    global_attn_indexes: tuple[int, ...] = (2, 5, 8, 11)
    num_pos_feats: int = 128
    mlp_ratio: float = 4.0
    mlp_dim: int | None = None

    @property
    def hidden(self) -> int:
        """Channels of the MLP, by `mlp_ratio` where `mlp_dim` is null or absent."""
        return self.mlp_dim or int(self.hidden_size * self.mlp_ratio)

    @property
    def side(self) -> int:
        """Rows, and columns, of patches."""
        return grid(self.image_size, self.patch_size)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamPromptConfig(Config):
    harmless = frozenset(("image_embedding_size",))  # counted from the other two sizes

    hidden_size: int = 256
    image_size: int = 1024
    patch_size: int = 16
    mask_input_channels: int = 16
    num_point_embeddings: int = 4
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class SamMaskConfig(Config):
    hidden_size: int = 256
    hidden_act: str = "relu"
    mlp_dim: int = 2048
    num_hidden_layers: int = 2
    num_attention_heads: int = 8
    attention_downsample_rate: int = 2
    num_multimask_outputs: int = 3
    iou_head_depth: int = 3
    iou_head_hidden_dim: int = 256
    layer_norm_eps: float = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class SamConfig(Config):
    reads = frozenset(("mask_decoder_config", "prompt_encoder_config", "vision_config"))

    vision: SamVisionConfig
    prompt: SamPromptConfig
    mask: SamMaskConfig

    @property
    def image_size(self) -> int:
        return self.vision.image_size

    @property
    def num_hidden_layers(self) -> int:
        return self.vision.num_hidden_layers

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SamConfig:
        cls.account(data)
        config = cls(
            vision=SamVisionConfig.from_dict(section(data, "vision_config")),
            prompt=SamPromptConfig.from_dict(section(data, "prompt_encoder_config")),
            mask=SamMaskConfig.from_dict(section(data, "mask_decoder_config")),
        )
        if not config.vision.use_abs_pos or not config.vision.use_rel_pos or config.prompt.num_point_embeddings != 4:
            raise UnsupportedModel(
                "SAM without absolute and relative positions, or with other prompts, is not supported"
            )
        side, prompts = config.vision.side, config.prompt.image_size // config.prompt.patch_size
        if prompts != side:
            raise CheckpointError(f"config.json: prompts are on a grid of {prompts} patches, pictures on one of {side}")
        widths = {config.vision.output_channels, 2 * config.vision.num_pos_feats}
        widths |= {config.prompt.hidden_size, config.mask.hidden_size}
        if len(widths) != 1:
            raise CheckpointError(
                f"config.json: the widths of pictures, positions and prompts differ: {sorted(widths)}"
            )
        return config


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class WindowAttention(nn.Module):
    """Attention over a square of `side` times `side` slots, with relative positions per axis added to the scores.

    The bias of a row's offset is the product of the query and a vector of that offset, likewise of a column's (Li et
    al. 2021, https://arxiv.org/abs/2112.01526). The rows of a large square ask one after the other, about `QUERIES`
    slots at a time: a bias of 4,096 by 4,096 slots for each of 12 heads has 805 MB, and the scores as many.
    """

    offsets: Tensor

    def __init__(self, dim: int, heads: int, side: int, bias: bool) -> None:
        super().__init__()
        self.heads, self.side = Heads(heads, heads, head_size(dim, heads)), side
        self.qkv, self.out = Linear(dim, 3 * dim, bias), Linear(dim, dim)
        self.row_embed = nn.Parameter(torch.zeros(2 * side - 1, self.heads.dim))
        self.column_embed = nn.Parameter(torch.zeros(2 * side - 1, self.heads.dim))
        places = torch.arange(side, device="cpu")
        self.register_buffer("offsets", places[:, None] - places[None, :] + side - 1, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, side * side, C) -> (B, side * side, C)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, -1)).unbind(-2)
        step = max(1, QUERIES // self.side)
        starts = range(0, self.side, step)
        sizes = [min(step, self.side - start) * self.side for start in starts]
        some = [q] if len(sizes) == 1 else q.split(sizes, 1)
        parts = [attend(q, k, v, self._bias(q, start), self.heads) for start, q in zip(starts, some, strict=True)]
        y: Tensor = self.out(parts[0] if len(parts) == 1 else torch.cat(parts, 1))
        return y

    def _bias(self, q: Tensor, start: int) -> Tensor:
        """That of the queries of some rows, from `start` on: (B, rows * side, C) -> (B, H, rows * side, slots)."""
        each = q.unflatten(-1, (self.heads.count, self.heads.dim)).transpose(1, 2).unflatten(2, (-1, self.side))
        rows = F.embedding(self.offsets[start : start + each.shape[2]], self.row_embed)
        columns = F.embedding(self.offsets, self.column_embed)
        by_row = each @ rows.transpose(-1, -2)  # (B, H, query row, query column, key row)
        by_column = (each.transpose(2, 3) @ columns.transpose(-1, -2)).transpose(2, 3)
        return (by_row.unsqueeze(-1) + by_column.unsqueeze(-2)).flatten(4).flatten(2, 3)


class EncoderLayer(nn.Module):
    """x + attention(norm(x)), within windows or over all patches, then x + mlp(norm(x))."""

    def __init__(self, c: SamVisionConfig, window: int | None) -> None:
        super().__init__()
        self.side, self.window = c.side, window
        self.attn_norm = nn.LayerNorm(c.hidden_size, c.layer_norm_eps)
        self.attn = WindowAttention(c.hidden_size, c.num_attention_heads, window or c.side, c.qkv_bias)
        self.mlp_norm = nn.LayerNorm(c.hidden_size, c.layer_norm_eps)
        self.mlp = MLP(c.hidden_size, c.hidden, c.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        """(B, side * side, C) -> (B, side * side, C)."""
        y = self.attn_norm(x)
        y = self.attn(y) if self.window is None else self._windowed(y, self.window)
        x = x + y
        return x + self.mlp(self.mlp_norm(x))

    def _windowed(self, x: Tensor, window: int) -> Tensor:
        """Attention in windows; where they do not come out even, the last ones are filled up with zeros."""
        count = -(-self.side // window)
        missing = count * window - self.side
        x = x.unflatten(1, (self.side, self.side))
        if missing:
            x = torch.cat((x, x.new_zeros(x.shape[0], missing, self.side, x.shape[-1])), 1)
            x = torch.cat((x, x.new_zeros(x.shape[0], count * window, missing, x.shape[-1])), 2)
        x = x.unflatten(2, (count, window)).unflatten(1, (count, window)).transpose(2, 3)
        y = self.attn(x.flatten(3, 4).flatten(0, 2))
        y = y.unflatten(1, (window, window)).unflatten(0, (x.shape[0], count, count)).transpose(2, 3)
        y = y.flatten(3, 4).flatten(1, 2)
        return y[:, : self.side, : self.side].flatten(1, 2)


class FourierPositions(nn.Module):
    """Points in the unit square as sines and cosines of random frequencies, which the checkpoint holds."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.zeros(2, features))

    def forward(self, points: Tensor) -> Tensor:
        """(..., 2) of x and y -> (..., 2 * features)."""
        angles = 2 * math.pi * ((2 * points - 1).to(self.frequencies.dtype) @ self.frequencies)
        return torch.cat((angles.sin(), angles.cos()), -1)


class VisionEncoder(nn.Module):
    """The picture's part: its embeddings and the positions of its cells."""

    cells: Tensor

    def __init__(self, c: SamConfig) -> None:
        super().__init__()
        v = c.vision
        self.positions = FourierPositions(v.num_pos_feats)
        self.encoder = Encoder(v)
        centres = (torch.arange(v.side, device="cpu").float() + 0.5) / v.side
        cells = torch.stack((centres[None, :].expand(v.side, -1), centres[:, None].expand(-1, v.side)), -1)
        self.register_buffer("cells", cells, persistent=False)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Pictures (B, 3, H, W) -> their embeddings and the cells' positions, both (B, C, side, side)."""
        x = self.encoder(pixel_values)
        positions = self.positions(self.cells).permute(2, 0, 1)
        return x, positions.unsqueeze(0).expand(x.shape[0], -1, -1, -1)


class Encoder(nn.Module):
    """Patches with positions, layers, and a neck of two convolutions."""

    def __init__(self, c: SamVisionConfig) -> None:
        super().__init__()
        self.side = c.side
        self.patch_embed = PatchEmbed(c.num_channels, c.hidden_size, c.patch_size)
        self.position_embed = nn.Parameter(torch.zeros(1, c.side, c.side, c.hidden_size))
        self.layers = nn.ModuleList(
            EncoderLayer(c, None if n in c.global_attn_indexes else c.window_size) for n in range(c.num_hidden_layers)
        )
        self.neck_in = Conv(c.hidden_size, c.output_channels, 1, bias=False)
        self.neck_in_norm = ChannelNorm(c.output_channels, NECK_EPS)
        self.neck_out = Conv(c.output_channels, c.output_channels, 3, padding=1, bias=False)
        self.neck_out_norm = ChannelNorm(c.output_channels, NECK_EPS)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, side, side)."""
        x = self.patch_embed(pixel_values) + self.position_embed.flatten(1, 2)
        for layer in self.layers:
            x = layer(x)
        x = x.transpose(1, 2).unflatten(2, (self.side, self.side))
        y: Tensor = self.neck_out_norm(self.neck_out(self.neck_in_norm(self.neck_in(x))))
        return y


class Between(Projections):
    """Attention of one sequence to another, in fewer channels than they have."""

    def __init__(self, dim: int, heads: int, inner: int) -> None:
        size = head_size(inner, heads, "the mask decoder's width")
        super().__init__(dim, Heads(heads, heads, size), bias=True, out_bias=True)

    def each(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        """Shapes: query (B, P, T, C), key and value (B, P, S, C), bias (B * P, 1, 1, S) -> (B, P, T, C)."""
        q, k, v = self.q(query.flatten(0, 1)), self.k(key.flatten(0, 1)), self.v(value.flatten(0, 1))
        y: Tensor = self.out(attend(q, k, v, bias, self.heads))
        return y.unflatten(0, query.shape[:2])

    def shared(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Keys and values are the same for all P. Shapes: query (B, P, T, C), key and value (B, 1, S, C)."""
        q, k, v = self.q(query.flatten(1, 2)), self.k(key.flatten(1, 2)), self.v(value.flatten(1, 2))
        y: Tensor = self.out(attend(q, k, v, None, self.heads))
        return y.unflatten(1, query.shape[1:3])

    def spread(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """The query is the same for all P. Shapes: query (B, 1, T, C), key and value (B, P, S, C), bias (B * P, …)."""
        q = self.q(query).expand(-1, key.shape[1], -1, -1).flatten(0, 1)
        k, v = self.k(key.flatten(0, 1)), self.v(value.flatten(0, 1))
        y: Tensor = self.out(attend(q, k, v, bias, self.heads))
        return y.unflatten(0, key.shape[:2])


class TwoWayLayer(nn.Module):
    """Tokens attend to each other and to the picture, and the picture to the tokens."""

    def __init__(self, c: SamMaskConfig, first: bool) -> None:
        super().__init__()
        dim, heads, inner = c.hidden_size, c.num_attention_heads, c.hidden_size // c.attention_downsample_rate
        self.first = first
        self.attn, self.attn_norm = Between(dim, heads, dim), nn.LayerNorm(dim, c.layer_norm_eps)
        self.cross, self.cross_norm = Between(dim, heads, inner), nn.LayerNorm(dim, c.layer_norm_eps)
        self.mlp, self.mlp_norm = MLP(dim, c.mlp_dim, c.hidden_act), nn.LayerNorm(dim, c.layer_norm_eps)
        self.back, self.back_norm = Between(dim, heads, inner), nn.LayerNorm(dim, c.layer_norm_eps)

    def forward(
        self, x: Tensor, image: Tensor, places: Tensor, image_places: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens (B, P, T, C), picture (B, P, S, C), of the first layer (B, 1, S, C), and their positions.

        The bias of tokens is (B * P, 1, 1, T). Returns tokens and picture, which is another one for each prompt.
        """
        # The first layer's tokens are their positions, so that nothing is added.
        y = self.attn.each(x, x, x, bias) if self.first else x + self.attn.each(x + places, x + places, x, bias)
        x = self.attn_norm(y)
        placed = image + image_places
        # In the first layer all prompts read the same picture, whose keys and values are made once.
        cross, back = (self.cross.shared, self.back.spread) if self.first else (self.cross.each, self.back.each)
        x = self.cross_norm(x + cross(x + places, placed, image))
        x = self.mlp_norm(x + self.mlp(x))
        image = self.back_norm(image + back(placed, x + places, x, bias))
        return x, image


class Head(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, dim: int, hidden: int, out: int, depth: int) -> None:
        super().__init__()
        self.first = Linear(dim, hidden)
        self.layers = nn.ModuleList(Linear(hidden, hidden) for _ in range(depth - 2))
        self.out = Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        for layer in self.layers:
            x = F.relu(layer(x))
        y: Tensor = self.out(x)
        return y


class PromptEncoder(nn.Module):
    """Points and their labels as tokens, and the embedding that stands for no mask.

    Labels: 1 inside, 0 outside, -1 no point, -10 padding (a token of zeros), 2 and 3 the corners of a box, first the
    upper left one, and -11 nothing at all. Points alone are closed by one more token, "no point"; a box is not.
    """

    def __init__(self, c: SamPromptConfig) -> None:
        super().__init__()
        self.image_size = c.image_size
        self.points = nn.ModuleList(Embedding(1, c.hidden_size) for _ in range(c.num_point_embeddings))
        self.no_point, self.no_mask = Embedding(1, c.hidden_size), Embedding(1, c.hidden_size)

    def forward(self, points: Tensor, labels: Tensor, positions: FourierPositions) -> tuple[Tensor, Tensor]:
        """Points (B, P, N, 2) in pixels, labels (B, P, N) -> tokens (B, P, N + 1, C), their mask (B, P, N + 1)."""
        last = points.new_zeros(points.shape[0], points.shape[1], 1, 2)
        points = torch.cat(((points + 0.5) / self.image_size, last), 2)
        open_ended = ((labels >= FIRST_CORNER) | (labels == NOTHING)).to(torch.int64).amax(-1, keepdim=True)
        # Chosen and not calculated: OpenVINO gets the sum of a product of integers wrong for several rows.
        closing = torch.where(open_ended > 0, NOTHING, NO_POINT)
        labels = torch.cat((labels, closing), 2)
        each = labels.unsqueeze(-1)
        x = positions(points)
        x = x * ((each > PADDING) & (each != NO_POINT)).to(x.dtype)
        for label, table in ((NO_POINT, self.no_point), *enumerate(self.points)):
            weight: Any = table.weight
            x = x + (each == label).to(x.dtype) * weight
        return x, (labels != NOTHING).to(torch.int64)


class MaskEmbedding(nn.Module):
    """A mask as large as the decoder's, embedded for each cell of the picture."""

    def __init__(self, c: SamPromptConfig) -> None:
        super().__init__()
        inner, dim = c.mask_input_channels, c.hidden_size
        self.down1, self.down1_norm = Conv(1, inner // 4, 2, 2), ChannelNorm(inner // 4, c.layer_norm_eps)
        self.down2, self.down2_norm = Conv(inner // 4, inner, 2, 2), ChannelNorm(inner, c.layer_norm_eps)
        self.out = Conv(inner, dim, 1)
        self.act = activation(c.hidden_act)

    def forward(self, masks: Tensor) -> Tensor:
        """Logits (B, 1, 4 * side, 4 * side) -> (B, C, side, side)."""
        x = self.act(self.down1_norm(self.down1(masks)))
        y: Tensor = self.out(self.act(self.down2_norm(self.down2(x))))
        return y


class MaskPrompt(nn.Module):
    """A picture's embeddings with a mask as a prompt, to be given to the decoder in their place.

    The decoder adds "no mask" to what it is given, so that is taken off.
    """

    def __init__(self, c: SamConfig) -> None:
        super().__init__()
        self.embed, self.no_mask = MaskEmbedding(c.prompt), Embedding(1, c.prompt.hidden_size)

    def forward(self, input_masks: Tensor, image_embeddings: Tensor) -> tuple[Tensor]:
        """Masks (B, 1, 4 * side, 4 * side) and embeddings (B, C, side, side) -> (B, C, side, side)."""
        return (image_embeddings + (self.embed(input_masks) - self.no_mask.weight.reshape(1, -1, 1, 1)),)


class MaskDecoder(nn.Module):
    """Prompts and a picture's embeddings to masks and how good each is thought to be."""

    def __init__(self, c: SamConfig) -> None:
        super().__init__()
        m, side = c.mask, c.vision.side
        dim, masks = m.hidden_size, m.num_multimask_outputs + 1
        self.side, self.masks = side, masks
        self.positions, self.prompts = FourierPositions(c.vision.num_pos_feats), PromptEncoder(c.prompt)
        self.iou_token, self.mask_tokens = Embedding(1, dim), Embedding(masks, dim)
        self.layers = nn.ModuleList(TwoWayLayer(m, n == 0) for n in range(m.num_hidden_layers))
        self.final, self.final_norm = (
            Between(dim, m.num_attention_heads, dim // m.attention_downsample_rate),
            nn.LayerNorm(dim),
        )
        self.up1, self.up_norm = Upsample(dim, dim // 4, 2, 2), ChannelNorm(dim // 4, NECK_EPS)
        self.up2 = Upsample(dim // 4, dim // 8, 2, 2)
        self.hyper = nn.ModuleList(Head(dim, dim, dim // 8, 3) for _ in range(masks))
        self.iou = Head(dim, m.iou_head_hidden_dim, masks, m.iou_head_depth)
        self.act = activation("gelu")

    def forward(
        self, input_points: Tensor, input_labels: Tensor, image_embeddings: Tensor, image_positional_embeddings: Tensor
    ) -> tuple[Tensor, ...]:
        """Points (B, P, N, 2), labels (B, P, N), the picture's two outputs (B, C, side, side).

        Returns scores (B, P, masks) and mask logits (B, P, masks, 4 * side, 4 * side) of the several masks, and after
        them those of the single one.
        """
        prompts, seen = self.prompts(input_points, input_labels, self.positions)
        batch, count = prompts.shape[0], prompts.shape[1]
        tokens = torch.cat((self.iou_token.weight, self.mask_tokens.weight), 0)
        tokens = tokens.unsqueeze(0).unsqueeze(0).expand(batch, count, -1, -1)
        places = torch.cat((tokens, prompts.to(tokens.dtype)), 2)
        image = image_embeddings + self.prompts.no_mask.weight.reshape(1, -1, 1, 1)
        image, image_places = (x.flatten(2).transpose(1, 2).unsqueeze(1) for x in (image, image_positional_embeddings))
        seen = torch.cat((seen.new_ones(batch, count, tokens.shape[2]), seen), 2)
        bias = padding_bias(seen.flatten(0, 1), tokens.dtype)
        x = places
        for layer in self.layers:
            x, image = layer(x, image, places, image_places, bias)
        x = self.final_norm(x + self.final.each(x + places, image + image_places, image)).flatten(0, 1)
        y = image.flatten(0, 1).transpose(1, 2).unflatten(2, (self.side, self.side))
        y = self.act(self.up2(self.act(self.up_norm(self.up1(y))))).flatten(2)
        scores = self.iou(x[:, 0]).unflatten(0, (batch, count))
        weights = [head(x[:, 1 + n]) for n, head in enumerate(self.hyper)]
        single, several = (
            (torch.stack(some, 1) @ y).unflatten(-1, (4 * self.side, 4 * self.side)).unflatten(0, (batch, count))
            for some in (weights[:1], weights[1:])
        )
        return scores[:, :, 1:], several, scores[:, :, :1], single


def vision_signature(c: SamConfig) -> Signature:
    v = c.vision
    axes = (BATCH, v.output_channels, v.side, v.side)
    names = "image_embeddings", "image_positional_embeddings"
    return Signature((pixels(v.num_channels, v.image_size),), tuple(Port(name, "float", axes) for name in names))


def mask_signature(c: SamConfig) -> Signature:
    side, (embeddings, _) = 4 * c.vision.side, vision_signature(c).outputs
    return Signature(
        (Port("input_masks", "float", (BATCH, 1, side, side), "masks"), embeddings),
        (Port("prompted_embeddings", "float", embeddings.axes, "image_features"),),
    )


def decoder_signature(c: SamConfig) -> Signature:
    side, masks = 4 * c.vision.side, c.mask.num_multimask_outputs
    return Signature(
        (
            Port("input_points", "float", (BATCH, PROMPTS, POINTS, 2)),
            Port("input_labels", "int64", (BATCH, PROMPTS, POINTS)),
            *vision_signature(c).outputs,
        ),
        (
            Port("iou_scores", "float", (BATCH, PROMPTS, masks)),
            Port("pred_masks", "float", (BATCH, PROMPTS, masks, side, side)),
            Port("single_iou_scores", "float", (BATCH, PROMPTS, 1), "scores"),
            Port("single_pred_masks", "float", (BATCH, PROMPTS, 1, side, side), "masks"),
        ),
    )


_ATTENTION: tuple[Rule, ...] = tuple(Rename(f"{name}_proj", name) for name in ("q", "k", "v", "out"))
VISION: tuple[Rule, ...] = (
    Rename("patch_embed.projection", "patch_embed"),
    Rename("pos_embed", "position_embed"),
    Rename("layers.*.attn.rel_pos_h", "layers.*.attn.row_embed"),
    Rename("layers.*.attn.rel_pos_w", "layers.*.attn.column_embed"),
    Rename("layers.*.attn.qkv", "layers.*.attn.qkv"),
    Rename("layers.*.attn.proj", "layers.*.attn.out"),
    Rename("layers.*.layer_norm1", "layers.*.attn_norm"),
    Rename("layers.*.layer_norm2", "layers.*.mlp_norm"),
    Rename("layers.*.mlp.lin1", "layers.*.mlp.up"),
    Rename("layers.*.mlp.lin2", "layers.*.mlp.down"),
    Rename("neck.conv1", "neck_in"),
    Rename("neck.layer_norm1", "neck_in_norm"),
    Rename("neck.conv2", "neck_out"),
    Rename("neck.layer_norm2", "neck_out_norm"),
)
PROMPT: tuple[Rule, ...] = (
    Rename("point_embed.*", "decoder.prompts.points.*"),
    Rename("not_a_point_embed", "decoder.prompts.no_point"),
    Rename("no_mask_embed", "decoder.prompts.no_mask"),
    Rename("mask_embed.conv1", "mask_prompt.down1"),
    Rename("mask_embed.layer_norm1", "mask_prompt.down1_norm"),
    Rename("mask_embed.conv2", "mask_prompt.down2"),
    Rename("mask_embed.layer_norm2", "mask_prompt.down2_norm"),
    Rename("mask_embed.conv3", "mask_prompt.out"),
)
HEAD: tuple[Rule, ...] = (
    Rename("proj_in", "first"),
    Rename("layers.*", "layers.*"),
    Rename("proj_out", "out"),
)
MASK: tuple[Rule, ...] = (
    *below(_ATTENTION, "transformer.layers.*.self_attn", "layers.*.attn"),
    *below(_ATTENTION, "transformer.layers.*.cross_attn_token_to_image", "layers.*.cross"),
    *below(_ATTENTION, "transformer.layers.*.cross_attn_image_to_token", "layers.*.back"),
    *below(_ATTENTION, "transformer.final_attn_token_to_image", "final"),
    Rename("transformer.layers.*.layer_norm1", "layers.*.attn_norm"),
    Rename("transformer.layers.*.layer_norm2", "layers.*.cross_norm"),
    Rename("transformer.layers.*.layer_norm3", "layers.*.mlp_norm"),
    Rename("transformer.layers.*.layer_norm4", "layers.*.back_norm"),
    Rename("transformer.layers.*.mlp.lin1", "layers.*.mlp.up"),
    Rename("transformer.layers.*.mlp.lin2", "layers.*.mlp.down"),
    Rename("transformer.layer_norm_final_attn", "final_norm"),
    Rename("iou_token", "iou_token"),
    Rename("mask_tokens", "mask_tokens"),
    Rename("upscale_conv1", "up1"),
    Rename("upscale_layer_norm", "up_norm"),
    Rename("upscale_conv2", "up2"),
    *below(HEAD, "output_hypernetworks_mlps.*", "hyper.*"),
    *below(HEAD, "iou_prediction_head", "iou"),
)
RULES: tuple[Rule, ...] = (
    Rename("shared_image_embedding.positional_embedding", "decoder.positions.frequencies"),
    Copy("prompt_encoder.shared_embedding.positional_embedding", "decoder.positions.frequencies"),
    *below(VISION, "vision_encoder", "vision"),
    *below(PROMPT, "prompt_encoder", ""),
    *below(MASK, "mask_decoder", "decoder"),
)

FAMILY = Family(
    name="sam",
    title="SAM",
    model_types=("sam",),
    config=SamConfig,
    rules=RULES,
    tasks=(
        Task(
            name="mask-generation",
            architectures=("SamModel",),
            parts={
                "vision_encoder": Part(
                    build=VisionEncoder,
                    signature=vision_signature,
                    roots={"encoder": "vision", "positions": "decoder.positions"},
                    file="vision_encoder",
                ),
                "mask_prompt": Part(
                    build=MaskPrompt,
                    signature=mask_signature,
                    roots={"embed": "mask_prompt", "no_mask": "decoder.prompts.no_mask"},
                ),
                "prompt_encoder_mask_decoder": Part(
                    build=MaskDecoder,
                    signature=decoder_signature,
                    roots={"": "decoder"},
                    file="prompt_encoder_mask_decoder",
                ),
            },
            wires={
                "mask_prompt.image_embeddings": "vision_encoder.image_embeddings",
                "prompt_encoder_mask_decoder.image_embeddings": "vision_encoder.image_embeddings",
                "prompt_encoder_mask_decoder.image_positional_embeddings": "vision_encoder.image_positional_embeddings",
            },
        ),
    ),
    prefix="sam",
    no_gguf="llama.cpp has no architecture that segments pictures",
)
