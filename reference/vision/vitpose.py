"""VitPose: a plain vision transformer over a person cut out of a picture, and a small head that draws heatmaps.

Xu et al. 2022, https://arxiv.org/abs/2204.12484. ViTPose++ (https://arxiv.org/abs/2212.04246) was trained on several
data sets at once: a part of every MLP's output comes from an expert, one for each of them, which `dataset_index`
chooses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.card import Family, Task
from isoform.reference.config import Config, section, where, with_labels
from isoform.reference.modules.attention import Attention, Heads
from isoform.reference.modules.experts import Stacked
from isoform.reference.modules.layers import MLP, FrozenBatchNorm, Linear, activation, head_size
from isoform.reference.rules import Rename, Rule, Stack, batch_norm
from isoform.reference.vision.convolutions import Conv, Upsample
from isoform.reference.vision.patches import Layer, grid, left_out, pair, pixels
from isoform.signature import BATCH, Port, Signature

PADDING = 2  # pixels around a picture, though its patches do not overlap
CHANNELS = 256  # of the classic head; the Hub's code has it as a constant
UP = 2  # how much larger each of its two transposed convolutions makes a map


@dataclass(frozen=True, slots=True, kw_only=True)
class VitPoseBackboneConfig(Config):
    harmless = frozenset(("intermediate_size", "stage_names"))  # `mlp_ratio` is read

    image_size: int | tuple[int, ...] = (256, 192)
    patch_size: int | tuple[int, ...] = (16, 16)
    num_channels: int = 3
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: float = 4
    num_experts: int = 1
    part_features: int = 256
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    qkv_bias: bool = True
    out_features: tuple[str, ...] | None = None
    out_indices: tuple[int, ...] | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> VitPoseBackboneConfig:
        config = super(VitPoseBackboneConfig, cls).from_dict(data)
        config._check_states(data)
        down, across = grid(config.image_size, config.patch_size)
        sizes = zip(pair("image_size", config.image_size), pair("patch_size", config.patch_size), strict=True)
        if tuple((edge + 2 * PADDING) // patch for edge, patch in sizes) != (down, across):
            file, path = where(data, "image_size")
            raise CheckpointError(
                f"{file}: {path} {config.image_size} with {PADDING} pixels around it has more patches of "
                f"{config.patch_size} than the picture has positions; the sizes do not belong together"
            )
        if config.num_experts > 1 and config.part_features >= config.hidden_size:
            file, path = where(data, "part_features")
            raise CheckpointError(f"{file}: {path} is {config.part_features}, of {config.hidden_size} channels in all")
        return config

    def _check_states(self, data: Mapping[str, Any]) -> None:
        """Raise CheckpointError for a state that the backbone does not have, or two statements that differ."""
        for key, found in self._states().items():
            if not found or not all(0 <= n <= self.num_hidden_layers for n in found):
                file, path = where(data, key)
                raise CheckpointError(
                    f"{file}: {path} is {data[key]!r:.60}; {self.num_hidden_layers} layers have the states "
                    f"stem and stage1 to stage{self.num_hidden_layers}, by number 0 to {self.num_hidden_layers}"
                )
        if len({tuple(found) for found in self._states().values()}) > 1:
            file, path = where(data, "out_indices")
            raise CheckpointError(
                f"{file}: {path} is {self.out_indices}, and out_features {self.out_features}; they must agree"
            )

    def _states(self) -> dict[str, list[int]]:
        """The states that the backbone gives, by the key that says so; -1 for one that there is not."""
        states = ["stem", *(f"stage{n}" for n in range(1, self.num_hidden_layers + 1))]
        named, numbered = self.out_features, self.out_indices
        found = {}
        if named is not None:
            found["out_features"] = [states.index(name) if name in states else -1 for name in named]
        if numbered is not None:
            found["out_indices"] = [n + len(states) if n < 0 else n for n in numbered]
        return found

    @property
    def state(self) -> int:
        """Which state the head reads, the last that the backbone gives: the one after the last layer unless said."""
        return max(next(iter(self._states().values()), [self.num_hidden_layers]))

    @property
    def intermediate_size(self) -> int:
        return int(self.hidden_size * self.mlp_ratio)


@dataclass(frozen=True, slots=True, kw_only=True)
class VitPoseConfig(Config):
    reads = frozenset(("backbone_config",))
    harmless = frozenset(("backbone_kwargs", "edges", "use_pretrained_backbone"))  # `edges` are lines to draw
    only = {"use_timm_backbone": (False, None)}  # noqa: RUF012

    backbone: VitPoseBackboneConfig
    scale_factor: int = 4
    use_simple_decoder: bool = True
    num_labels: int = 2

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> VitPoseConfig:
        """Without a `backbone_config` its first four layers are read, which is what transformers makes of that."""
        inside: Mapping[str, Any] = section(data, "backbone_config")
        if not data.get("backbone_config"):
            inside = {**inside, "out_indices": [4]}
        kind = inside.get("model_type", "vitpose_backbone")
        if kind != "vitpose_backbone":
            file, path = where(inside, "model_type")
            raise UnsupportedModel(f"{file}: {path} is {kind!r:.60}; VitPose is supported over a vitpose_backbone only")
        rest = {key: value for key, value in data.items() if key != "backbone_config"}
        return super(VitPoseConfig, cls).from_dict(
            with_labels({**rest, "backbone": VitPoseBackboneConfig.from_dict(inside)})
        )

    @property
    def image_size(self) -> tuple[int, int]:
        return pair("image_size", self.backbone.image_size)

    @property
    def num_hidden_layers(self) -> int:
        return self.backbone.num_hidden_layers

    @property
    def heatmap(self) -> tuple[int, int]:
        """Rows and columns of a heatmap."""
        rows, columns = grid(self.backbone.image_size, self.backbone.patch_size)
        factor = self.scale_factor if self.use_simple_decoder else UP * UP
        return rows * factor, columns * factor


class Patches(nn.Conv2d):
    """Pixels (B, channels, H, W) to patches (B, rows * columns, C), with pixels of zeros around the picture."""

    def __init__(self, channels: int, dim: int, size: int | tuple[int, ...]) -> None:
        size = pair("patch_size", size)
        super().__init__(channels, dim, size, size, PADDING)

    def reset_parameters(self) -> None:
        """The weights come from a checkpoint."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten(2).transpose(1, 2)


class ExpertMLP(nn.Module):
    """down(act(up(x))), whose last channels come from the expert of the row's data set."""

    def __init__(self, dim: int, hidden: int, act: str, experts: int, part: int) -> None:
        super().__init__()
        self.up, self.down = Linear(dim, hidden), Linear(hidden, dim - part)
        self.experts = Stacked(experts, hidden, part, bias=True)
        self.act = activation(act)

    def forward(self, x: Tensor, dataset: Tensor) -> Tensor:
        """Shapes: x (B, T, C), dataset (B,) -> (B, T, C). Only the matrix of the row's expert is multiplied."""
        x = self.act(self.up(x))
        weight, bias = self.experts.weight, self.experts.bias
        assert bias is not None
        own = F.embedding(dataset, weight.flatten(1)).unflatten(1, weight.shape[1:]).transpose(1, 2)
        return torch.cat((self.down(x), x @ own + F.embedding(dataset, bias).unsqueeze(1)), -1)


class ExpertLayer(nn.Module):
    """`patches.Layer` with an `ExpertMLP`."""

    def __init__(self, dim: int, heads: int, mlp: ExpertMLP, eps: float, bias: bool) -> None:
        super().__init__()
        self.attn_norm, self.mlp_norm = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.attn = Attention(dim, Heads(heads, heads, head_size(dim, heads)), bias=bias, out_bias=True)
        self.mlp = mlp

    def forward(self, x: Tensor, dataset: Tensor) -> Tensor:
        """Shapes: x (B, T, C), dataset (B,) -> (B, T, C)."""
        x = x + self.attn(self.attn_norm(x))
        return x + self.mlp(self.mlp_norm(x), dataset)


class SimpleHead(nn.Module):
    """ReLU, bilinear enlargement, and one convolution of 3 x 3.

    The last two are linear, and taken in the other order: the products with the nine taps' channels are those of the
    few cells before they are enlarged, and each tap's map is shifted while it is. The middle tap brings the bias.
    """

    down: Tensor
    across: Tensor

    def __init__(self, dim: int, keypoints: int, factor: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.conv, self.grid = Conv(dim, keypoints, 3, padding=1), grid
        for name, cells in zip(("down", "across"), grid, strict=True):
            self.register_buffer(name, enlarged(cells, factor), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, rows * columns, C) -> (B, keypoints, factor * rows, factor * columns)."""
        weight, bias = self.conv.weight, self.conv.bias
        assert bias is not None
        none = torch.zeros_like(bias).unsqueeze(0).expand(4, -1).flatten()
        y = F.linear(F.relu(x), weight.permute(2, 3, 0, 1).flatten(0, 2), torch.cat((none, bias, none)))
        y = y.unflatten(2, (3, 3, -1)).unflatten(1, self.grid)
        y = y.permute(0, 5, 3, 1, 4, 2).flatten(4, 5).flatten(2, 3)  # (B, keypoints, 3 * rows, 3 * columns)
        return self.down.to(x.dtype) @ y @ self.across.to(x.dtype).transpose(0, 1)


def enlarged(cells: int, factor: int) -> Tensor:
    """The matrix (factor * cells, 3 * cells) that enlarges a row of cells three times, and adds up the three.

    The first is shifted by one pixel forwards, the last one backwards; 0 comes in from outside.
    """
    unit = torch.eye(cells, device="cpu").unsqueeze(0)
    plain = F.interpolate(unit, scale_factor=factor, mode="linear", align_corners=False)[0].t()
    none = plain.new_zeros(1, cells)
    return torch.cat((torch.cat((none, plain[:-1])), plain, torch.cat((plain[1:], none))), 1)


class ClassicHead(nn.Module):
    """Two transposed convolutions that double the map, each with a batch norm and ReLU, and one convolution."""

    def __init__(self, dim: int, keypoints: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.up1, self.norm1 = Upsample(dim, CHANNELS, 4, UP, 1, bias=False), FrozenBatchNorm(CHANNELS)
        self.up2, self.norm2 = Upsample(CHANNELS, CHANNELS, 4, UP, 1, bias=False), FrozenBatchNorm(CHANNELS)
        self.conv = Conv(CHANNELS, keypoints, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, rows * columns, C) -> (B, keypoints, 4 * rows, 4 * columns)."""
        x = x.transpose(1, 2).unflatten(2, self.grid)
        x = F.relu(self.norm1(self.up1(x)))
        y: Tensor = self.conv(F.relu(self.norm2(self.up2(x))))
        return y


class VitPose(nn.Module):
    """The transformer without a class token, whose position is added to every patch, and a head."""

    def __init__(self, c: VitPoseConfig) -> None:
        super().__init__()
        b = c.backbone
        dim = b.hidden_size
        cells = grid(b.image_size, b.patch_size)
        self.patch_embed = Patches(b.num_channels, dim, b.patch_size)
        self.position_embed = nn.Parameter(torch.zeros(1, 1 + cells[0] * cells[1], dim))
        self.layers = nn.ModuleList(_layer(b) for _ in range(b.state))
        self.norm = nn.LayerNorm(dim, b.layer_norm_eps)
        self.head: SimpleHead | ClassicHead
        if c.use_simple_decoder:
            self.head = SimpleHead(dim, c.num_labels, c.scale_factor, cells)
        else:
            self.head = ClassicHead(dim, c.num_labels, cells)

    def forward(self, pixel_values: Tensor, dataset_index: Tensor | None = None) -> tuple[Tensor]:
        """Pictures of one person each (B, channels, H, W) -> heatmaps (B, keypoints, rows, columns).

        `dataset_index` (B,) is given to models with experts, and to no others.
        """
        chosen = () if dataset_index is None else (dataset_index,)
        x = self.patch_embed(pixel_values) + self.position_embed[:, 1:] + self.position_embed[:, :1]
        for layer in self.layers:
            x = layer(x, *chosen)
        return (self.head(self.norm(x)),)


def _layer(b: VitPoseBackboneConfig) -> Layer | ExpertLayer:
    dim, hidden, heads = b.hidden_size, b.intermediate_size, b.num_attention_heads
    if b.num_experts == 1:
        return Layer(dim, heads, MLP(dim, hidden, b.hidden_act), b.layer_norm_eps, bias=b.qkv_bias)
    mlp = ExpertMLP(dim, hidden, b.hidden_act, b.num_experts, b.part_features)
    return ExpertLayer(dim, heads, mlp, b.layer_norm_eps, b.qkv_bias)


def _signature(c: VitPoseConfig) -> Signature:
    chosen = (Port("dataset_index", "int64", (BATCH,), "choice"),) if c.backbone.num_experts > 1 else ()
    return Signature(
        (pixels(c.backbone.num_channels, c.backbone.image_size), *chosen),
        (Port("heatmaps", "float", (BATCH, c.num_labels, *c.heatmap)),),
    )


RULES: tuple[Rule, ...] = (
    Rename("backbone.embeddings.position_embeddings", "position_embed"),
    Rename("backbone.embeddings.patch_embeddings.projection", "patch_embed"),
    Rename("backbone.encoder.layer.*.layernorm_before", "layers.*.attn_norm"),
    Rename("backbone.encoder.layer.*.attention.attention.query", "layers.*.attn.q"),
    Rename("backbone.encoder.layer.*.attention.attention.key", "layers.*.attn.k"),
    Rename("backbone.encoder.layer.*.attention.attention.value", "layers.*.attn.v"),
    Rename("backbone.encoder.layer.*.attention.output.dense", "layers.*.attn.out"),
    Rename("backbone.encoder.layer.*.layernorm_after", "layers.*.mlp_norm"),
    Rename("backbone.encoder.layer.*.mlp.fc1", "layers.*.mlp.up"),
    Rename("backbone.encoder.layer.*.mlp.fc2", "layers.*.mlp.down"),
    Stack("backbone.encoder.layer.*.mlp.experts.*", "layers.*.mlp.experts"),
    Rename("backbone.layernorm", "norm"),
    Rename("head.deconv1", "head.up1"),
    *batch_norm("head.batchnorm1", "head.norm1"),
    Rename("head.deconv2", "head.up2"),
    *batch_norm("head.batchnorm2", "head.norm2"),
    Rename("head.conv", "head.conv"),
)

FAMILY = Family(
    name="vitpose",
    title="VitPose",
    model_types=("vitpose",),
    config=VitPoseConfig,
    rules=RULES,
    tasks=(
        Task(
            name="pose-estimation",
            architectures=("VitPoseForPoseEstimation",),
            build=VitPose,
            signature=_signature,
            carried=lambda c: left_out(c.backbone.state, c.backbone.num_hidden_layers),
            facts=lambda c: (
                {"choices": {"dataset_index": c.backbone.num_experts}} if c.backbone.num_experts > 1 else {}
            ),
        ),
    ),
    prefix="vit",
    no_gguf="llama.cpp has no architecture that estimates poses",
)
