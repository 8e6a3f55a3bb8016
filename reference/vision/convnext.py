"""ConvNeXt: convolutions of 7 x 7 channel by channel, each before an MLP, in stages like those of a vision transformer.

Liu et al. 2022, https://arxiv.org/abs/2201.03545. Pictures of every size are read; the maps of the stages serve other
families as a backbone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isoform.errors import CheckpointError
from isoform.reference.card import Family, Pyramid, Task
from isoform.reference.config import Config, with_labels
from isoform.reference.modules.layers import MLP, Linear
from isoform.reference.rules import Rename, Rule, below
from isoform.reference.vision.convolutions import Conv
from isoform.reference.vision.patches import pair, pixels
from isoform.reference.vision.pyramids import stages
from isoform.signature import BATCH, HEIGHT, WIDTH, Port, Signature

EPS = 1e-6  # of every norm but the last, a constant of the Hub's code


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvNextConfig(Config):
    """`scaled`: layers end in a scale. `stages`: those whose maps another family reads."""

    reads = frozenset(("layer_scale_init_value", "num_stages", "out_features", "out_indices"))
    harmless = frozenset(("image_size", "stage_names"))

    num_channels: int = 3
    patch_size: int | tuple[int, ...] = 4
    hidden_sizes: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 9, 3)
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    scaled: bool = True
    num_labels: int = 2
    stages: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ConvNextConfig:
        data = {key: value for key, value in with_labels(data).items() if key not in ("scaled", "stages")}
        initial = data.get("layer_scale_init_value", 1e-6)
        if isinstance(initial, bool) or not isinstance(initial, int | float):
            raise CheckpointError(f"config.json: layer_scale_init_value is {initial!r:.40}, which is no number")
        config = super(ConvNextConfig, cls).from_dict({**data, "scaled": initial > 0})
        count = len(config.depths)
        if len(config.hidden_sizes) != count or data.get("num_stages", 4) != count or min(config.depths) < 1:
            raise CheckpointError(
                f"config.json: num_stages is {data.get('num_stages', 4)!r:.40}, and depths {list(config.depths)} and "
                f"hidden_sizes {list(config.hidden_sizes)} must have a number above 0 for each stage"
            )
        return super(ConvNextConfig, cls).from_dict(
            {**data, "scaled": initial > 0, "stages": stages(data, config.stage_names)}
        )

    @property
    def num_hidden_layers(self) -> int:
        return sum(self.depths)

    @property
    def stage_names(self) -> tuple[str, ...]:
        return ("stem", *(f"stage{n + 1}" for n in range(len(self.depths))))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each map, from the stem on."""
        return (self.hidden_sizes[0], *self.hidden_sizes)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels to a cell of each map, from top to bottom."""
        stem = pair("patch_size", self.patch_size)[0]
        return (stem, *(stem * 2**n for n in range(len(self.depths))))


class MapNorm(nn.LayerNorm):
    """Layer norm over the channels of a map (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class CellNorm(nn.LayerNorm):
    """Layer norm of a map (B, C, H, W) as cells (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1))


class Layer(nn.Module):
    """x + scale * mlp(norm(convolution(x))), the MLP cell by cell."""

    def __init__(self, c: ConvNextConfig, dim: int) -> None:
        super().__init__()
        self.conv = Conv(dim, dim, 7, padding=3, groups=dim)
        self.mlp_norm, self.mlp = CellNorm(dim, EPS), MLP(dim, 4 * dim, c.hidden_act)
        self.mlp_scale = nn.Parameter(torch.ones(dim)) if c.scaled else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        y: Tensor = self.mlp(self.mlp_norm(self.conv(x)))
        if self.mlp_scale is not None:
            y = self.mlp_scale * y
        return x + y.permute(0, 3, 1, 2)


class Shrink(nn.Module):
    """A norm, and a convolution of 2 x 2 cells to one."""

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        self.norm, self.conv = MapNorm(before, EPS), Conv(before, channels, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, channels, H / 2, W / 2)."""
        y: Tensor = self.conv(self.norm(x))
        return y


class Stage(nn.Module):
    """Layers of one width, behind a `Shrink` but for the first stage."""

    def __init__(self, c: ConvNextConfig, n: int) -> None:
        super().__init__()
        self.shrink = Shrink(c.hidden_sizes[n - 1], c.hidden_sizes[n]) if n else None
        self.layers = nn.ModuleList(Layer(c, c.hidden_sizes[n]) for _ in range(c.depths[n]))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, channels, H, W), or half as high and wide."""
        if self.shrink is not None:
            x = self.shrink(x)
        for layer in self.layers:
            x = layer(x)
        return x


class Trunk(nn.Module):
    """The stem and the first `count` stages."""

    def __init__(self, c: ConvNextConfig, count: int) -> None:
        super().__init__()
        patch = pair("patch_size", c.patch_size)
        self.patch_embed = Conv(c.num_channels, c.hidden_sizes[0], patch, patch)
        self.embed_norm = MapNorm(c.hidden_sizes[0], EPS)
        self.stages = nn.ModuleList(Stage(c, n) for n in range(count))

    def maps(self, pixel_values: Tensor) -> list[Tensor]:
        """Pictures (B, channels, H, W) -> a map (B, C, rows, columns) of the stem and of each stage."""
        found = [self.embed_norm(self.patch_embed(pixel_values))]
        for stage in self.stages:
            found.append(stage(found[-1]))
        return found


class ConvNext(Trunk):
    """All of it, with a norm of the mean of the last map; `classifies`: and a linear layer."""

    def __init__(self, c: ConvNextConfig, classifies: bool) -> None:
        super().__init__(c, len(c.depths))
        self.norm = nn.LayerNorm(c.hidden_sizes[-1], c.layer_norm_eps)
        self.classifier = Linear(c.hidden_sizes[-1], c.num_labels) if classifies else None

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Pictures (B, channels, H, W) -> the last map (B, C, rows, columns) and its mean (B, C), or logits
        (B, labels)."""
        x = self.maps(pixel_values)[-1]
        pooled = self.norm(x.mean((-2, -1)))
        return (x, pooled) if self.classifier is None else (self.classifier(pooled),)


class Backbone(Trunk):
    """The network up to the last of some stages, whose maps it gives, each with a norm of its own."""

    def __init__(self, c: ConvNextConfig, wanted: tuple[str, ...]) -> None:
        places = {name: c.stage_names.index(name) for name in wanted}
        super().__init__(c, max(places.values()))
        self.places = places
        self.map_norms = nn.ModuleDict({name: MapNorm(c.widths[n], EPS) for name, n in places.items()})

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Pictures (B, channels, H, W) -> a map (B, C, rows, columns) for each stage."""
        found = self.maps(pixel_values)
        return tuple(self.map_norms[name](found[n]) for name, n in self.places.items())


def _of_stages(values: tuple[int, ...], c: ConvNextConfig, names: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(values[c.stage_names.index(name)] for name in names)


def _left_out(c: ConvNextConfig, names: tuple[str, ...]) -> tuple[str, ...]:
    last = max(c.stage_names.index(name) for name in names)
    norms = (f"map_norms.{name}" for name in c.stage_names if name not in names)
    return ("norm", *(f"stages.{n}" for n in range(last, len(c.depths))), *norms)


def _signature(c: ConvNextConfig, *outputs: Port) -> Signature:
    down, across = (size * 2 ** (len(c.depths) - 1) for size in pair("patch_size", c.patch_size))
    return Signature((pixels(c.num_channels),), outputs, units={HEIGHT: down, WIDTH: across})


RULES: tuple[Rule, ...] = (
    Rename("convnext.embeddings.patch_embeddings", "patch_embed"),
    Rename("convnext.embeddings.layernorm", "embed_norm"),
    Rename("convnext.encoder.stages.*.downsampling_layer.0", "stages.*.shrink.norm"),
    Rename("convnext.encoder.stages.*.downsampling_layer.1", "stages.*.shrink.conv"),
    *below(
        (
            Rename("dwconv", "conv"),
            Rename("layernorm", "mlp_norm"),
            Rename("pwconv1", "mlp.up"),
            Rename("pwconv2", "mlp.down"),
            Rename("layer_scale_parameter", "mlp_scale"),
        ),
        "convnext.encoder.stages.*.layers.*",
        "stages.*.layers.*",
    ),
    Rename("convnext.layernorm", "norm"),
    Rename("hidden_states_norms.*", "map_norms.*"),
    Rename("classifier", "classifier"),
)

FAMILY = Family(
    name="convnext",
    title="ConvNeXt",
    model_types=("convnext",),
    config=ConvNextConfig,
    rules=RULES,
    tasks=(
        Task(
            name="image-classification",
            architectures=("ConvNextForImageClassification",),
            build=lambda c: ConvNext(c, True),
            signature=lambda c: _signature(c, Port("logits", "float", (BATCH, c.num_labels))),
        ),
        Task(
            name="image-feature-extraction",
            architectures=("ConvNextModel",),
            build=lambda c: ConvNext(c, False),
            signature=lambda c: _signature(
                c,
                Port("last_hidden_state", "float", (BATCH, c.hidden_sizes[-1], "map_rows", "map_columns")),
                Port("pooler_output", "float", (BATCH, c.hidden_sizes[-1])),
            ),
        ),
    ),
    pyramid=Pyramid(
        build=Backbone,
        pixels=lambda c: pixels(c.num_channels),
        channels=lambda c, names: _of_stages(c.widths, c, names),
        strides=lambda c, names: _of_stages(c.strides, c, names),
        left_out=_left_out,
    ),
    prefix="convnext",
    heads=("classifier", "map_norms"),
    no_gguf="llama.cpp has no ConvNeXt",
)
