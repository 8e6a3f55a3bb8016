"""Depth Anything: depth of any picture, from four states of a vision transformer that are fused from the last on.

Yang et al. 2024, https://arxiv.org/abs/2401.10891 and 2406.09414; the neck is that of DPT (Ranftl et al.
2021, https://arxiv.org/abs/2103.13413). The transformer is found by its model_type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.card import Family, Levels, Task
from isoform.reference.config import Config
from isoform.reference.families import Tower, tower
from isoform.reference.rules import Rename, Rule, below
from isoform.reference.sections import section
from isoform.reference.vision.convolutions import Conv, Upsample
from isoform.reference.vision.fusion import Residual
from isoform.reference.vision.patches import pixels
from isoform.reference.vision.pyramids import stages
from isoform.signature import BATCH, HEIGHT, WIDTH, Port, Signature

BACKBONE: Mapping[str, Any] = {
    "image_size": 518,
    "hidden_size": 384,
    "num_attention_heads": 6,
    "out_indices": [9, 10, 11, 12],
    "reshape_hidden_states": False,
}
"""The transformer of a config.json without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthAnythingSettings(Config):
    """The keys beside the transformer that are read with their types."""

    reads = frozenset(("backbone_config",))
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "backbone": (None,),
        "backbone_kwargs": (None, {}),
        "depth_estimation_type": ("relative", "metric", None),
        "head_in_index": (-1, None),
        "use_pretrained_backbone": (False, None),
        "use_timm_backbone": (False, None),
    }

    patch_size: int = 14
    reassemble_hidden_size: int = 384
    reassemble_factors: tuple[int | float, ...] = (4, 2, 1, 0.5)
    neck_hidden_sizes: tuple[int, ...] = (48, 96, 192, 384)
    fusion_hidden_size: int = 64
    head_hidden_size: int = 32
    max_depth: float | None = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthAnythingConfig(Config):
    """`states` of the transformer are read, `normed` or as its layers give them; `metric`: depths up to `max_depth`."""

    settings: DepthAnythingSettings
    backbone: Tower
    states: tuple[int, ...]
    normed: bool
    metric: bool

    @property
    def levels(self) -> Levels:
        levels = self.backbone.family.levels
        assert levels is not None
        return levels

    @property
    def num_hidden_layers(self) -> int:
        return self.levels.layers(self.backbone.config)

    @property
    def picture(self) -> int | None:
        return self.backbone.config.picture

    @property
    def read(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The states that are read raw, and those that are read after the norm."""
        return ((), self.states) if self.normed else (self.states, ())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DepthAnythingConfig:
        s = DepthAnythingSettings.from_dict(data)
        found = section(data, "backbone_config")
        if data.get("backbone_config") is None:
            data = {**data, "backbone_config": dict(BACKBONE)}
            found = section(data, "backbone_config")
        backbone = tower(data, "backbone_config", "dinov2")
        levels = backbone.family.levels
        if levels is None or levels.special(backbone.config) != 1:
            raise UnsupportedModel(f"Depth Anything with {backbone.family.title} as its backbone is not supported")
        layers = levels.layers(backbone.config)
        names = ("stem", *(f"stage{n}" for n in range(1, layers + 1)))
        states = tuple(names.index(name) for name in stages(found, names))
        counts = {len(states), len(s.reassemble_factors), len(s.neck_hidden_sizes)}
        if len(counts) != 1:
            raise CheckpointError(
                f"config.json: {len(states)} states of the backbone, {len(s.reassemble_factors)} reassemble_factors "
                f"and {len(s.neck_hidden_sizes)} neck_hidden_sizes; each state has one of each"
            )
        if any(one != int(one) and 1 / one != int(1 / one) for one in s.reassemble_factors if one > 0):
            raise CheckpointError(f"config.json: reassemble_factors is {list(s.reassemble_factors)}; 4, 2, 1, 0.5, …")
        if min(s.reassemble_factors) <= 0:
            raise CheckpointError(f"config.json: reassemble_factors is {list(s.reassemble_factors)}; each is above 0")
        down, across = levels.cell(backbone.config)
        if (down, across) != (s.patch_size, s.patch_size):
            raise CheckpointError(f"config.json: patch_size is {s.patch_size}, the backbone's {down} x {across}")
        if levels.width(backbone.config) != s.reassemble_hidden_size:
            raise CheckpointError(
                f"config.json: reassemble_hidden_size is {s.reassemble_hidden_size}, and the backbone gives "
                f"{levels.width(backbone.config)} channels"
            )
        if found.get("reshape_hidden_states", True):
            raise UnsupportedModel("config.json: backbone_config.reshape_hidden_states must be false for this model")
        normed = found.get("apply_layernorm", True) is not False
        metric = data.get("depth_estimation_type") == "metric"
        return cls(settings=s, backbone=backbone, states=states, normed=normed, metric=metric)


class Reassemble(nn.Module):
    """A projection, and `factor` times as many rows and columns."""

    def __init__(self, dim: int, out: int, factor: float) -> None:
        super().__init__()
        self.project = Conv(dim, out, 1)
        self.resize: nn.Module = nn.Identity()
        if factor > 1:
            self.resize = Upsample(out, out, int(factor), int(factor))
        elif factor < 1:
            self.resize = Conv(out, out, 3, int(1 / factor), 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.resize(self.project(x))
        return y


class Fusion(nn.Module):
    """Adds a map to what came from the later ones, but for the `first`, and resizes the sum."""

    def __init__(self, dim: int, first: bool) -> None:
        super().__init__()
        self.residual1 = None if first else Residual(dim, True, False)
        self.residual2 = Residual(dim, True, False)
        self.project = Conv(dim, dim, 1)

    def forward(self, x: Tensor, earlier: Tensor | None, size: tuple[Any, Any]) -> Tensor:
        if self.residual1 is not None:
            x = x + self.residual1(earlier)
        y: Tensor = self.project(corners(self.residual2(x), size))
        return y


def corners(x: Tensor, size: tuple[Any, Any]) -> Tensor:
    """A map of another size, whose corners are those of the old one."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


class DepthAnything(nn.Module):
    """Pictures to depths, or to inverse depths up to scale and shift."""

    def __init__(self, c: DepthAnythingConfig) -> None:
        super().__init__()
        s, dim = c.settings, c.settings.fusion_hidden_size
        self.size, self.metric, self.most = s.patch_size, c.metric, s.max_depth or 1.0
        self.backbone = c.levels.build(c.backbone.config, *c.read)
        sizes = list(zip(s.neck_hidden_sizes, s.reassemble_factors, strict=True))
        self.reassemble = nn.ModuleList(Reassemble(s.reassemble_hidden_size, out, factor) for out, factor in sizes)
        self.convs = nn.ModuleList(Conv(out, dim, 3, padding=1, bias=False) for out, _ in sizes)
        self.fusion = nn.ModuleList(Fusion(dim, n == 0) for n in range(len(sizes)))
        self.conv = Conv(dim, dim // 2, 3, padding=1)
        self.hidden, self.out = Conv(dim // 2, s.head_hidden_size, 3, padding=1), Conv(s.head_hidden_size, 1, 1)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Pictures (B, channels, H, W) -> (B, H, W), of whole patches."""
        rows, columns = pixel_values.shape[2] // self.size, pixel_values.shape[3] // self.size
        maps = [
            conv(reassemble(states[:, 1:].transpose(1, 2).unflatten(2, (rows, columns))))
            for states, reassemble, conv in zip(self.backbone(pixel_values), self.reassemble, self.convs, strict=True)
        ][::-1]
        x = maps[0]
        for n, layer in enumerate(self.fusion):
            following = maps[n + 1] if n + 1 < len(maps) else x
            times = 1 if n + 1 < len(maps) else 2
            x = layer(x, maps[n], (following.shape[2] * times, following.shape[3] * times))
        x = corners(self.conv(x), (rows * self.size, columns * self.size))
        x = self.out(F.relu(self.hidden(x)))
        x = torch.sigmoid(x) if self.metric else F.relu(x)
        return ((x * self.most).squeeze(1),)


def _signature(c: DepthAnythingConfig) -> Signature:
    channels = c.levels.pixels(c.backbone.config).axes[1]
    assert isinstance(channels, int)
    size = c.settings.patch_size
    depth = Port("predicted_depth", "float", (BATCH, HEIGHT, WIDTH))
    return Signature((pixels(channels),), (depth,), units={HEIGHT: size, WIDTH: size})


NECK: tuple[Rule, ...] = (
    Rename("reassemble_stage.layers.*.projection", "reassemble.*.project"),
    Rename("reassemble_stage.layers.*.resize", "reassemble.*.resize"),
    Rename("convs.*", "convs.*"),
    Rename("fusion_stage.layers.*.projection", "fusion.*.project"),
    *(
        Rename(f"fusion_stage.layers.*.residual_layer{n}.convolution{m}", f"fusion.*.residual{n}.conv{m}")
        for n in (1, 2)
        for m in (1, 2)
    ),
)

FAMILY = Family(
    name="depth_anything",
    title="Depth Anything",
    model_types=("depth_anything",),
    config=DepthAnythingConfig,
    rules=(
        *below(NECK, "neck", ""),
        Rename("head.conv1", "conv"),
        Rename("head.conv2", "hidden"),
        Rename("head.conv3", "out"),
    ),
    towers=lambda c: below(c.levels.rules, "backbone", "backbone"),
    tasks=(
        Task(
            name="depth-estimation",
            architectures=("DepthAnythingForDepthEstimation",),
            build=DepthAnything,
            signature=_signature,
            carried=lambda c: (
                "fusion.0.residual1",  # the last state has nothing to be added to
                *(f"backbone.{name}" for name in c.levels.left_out(c.backbone.config, *c.read)),
            ),
        ),
    ),
    prefix="",
    no_gguf="llama.cpp has no architecture that estimates depths",
)
