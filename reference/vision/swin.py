"""Swin: a vision transformer whose attention stays within windows, which every second layer shifts, in four stages.

Liu et al. 2021, https://arxiv.org/abs/2103.14030. A stage has half the rows and columns of the one before and twice its
channels. Pictures of every size are read; the maps of the stages serve other families as a backbone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoform.errors import CheckpointError
from isoform.reference.card import Family, Pyramid, Task
from isoform.reference.config import Config, with_labels
from isoform.reference.modules.attention import Attention, Heads
from isoform.reference.modules.layers import MLP, Linear, head_size
from isoform.reference.rules import Drop, Rename, Rule, below
from isoform.reference.vision.patches import SEQUENCE, PatchEmbed, grid, pair, pixels, units
from isoform.reference.vision.pyramids import stages
from isoform.reference.vision.shifted_windows import Windows, offsets, telling_sizes
from isoform.signature import BATCH, HEIGHT, WIDTH, Port, Signature

EPS = 1e-5  # of the norms outside the layers, a constant of the Hub's code


@dataclass(frozen=True, slots=True, kw_only=True)
class SwinConfig(Config):
    """`stages`: those whose maps another family reads, by `out_features` or `out_indices`."""

    reads = frozenset(("num_layers", "out_features", "out_indices", "stage_names"))
    harmless = frozenset(("encoder_stride", "hidden_size"))  # of masked modelling; counted from `embed_dim`
    only = {"path_norm": (True,)}  # noqa: RUF012

    image_size: int | tuple[int, ...] = 224
    patch_size: int | tuple[int, ...] = 4
    num_channels: int = 3
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    hidden_act: str = "gelu"
    use_absolute_embeddings: bool = False
    layer_norm_eps: float = 1e-5
    num_labels: int = 2
    stages: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SwinConfig:
        depths = data.get("depths") or (2, 2, 6, 2)
        if not isinstance(depths, list | tuple):
            raise CheckpointError(f"config.json: depths is {depths!r:.80}; give the layers of each stage, as a list")
        names = ("stem", *(f"stage{n}" for n in range(1, len(depths) + 1)))
        config = super(SwinConfig, cls).from_dict({**with_labels(data), "stages": stages(data, names)})
        if len(config.depths) != len(config.num_heads) or min(config.depths) < 1 or min(config.num_heads) < 1:
            raise CheckpointError(
                f"config.json: depths {config.depths} and num_heads {config.num_heads} must have a number above 0 for "
                "each stage"
            )
        if data.get("num_layers") not in (None, len(config.depths)):
            raise CheckpointError(f"config.json: num_layers is {data['num_layers']!r}, depths has {len(config.depths)}")
        rows, columns = grid(config.image_size, config.patch_size)
        (height, width), (down, across) = pair("image_size", config.image_size), pair("patch_size", config.patch_size)
        if config.use_absolute_embeddings and (height, width) != (rows * down, columns * across):
            raise CheckpointError(
                f"config.json: a picture of {height} x {width} leaves pixels over at patches of {down} x {across}, "
                "for which there are no positions"
            )
        return config

    @property
    def num_hidden_layers(self) -> int:
        return sum(self.depths)

    @property
    def stage_names(self) -> tuple[str, ...]:
        return ("stem", *(f"stage{n}" for n in range(1, len(self.depths) + 1)))

    @property
    def cells(self) -> int:
        """Positions of the last stage for a picture of `image_size`."""
        rows, columns = grid(self.image_size, self.patch_size)
        for _ in self.depths[1:]:
            rows, columns = (rows + 1) // 2, (columns + 1) // 2
        return rows * columns

    @property
    def size(self) -> int | tuple[int, ...] | None:
        """The only size of pictures that has positions; None where every size is read."""
        return self.image_size if self.use_absolute_embeddings else None

    def width(self, stage: int) -> int:
        """Channels of a stage; 0 is the first."""
        return self.embed_dim * 2**stage


class WindowAttention(Attention):
    """Attention within windows, with a learned number per head and relative position added to the scores."""

    offsets: Tensor

    def __init__(self, dim: int, heads: int, side: int, bias: bool) -> None:
        size = head_size(dim, heads, "the width of a stage", "num_heads")
        super().__init__(dim, Heads(heads, heads, size), bias=bias, out_bias=True)
        self.distance_embed = nn.Parameter(torch.zeros((2 * side - 1) ** 2, heads))
        self.register_buffer("offsets", offsets(side), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Shapes: x (B * windows, N, C), mask (B * windows, 1, N, N) or None -> (B * windows, N, C)."""
        bias = F.embedding(self.offsets, self.distance_embed).permute(2, 0, 1).unsqueeze(0)
        return self.attend(x, bias if mask is None else bias + mask)


class Layer(nn.Module):
    """x + attention(norm(x)) within windows, then x + mlp(norm(x))."""

    def __init__(self, c: SwinConfig, stage: int) -> None:
        super().__init__()
        dim = c.width(stage)
        self.attn_norm = nn.LayerNorm(dim, c.layer_norm_eps)
        self.attn = WindowAttention(dim, c.num_heads[stage], c.window_size, c.qkv_bias)
        self.mlp_norm = nn.LayerNorm(dim, c.layer_norm_eps)
        self.mlp = MLP(dim, int(c.mlp_ratio * dim), c.hidden_act)

    def forward(self, x: Tensor, windows: Windows, mask: Tensor | None) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        y = self.attn(windows.split(self.attn_norm(x)), mask)
        x = x + windows.join(y, x)
        return x + self.mlp(self.mlp_norm(x))


class Merge(nn.Module):
    """Squares of two by two positions become one with twice the channels; an odd map gets a row, a column of zeros."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, EPS)
        self.reduce = Linear(4 * dim, 2 * dim, False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H / 2, W / 2, 2 * C), halves rounded up."""
        x = F.pad(x, [0, 0, 0, 1, 0, 1])
        upper, lower = x[:, 0:-1:2], x[:, 1::2]
        parts = upper[:, :, 0:-1:2], lower[:, :, 0:-1:2], upper[:, :, 1::2], lower[:, :, 1::2]
        y: Tensor = self.reduce(self.norm(torch.cat(parts, -1)))
        return y


class Stage(nn.Module):
    """Layers whose windows are shifted in turn; `small`: unless the map is no larger than a window on one side."""

    def __init__(self, c: SwinConfig, stage: int, small: bool) -> None:
        super().__init__()
        self.side, self.small = c.window_size, small
        self.layers = nn.ModuleList(Layer(c, stage) for _ in range(c.depths[stage]))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        shifts = (0, self.side // 2)[: len(self.layers)]
        turns = [Windows(x, self.side, shift, self.small) for shift in shifts]
        masks = [windows.mask(x.dtype) for windows in turns]
        for n, layer in enumerate(self.layers):
            x = layer(x, turns[n % 2], masks[n % 2])
        return x


class Trunk(nn.Module):
    """Patches and so many stages, with a `Merge` between two of them."""

    def __init__(self, c: SwinConfig, count: int, small: bool) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(c.num_channels, c.embed_dim, c.patch_size)
        self.embed_norm = nn.LayerNorm(c.embed_dim, EPS)
        self.position_embed = None
        if c.use_absolute_embeddings:
            rows, columns = grid(c.image_size, c.patch_size)
            self.position_embed = nn.Parameter(torch.zeros(1, rows * columns, c.embed_dim))
        self.stages = nn.ModuleList(Stage(c, n, small) for n in range(count))
        self.merges = nn.ModuleList(Merge(c.width(n)) for n in range(count - 1))

    def maps(self, pixel_values: Tensor) -> list[Tensor]:
        """Pictures (B, channels, H, W) -> the map (B, rows, columns, C) of the patches, and of each stage."""
        down, across = self.patch_embed.kernel_size
        rows, columns = (pixel_values.shape[2] + down - 1) // down, (pixel_values.shape[3] + across - 1) // across
        # The last patches are filled up with zeros. What is too much of them is less than a patch, and is not seen.
        x = self.embed_norm(self.patch_embed(F.pad(pixel_values, [0, across - 1, 0, down - 1])))
        if self.position_embed is not None:
            x = x + self.position_embed
        x = x.reshape(x.shape[0], rows, columns, x.shape[-1])
        found = [x]
        for n, stage in enumerate(self.stages):
            x = stage(self.merges[n - 1](x) if n else x)
            found.append(x)
        return found


class Swin(Trunk):
    """All stages; `classifies`: with a linear layer on the mean of the positions."""

    def __init__(self, c: SwinConfig, classifies: bool) -> None:
        count = len(c.depths)
        super().__init__(c, count, True)
        self.norm = nn.LayerNorm(c.width(count - 1), c.layer_norm_eps)
        self.classifier = Linear(c.width(count - 1), c.num_labels) if classifies else None

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Pictures (B, channels, H, W) -> the last hidden state (B, positions, C) and its mean, or logits."""
        x = self.norm(self.maps(pixel_values)[-1].flatten(1, 2))
        pooled = x.mean(1)
        return (x, pooled) if self.classifier is None else (self.classifier(pooled),)


class Backbone(Trunk):
    """The maps of some stages, each with a norm of its own; windows are shifted on small maps as well."""

    def __init__(self, c: SwinConfig, names: tuple[str, ...]) -> None:
        self.places = {name: place(name) for name in names}
        super().__init__(c, max(self.places.values()), False)
        widths = {name: c.width(max(n - 1, 0)) for name, n in self.places.items()}
        self.map_norms = nn.ModuleDict({name: nn.LayerNorm(width, EPS) for name, width in widths.items()})

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Pictures (B, channels, H, W) -> a map (B, C, rows, columns) for each stage."""
        found = self.maps(pixel_values)
        return tuple(self.map_norms[name](found[n]).permute(0, 3, 1, 2) for name, n in self.places.items())


def place(name: str) -> int:
    """How many stages are before a map, by the Hub's name of it."""
    return 0 if name == "stem" else int(name.removeprefix("stage"))


def _left_out(c: SwinConfig, names: tuple[str, ...]) -> tuple[str, ...]:
    last = max(map(place, names))
    after = range(last, len(c.depths))
    norms = (f"map_norms.{name}" for name in c.stage_names if name not in names)
    return (
        "norm",
        *(f"stages.{n}" for n in after),
        *(f"merges.{n}" for n in range(max(last - 1, 0), len(c.depths) - 1)),
        *norms,
    )


def _signature(c: SwinConfig, *outputs: Port) -> Signature:
    if c.size is not None:
        return Signature((pixels(c.num_channels, c.size),), outputs)
    return Signature((pixels(c.num_channels),), outputs, units=units(c.patch_size), traced=traced(c))


def traced(c: SwinConfig) -> dict[str, tuple[int, int]]:
    """For `Signature.traced`: sizes of pictures whose maps have neither the rows nor the columns of whole windows."""
    pairs = telling_sizes(len(c.depths), c.window_size)
    patch = pair("patch_size", c.patch_size)
    return {
        axis: (less * size, more * size) for axis, (less, more), size in zip((HEIGHT, WIDTH), pairs, patch, strict=True)
    }


def _features(c: SwinConfig) -> Signature:
    width = c.width(len(c.depths) - 1)
    return _signature(
        c,
        Port("last_hidden_state", "float", (BATCH, SEQUENCE if c.size is None else c.cells, width)),
        Port("pooler_output", "float", (BATCH, width)),
    )


RULES: tuple[Rule, ...] = (
    Rename("swin.embeddings.patch_embeddings.projection", "patch_embed"),
    Rename("swin.embeddings.norm", "embed_norm"),
    Rename("swin.embeddings.position_embeddings", "position_embed"),
    Rename("swin.embeddings.mask_token", "mask.token"),
    *below(
        (
            Rename("layernorm_before", "attn_norm"),
            Rename("attention.self.query", "attn.q"),
            Rename("attention.self.key", "attn.k"),
            Rename("attention.self.value", "attn.v"),
            Rename("attention.output.dense", "attn.out"),
            Rename("attention.self.relative_position_bias_table", "attn.distance_embed"),
            Drop("attention.self.relative_position_index"),  # follows from the size of a window
            Rename("layernorm_after", "mlp_norm"),
            Rename("intermediate.dense", "mlp.up"),
            Rename("output.dense", "mlp.down"),
        ),
        "swin.encoder.layers.*.blocks.*",
        "stages.*.layers.*",
    ),
    Rename("swin.encoder.layers.*.downsample.norm", "merges.*.norm"),
    Rename("swin.encoder.layers.*.downsample.reduction", "merges.*.reduce"),
    Rename("swin.layernorm", "norm"),
    Rename("hidden_states_norms.*", "map_norms.*"),
    Rename("classifier", "classifier"),
    Rename("decoder.0", "mask.decoder"),
)

FAMILY = Family(
    name="swin",
    title="Swin",
    model_types=("swin",),
    config=SwinConfig,
    rules=RULES,
    tasks=(
        Task(
            name="image-classification",
            architectures=("SwinForImageClassification",),
            build=lambda c: Swin(c, True),
            signature=lambda c: _signature(c, Port("logits", "float", (BATCH, c.num_labels))),
        ),
        Task(
            name="image-feature-extraction",
            architectures=("SwinModel",),
            build=lambda c: Swin(c, False),
            signature=_features,
        ),
    ),
    pyramid=Pyramid(
        build=Backbone,
        pixels=lambda c: pixels(c.num_channels, c.size),
        channels=lambda c, names: tuple(c.width(max(place(name) - 1, 0)) for name in names),
        strides=lambda c, names: tuple(
            pair("patch_size", c.patch_size)[0] * 2 ** max(place(name) - 1, 0) for name in names
        ),
        left_out=_left_out,
    ),
    prefix="swin",
    heads=("classifier", "map_norms", "mask"),
    no_gguf="llama.cpp has no architecture with windows of pictures that runs alone",
)
