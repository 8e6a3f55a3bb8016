"""DepthPro: metric depth of a large picture, from one vision transformer over its patches at several scales.

Bochkovskii et al. 2024, https://arxiv.org/abs/2410.02073. A second transformer sees the whole picture, and a third one
gives its field of view. The maps of all scales are fused from the coarsest to the finest (Ranftl et al. 2021,
https://arxiv.org/abs/2103.13413). The towers are found by their model_type.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.card import Family, Levels, Task
from isoform.reference.config import Config
from isoform.reference.families import Tower, tower
from isoform.reference.modules.layers import Linear
from isoform.reference.rules import Rename, Rule, batch_norm, below
from isoform.reference.sections import section
from isoform.reference.vision.convolutions import Conv, Upsample
from isoform.reference.vision.fusion import Residual
from isoform.reference.vision.patches import layers_before, pixels
from isoform.signature import BATCH, Port, Signature

TOWERS = ("image", "patch", "fov")
STRIPS = 4
"""The finest maps are computed in so many strips, one after another: a map of 768 x 768 x 256 is 600 MB in float32."""
REACH = 7
"""Rows of the finest map above and below one of its rows that decide the row's depth: six convolutions of 3 x 3, and
one more on the map of twice the size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthProSettings(Config):
    """The keys beside the towers that are read with their types."""

    reads = frozenset(("merge_padding_value", *(f"{name}_model_config" for name in TOWERS)))

    patch_size: int = 384
    fusion_hidden_size: int = 256
    intermediate_hook_ids: tuple[int, ...] = (11, 5)
    intermediate_feature_dims: tuple[int, ...] = (256, 256)
    scaled_images_ratios: tuple[int | float, ...] = (0.25, 0.5, 1)
    scaled_images_overlap_ratios: tuple[int | float, ...] = (0.0, 0.5, 0.25)
    scaled_images_feature_dims: tuple[int, ...] = (1024, 1024, 512)
    use_batch_norm_in_fusion_residual: bool = False
    use_bias_in_fusion_residual: bool = True
    use_fov_model: bool = False
    num_fov_head_layers: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthProConfig(Config):
    """`settings` without the towers, and these; `merge_padding_value` may be 0."""

    settings: DepthProSettings
    merge_padding_value: int
    image: Tower
    patch: Tower
    fov: Tower

    @property
    def image_size(self) -> int:
        """The pictures are square, and the coarsest scale of them is one patch."""
        return math.ceil(self.settings.patch_size / self.settings.scaled_images_ratios[0])

    @property
    def num_hidden_layers(self) -> int:
        return _levels(self.patch).layers(self.patch.config)

    @property
    def grid(self) -> int:
        """Rows, and columns, of cells that the tower of the whole picture has."""
        return _cells(self.settings.patch_size, self.image)

    @property
    def base(self) -> int:
        """Rows, and columns, of the coarsest map; each of the next has twice as many."""
        return self.image_size // 2 ** int(math.log2(self.image_size / self.grid))

    @property
    def hooks(self) -> tuple[int, ...]:
        """The states of the patches' tower that are read besides the last, as layers that make them."""
        return tuple(layers_before(n + 1, self.num_hidden_layers) for n in self.settings.intermediate_hook_ids)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DepthProConfig:
        s = DepthProSettings.from_dict(data)
        padding = data.get("merge_padding_value")
        padding = 3 if padding is None else padding
        if type(padding) is not int or padding < 0:
            raise CheckpointError(f"config.json: merge_padding_value is {padding!r:.40}, not a whole number from 0 on")
        _check(s)
        sections = {f"{name}_model_config": section(data, f"{name}_model_config") for name in TOWERS}
        sized = {**data, **{key: {**found, "image_size": s.patch_size} for key, found in sections.items()}}
        image, patch, fov = (tower(sized, f"{name}_model_config", "dinov2") for name in TOWERS)
        for one in (image, patch, fov):
            if one.family.levels is None:
                raise UnsupportedModel(f"DepthPro with {one.family.title} as a tower is not supported")
            _cells(s.patch_size, one)
        return cls(settings=s, merge_padding_value=padding, image=image, patch=patch, fov=fov)


def _check(s: DepthProSettings) -> None:
    """Raise CheckpointError for settings that contradict each other."""
    scales = s.scaled_images_ratios, s.scaled_images_overlap_ratios, s.scaled_images_feature_dims
    if not len(scales[0]) == len(scales[1]) == len(scales[2]):
        raise CheckpointError(
            "config.json: scaled_images_ratios, scaled_images_overlap_ratios and scaled_images_feature_dims have "
            f"{', '.join(str(len(one)) for one in scales)} entries; each scale has one of each"
        )
    if len(s.intermediate_hook_ids) != len(s.intermediate_feature_dims):
        raise CheckpointError(
            f"config.json: {len(s.intermediate_hook_ids)} intermediate_hook_ids have "
            f"{len(s.intermediate_feature_dims)} intermediate_feature_dims; each has one"
        )
    ratios = s.scaled_images_ratios
    if not ratios or list(ratios) != sorted(ratios) or not 0 < ratios[0] <= ratios[-1] <= 1:
        raise CheckpointError(f"config.json: scaled_images_ratios is {list(ratios)}; they go up, from above 0 to 1")
    if any(not 0 <= one < 1 for one in s.scaled_images_overlap_ratios):
        raise CheckpointError(
            f"config.json: scaled_images_overlap_ratios is {list(s.scaled_images_overlap_ratios)}; each is from 0 to 1"
        )
    if len(ratios) + len(s.intermediate_hook_ids) < 2:
        raise CheckpointError("config.json: one scale and no intermediate_hook_ids leave nothing to fuse")
    if s.fusion_hidden_size // 2**s.num_fov_head_layers == 0:
        raise CheckpointError(
            f"config.json: fusion_hidden_size {s.fusion_hidden_size} cannot be halved {s.num_fov_head_layers} times"
        )


def _cells(size: int, found: Tower) -> int:
    """Rows, and columns, of cells that a tower makes of a patch."""
    down, across = _levels(found).cell(found.config)
    if down != across or size < down:
        raise CheckpointError(f"config.json: patch_size is {size}, and a tower has cells of {down} x {across} pixels")
    return size // down


def _levels(found: Tower) -> Levels:
    levels = found.family.levels
    assert levels is not None
    return levels


def _whole(found: Tower) -> nn.Module:
    """The tower with its last state alone, normed."""
    levels = _levels(found)
    return levels.build(found.config, (), (levels.layers(found.config),))


class Tiles:
    """Where the patches of one scale are, and how their maps are joined to one.

    `size` of the scaled picture and `patch`, in pixels; `cells` of a patch's map; `padding`: cells that are cut off on
    both sides of a joint, a quarter of the patch at most. `rows`: of the joined map.
    """

    def __init__(self, size: int, patch: int, overlap: float, cells: int, padding: float) -> None:
        self.patch = patch
        stride = max(1, int(patch * (1 - overlap)))
        places = range(0, size - patch + 1, stride)
        self.corners = [(row, column) for row in places for column in places]
        self.side = len(places)
        cut = min(cells // 4, int(padding)) if self.side > 1 else 0
        last = self.side - 1
        self.spans = [(n * cells + cut * (n > 0), (n + 1) * cells - cut * (n < last)) for n in range(self.side)]
        self.rows = sum(stop - start for start, stop in self.spans)

    def __len__(self) -> int:
        return len(self.corners)

    def of(self, x: Tensor) -> list[Tensor]:
        """The patches of a picture (B, channels, size, size)."""
        size = self.patch
        return [x[:, :, row : row + size, column : column + size] for row, column in self.corners]

    def joined(self, x: Tensor) -> Tensor:
        """The maps (B, patches, cells, cells, C) as one (B, C, rows, rows)."""
        x = x.unflatten(1, (self.side, self.side)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if self.side > 1:
            x = torch.cat([x[:, start:stop] for start, stop in self.spans], 1)
            x = torch.cat([x[:, :, start:stop] for start, stop in self.spans], 2)
        return x.permute(0, 3, 1, 2)


def squares(x: Tensor, cells: int, special: int) -> Tensor:
    """The slots of a tower's states (B, slots, C) that are cells, as (B, cells, cells, C)."""
    return x[:, special:].unflatten(1, (cells, cells))


def scaled(x: Tensor, size: int, now: int) -> Tensor:
    """A map or picture (B, C, now, now) of another size, between the four nearest cells."""
    return x if size == now else F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)


class Raise(nn.Module):
    """A projection from `dim` to `inner` channels, and so many steps to twice the size and `out` channels."""

    def __init__(
        self, dim: int, inner: int, out: int, steps: int, *, projects: bool = True, bias: bool = False
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Conv(dim, inner, 1, bias=bias)] if projects else [])
        for n in range(steps):
            self.layers.append(Upsample(out if n else inner, out, 2, 2, bias=bias))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Neck(nn.Module):
    """The towers' maps in twice the size or more, and all in the same number of channels."""

    def __init__(self, c: DepthProConfig) -> None:
        super().__init__()
        s, dims = c.settings, c.settings.scaled_images_feature_dims
        image, patch = (_levels(one).width(one.config) for one in (c.image, c.patch))
        self.image = Raise(image, image, dims[0], 1, projects=False, bias=True)
        self.scales = nn.ModuleList(Raise(patch, dim, dim, 1) for dim in dims)
        hooks = s.intermediate_feature_dims
        self.hooks = nn.ModuleList(
            Raise(patch, dim if n else s.fusion_hidden_size, dim, 2 + n) for n, dim in enumerate(hooks)
        )
        self.fuse = Conv(2 * dims[0], dims[0], 1)
        width = s.fusion_hidden_size
        each = [*dims, *hooks]
        if each[-1] == width:
            each.pop()
        self.projections = nn.ModuleList(Conv(dim, width, 3, padding=1, bias=False) for dim in each)

    def coarsest(self, image: Tensor, patch: Tensor) -> Tensor:
        """The map of the whole picture and that of the coarsest patches, as one."""
        y: Tensor = self.fuse(torch.cat((self.scales[0](patch), self.image(image)), 1))
        return self.project(0, y)

    def finer(self, n: int, x: Tensor) -> Tensor:
        """Map `n` of the patches' tower."""
        raised = self.scales[n] if n < len(self.scales) else self.hooks[n - len(self.scales)]
        return self.project(n, raised(x))

    def project(self, n: int, x: Tensor) -> Tensor:
        return self.projections[n](x) if n < len(self.projections) else x


class Fusion(nn.Module):
    """Adds a map to what came from the coarser ones, but for the `first`; `raised` doubles the size for the next."""

    def __init__(self, s: DepthProSettings, *, first: bool = False, doubles: bool = True) -> None:
        super().__init__()
        dim, norms = s.fusion_hidden_size, s.use_batch_norm_in_fusion_residual
        bias = s.use_bias_in_fusion_residual
        self.residual1 = None if first else Residual(dim, bias, norms)
        self.residual2 = Residual(dim, bias, norms)
        self.up = Upsample(dim, dim, 2, 2, bias=False) if doubles else nn.Identity()
        self.project = Conv(dim, dim, 1)

    def forward(self, x: Tensor, finer: Tensor | None = None) -> Tensor:
        if self.residual1 is not None:
            x = x + self.residual1(finer)
        y: Tensor = self.residual2(x)
        return y

    def raised(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.up(x))
        return y


class Head(nn.Module):
    """The finest map (B, C, H, W) to inverse depths (B, 2 H, 2 W), not negative."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        self.conv, self.up = Conv(dim, half, 3, padding=1), Upsample(half, half, 2, 2)
        self.hidden, self.out = Conv(half, 32, 3, padding=1), Conv(32, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.hidden(self.up(self.conv(x)))
        return F.relu(self.out(F.relu(x))).squeeze(1)


class FieldOfView(nn.Module):
    """The angle that a picture spans across, in degrees, from a tower of its own and the coarsest fused map."""

    def __init__(self, c: DepthProConfig) -> None:
        super().__init__()
        s, dim = c.settings, c.settings.fusion_hidden_size
        self.cells, self.grid, self.base = _cells(s.patch_size, c.fov), c.grid, c.base
        levels = _levels(c.fov)
        self.special = levels.special(c.fov.config)
        self.tower = _whole(c.fov)
        self.neck = Linear(levels.width(c.fov.config), dim // 2)
        self.conv = Conv(dim, dim // 2, 3, 2, 1)
        count = s.num_fov_head_layers
        widths = [math.ceil(dim / 2 ** (n + 1)) for n in range(count + 1)]
        self.layers = nn.ModuleList()
        for a, b in pairwise(widths):
            self.layers.extend((Conv(a, b, 3, 2, 1), nn.ReLU()))
        self.layers.append(Conv(widths[-1], 1, int((c.grid - 1) / 2**count + 1)))

    def forward(self, picture: Tensor, coarsest: Tensor) -> Tensor:
        """The picture in a patch's size, and the map (B, C, rows, rows) -> (B,)."""
        (states,) = self.tower(picture)
        x = squares(self.neck(states), self.cells, self.special).permute(0, 3, 1, 2)
        x = scaled(x, self.base, self.cells) + F.relu(self.conv(coarsest))
        x = scaled(x, self.grid, self.base)
        for layer in self.layers:
            x = layer(x)
        return x.flatten()


class DepthPro(nn.Module):
    """Pictures to inverse depths in units of the picture's width, and the field of view where the model has it."""

    def __init__(self, c: DepthProConfig) -> None:
        super().__init__()
        s, side = c.settings, c.image_size
        self.size, self.side, self.base = s.patch_size, side, c.base
        self.ratios, self.hooks = s.scaled_images_ratios, len(s.intermediate_hook_ids)
        self.cells, self.grid = _cells(s.patch_size, c.patch), c.grid
        self.tiles = [
            Tiles(int(side * ratio), s.patch_size, overlap, self.cells, c.merge_padding_value * (1 / ratio))
            for ratio, overlap in zip(s.scaled_images_ratios, s.scaled_images_overlap_ratios, strict=True)
        ]
        image, patch = _levels(c.image), _levels(c.patch)
        self.special = [one.special(found.config) for one, found in ((image, c.image), (patch, c.patch))]
        self.image = _whole(c.image)
        self.patch = patch.build(c.patch.config, c.hooks, (c.num_hidden_layers,))
        self.neck = Neck(c)
        self.fusion = nn.ModuleList(Fusion(s, first=n == 0) for n in range(len(self.tiles) + self.hooks - 1))
        self.final = Fusion(s, doubles=False)
        self.head = Head(s.fusion_hidden_size)
        self.fov = FieldOfView(c) if s.use_fov_model else None
        self.factor = 2 ** (1 + self.hooks)  # rows of the finest map to a row of the tower's finest
        self.beyond = -(-REACH // self.factor)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Pictures (B, channels, side, side) -> inverse depths (B, rows, rows) and degrees (B,)."""
        pictures = [
            pixel_values
            if ratio == 1
            else F.interpolate(pixel_values, scale_factor=float(ratio), mode="bilinear", align_corners=False)
            for ratio in self.ratios
        ]
        small = pictures[0]
        if self.side * self.ratios[0] != self.size:
            small = scaled(pixel_values, self.size, self.side)
        maps = self._maps(pictures)
        (states,) = self.image(small)
        whole = squares(states, self.grid, self.special[0]).permute(0, 3, 1, 2)
        coarsest = self.neck.coarsest(scaled(whole, self.base, self.grid), maps[0])
        x = self.fusion[0](coarsest)
        for n, layer in enumerate(self.fusion):
            if n:
                x = layer(self.fusion[n - 1].raised(x), self.neck.finer(n, maps[n]))  # type: ignore[operator]
        depth = torch.cat(list(self._strips(x, maps[-1])), 1)
        return (depth,) if self.fov is None else (depth, self.fov(small, coarsest))

    def _maps(self, pictures: list[Tensor]) -> list[Tensor]:
        """The maps of every scale, then those of the finest scale's earlier states."""
        patches = [patch for x, tiles in zip(pictures, self.tiles, strict=True) for patch in tiles.of(x)]
        *hooked, last = (
            squares(states, self.cells, self.special[1]).unflatten(0, (-1, len(patches)))
            for states in self.patch(torch.stack(patches, 1).flatten(0, 1))
        )
        maps, first, finest = [], 0, self.base * 2 ** (len(self.tiles) - 1)
        for n, tiles in enumerate(self.tiles):
            maps.append(self._map(last, first, tiles, self.base * 2**n))
            first += len(tiles)
        tiles = self.tiles[-1]
        return maps + [self._map(states, first - len(tiles), tiles, finest) for states in hooked]

    @staticmethod
    def _map(states: Tensor, first: int, tiles: Tiles, size: int) -> Tensor:
        return scaled(tiles.joined(states[:, first : first + len(tiles)]), size, tiles.rows)

    def _strips(self, x: Tensor, finest: Tensor) -> Iterator[Tensor]:
        """The depths strip by strip: x (B, C, H / 2, W / 2) from the coarser maps, and the finest map of the tower.

        Each strip has a few rows more than it needs, so that what a convolution sees at its edges is there.
        """
        rows, factor, last = self.base * 2 ** (len(self.tiles) - 1), self.factor, len(self.fusion)
        beyond = self.beyond
        count = max(1, min(STRIPS, rows // (2 * beyond + 1)))
        for start, stop in pairwise(rows * n // count for n in range(count + 1)):
            above, under = max(0, start - beyond), min(rows, stop + beyond)
            coarse = self.fusion[-1].raised(x[:, :, above * factor // 2 : under * factor // 2])  # type: ignore[operator]
            y = self.final(coarse, self.neck.finer(last, finest[:, :, above:under]))
            y = self.head(self.final.raised(y))
            yield y[:, (start - above) * 2 * factor : (stop - above) * 2 * factor]


def _signature(c: DepthProConfig) -> Signature:
    channels = _levels(c.patch).pixels(c.patch.config).axes[1]
    assert isinstance(channels, int)
    rows = c.base * 2 ** (len(c.settings.scaled_images_ratios) + len(c.hooks) + 1)
    angle = (Port("field_of_view", "float", (BATCH,)),) if c.settings.use_fov_model else ()
    return Signature((pixels(channels, c.image_size),), (Port("predicted_depth", "float", (BATCH, rows, rows)), *angle))


def _carried(c: DepthProConfig) -> tuple[str, ...]:
    """The first fusion adds nothing, and a field of view that the config does not ask for is not computed."""
    towers = (("image", c.image, ()), ("patch", c.patch, c.hooks), ("fov.tower", c.fov, ()))
    found = [
        f"{place}.{name}"
        for place, one, raw in towers
        for name in _levels(one).left_out(one.config, raw, (_levels(one).layers(one.config),))
    ]
    return (*found, "fusion.0.residual1", *(() if c.settings.use_fov_model else ("fov",)))


def _fusion(s: DepthProSettings) -> Iterator[Rule]:
    for hub, canonical in (("fusion_stage.intermediate.*", "fusion.*"), ("fusion_stage.final", "final")):
        if canonical != "final":
            yield Rename(f"{hub}.deconv", f"{canonical}.up")
        yield Rename(f"{hub}.projection", f"{canonical}.project")
        for n in (1, 2):
            for m in (1, 2):
                inner, ours = f"{hub}.residual_layer{n}", f"{canonical}.residual{n}"
                yield Rename(f"{inner}.convolution{m}", f"{ours}.conv{m}")
                if s.use_batch_norm_in_fusion_residual:
                    yield from batch_norm(f"{inner}.batch_norm{m}", f"{ours}.norm{m}")


NECK: tuple[Rule, ...] = (
    Rename("feature_upsample.image_block.layers.*", "image.layers.*"),
    Rename("feature_upsample.scaled_images.*.layers.*", "scales.*.layers.*"),
    Rename("feature_upsample.intermediate.*.layers.*", "hooks.*.layers.*"),
    Rename("fuse_image_with_low_res", "fuse"),
    Rename("feature_projection.projections.*", "projections.*"),
)
RULES: tuple[Rule, ...] = (
    *below(NECK, "depth_pro.neck", "neck"),
    Rename("fov_model.fov_encoder.neck", "fov.neck"),
    Rename("fov_model.conv", "fov.conv"),
    Rename("fov_model.head.layers.*", "fov.layers.*"),
    Rename("head.layers.0", "head.conv"),
    Rename("head.layers.1", "head.up"),
    Rename("head.layers.2", "head.hidden"),
    Rename("head.layers.4", "head.out"),
)

FAMILY = Family(
    name="depth_pro",
    title="DepthPro",
    model_types=("depth_pro",),
    config=DepthProConfig,
    rules=RULES,
    towers=lambda c: (
        *below(_levels(c.image).rules, "depth_pro.encoder.image_encoder.model", "image"),
        *below(_levels(c.patch).rules, "depth_pro.encoder.patch_encoder.model", "patch"),
        *below(_levels(c.fov).rules, "fov_model.fov_encoder.model", "fov.tower"),
        *_fusion(c.settings),
    ),
    tasks=(
        Task(
            name="depth-estimation",
            architectures=("DepthProForDepthEstimation",),
            build=DepthPro,
            signature=_signature,
            carried=_carried,
        ),
    ),
    prefix="",
    heads=("fov",),
    no_gguf="llama.cpp has no architecture that estimates depths",
)
