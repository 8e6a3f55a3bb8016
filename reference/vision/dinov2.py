"""DINOv2: a vision transformer whose positions are interpolated to any picture, with scaled residual branches.

Oquab et al. 2023, https://arxiv.org/abs/2304.07193. `dinov2_registers` is the same trunk with registers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isoform.errors import CheckpointError
from isoform.reference.card import Family, Levels, Task
from isoform.reference.config import Config, with_labels
from isoform.reference.modules.layers import MLP, Linear
from isoform.reference.rules import Rename, Rule, below
from isoform.reference.vision.patches import (
    SEQUENCE,
    GatedUp,
    Layer,
    PatchEmbed,
    grid,
    layers_before,
    left_out,
    pair,
    pixels,
    resized,
    units,
)
from isoform.signature import BATCH, Port, Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class Dinov2Config(Config):
    harmless = frozenset(
        (
            *("apply_layernorm", "out_features", "out_indices", "reshape_hidden_states", "stage_names"),  # a backbone's
            "layerscale_value",  # an initial value
            "use_mask_token",
        )
    )

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: float = 4
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    image_size: int | tuple[int, ...] = 224
    patch_size: int | tuple[int, ...] = 14
    num_channels: int = 3
    qkv_bias: bool = True
    use_swiglu_ffn: bool = False
    num_labels: int = 2

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Dinov2Config:
        config = super(Dinov2Config, cls).from_dict(with_labels(data))
        rows, columns = grid(config.image_size, config.patch_size)
        if rows != columns:
            raise CheckpointError(
                f"config.json: positions on a grid of {rows} x {columns}; this family has square ones"
            )
        return config

    @property
    def registers(self) -> int:
        return 0

    @property
    def intermediate_size(self) -> int:
        hidden = int(self.hidden_size * self.mlp_ratio)
        return (int(hidden * 2 / 3) + 7) // 8 * 8 if self.use_swiglu_ffn else hidden


class Dinov2(nn.Module):
    """The trunk; `classifies`: with a linear layer on the class token and the mean of the patches.

    `state`: it ends after a layer, as `layers_before` counts, without the norm.

    Registers are tokens of their own between the class token and the patches (Darcet et al. 2023,
    https://arxiv.org/abs/2309.16588); a model that has them interpolates its positions with antialiasing.
    """

    def __init__(self, c: Dinov2Config, classifies: bool, state: int | None = None) -> None:
        super().__init__()
        dim = c.hidden_size
        self.grid, self.registers, self.classifies = grid(c.image_size, c.patch_size), c.registers, classifies
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        if c.registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, c.registers, dim))
        self.position_embed = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], dim))
        self.patch_embed = PatchEmbed(c.num_channels, dim, c.patch_size)
        self.layers = nn.ModuleList(
            Layer(dim, c.num_attention_heads, _mlp(c), c.layer_norm_eps, bias=c.qkv_bias, scaled=True)
            for _ in range(c.num_hidden_layers if state is None else layers_before(state, c.num_hidden_layers))
        )
        self.norm = nn.LayerNorm(dim, c.layer_norm_eps) if state is None else None
        if classifies:
            self.classifier = Linear(2 * dim, c.num_labels)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Pictures (B, channels, H, W) -> the last hidden state (B, 1 + registers + patches, C) and its first token
        (B, C), or logits (B, labels)."""
        x = self.embedded(pixel_values)
        for layer in self.layers:
            x = layer(x)
        if self.norm is None:
            return (x,)
        x = self.norm(x)
        if not self.classifies:
            return x, x[:, 0]
        patches = x[:, 1 + self.registers :]
        return (self.classifier(torch.cat((x[:, 0], patches.mean(1)), -1)),)

    def embedded(self, pixel_values: Tensor) -> Tensor:
        """Pictures (B, channels, H, W) -> what goes into the first layer (B, 1 + registers + patches, C)."""
        x = self.patch_embed(pixel_values)
        down, across = self.patch_embed.kernel_size
        sizes = pixel_values.shape[2] // down, pixel_values.shape[3] // across
        table = self.position_embed[0]
        x = x + resized(table[1:], self.grid, sizes, smooth=self.registers > 0)
        first = (self.class_token + table[:1]).expand(x.shape[0], -1, -1)
        if self.registers:
            return torch.cat((first, self.register_tokens.expand(x.shape[0], -1, -1), x), 1)
        return torch.cat((first, x), 1)


class Dinov2Levels(Dinov2):
    """The trunk with several of its states as outputs: those of `raw` as a layer gives them, those of `normed` after
    the norm, each counted as `layers_before` does."""

    def __init__(self, c: Dinov2Config, raw: tuple[int, ...], normed: tuple[int, ...]) -> None:
        super().__init__(c, False, max(*raw, *normed, 0))
        self.raw, self.normed = raw, normed
        self.norm = nn.LayerNorm(c.hidden_size, c.layer_norm_eps) if normed else None

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Pictures (B, channels, H, W) -> the states (B, 1 + registers + patches, C)."""
        states = [self.embedded(pixel_values)]
        for layer in self.layers:
            states.append(layer(states[-1]))
        found = tuple(states[n] for n in self.raw)
        return found if self.norm is None else (*found, *(self.norm(states[n]) for n in self.normed))


def _left_out(c: Dinov2Config, raw: tuple[int, ...], normed: tuple[int, ...]) -> tuple[str, ...]:
    return left_out(max(*raw, *normed, 0), c.num_hidden_layers, *(() if normed else ("norm",)), "mask")


def _mlp(c: Dinov2Config) -> MLP | GatedUp:
    if c.use_swiglu_ffn:
        return GatedUp(c.hidden_size, c.intermediate_size)
    return MLP(c.hidden_size, c.intermediate_size, c.hidden_act)


def _signature(c: Dinov2Config, *outputs: Port) -> Signature:
    return Signature((pixels(c.num_channels),), outputs, units=units(c.patch_size))


TRUNK: tuple[Rule, ...] = (
    Rename("embeddings.cls_token", "class_token"),
    Rename("embeddings.position_embeddings", "position_embed"),
    Rename("embeddings.patch_embeddings.projection", "patch_embed"),
    Rename("embeddings.mask_token", "mask.token"),
    Rename("encoder.layer.*.norm1", "layers.*.attn_norm"),
    Rename("encoder.layer.*.attention.attention.query", "layers.*.attn.q"),
    Rename("encoder.layer.*.attention.attention.key", "layers.*.attn.k"),
    Rename("encoder.layer.*.attention.attention.value", "layers.*.attn.v"),
    Rename("encoder.layer.*.attention.output.dense", "layers.*.attn.out"),
    Rename("encoder.layer.*.layer_scale1.lambda1", "layers.*.attn_scale"),
    Rename("encoder.layer.*.norm2", "layers.*.mlp_norm"),
    Rename("encoder.layer.*.mlp.fc1", "layers.*.mlp.up"),
    Rename("encoder.layer.*.mlp.fc2", "layers.*.mlp.down"),
    Rename("encoder.layer.*.mlp.weights_in", "layers.*.mlp.gate_up"),
    Rename("encoder.layer.*.mlp.weights_out", "layers.*.mlp.gate_down"),
    Rename("encoder.layer.*.layer_scale2.lambda1", "layers.*.mlp_scale"),
    Rename("layernorm", "norm"),
)
"""The trunk's rules, with the names below the prefix of a class."""


def rules(prefix: str) -> tuple[Rule, ...]:
    """The Hub's names, those of the trunk below `prefix`."""
    return (*below(TRUNK, prefix, ""), Rename("classifier", "classifier"))


def levels(more: tuple[Rule, ...] = ()) -> Levels:
    """How another family reads several states; `more`: rules besides `TRUNK`."""
    return Levels(
        build=Dinov2Levels,
        pixels=lambda c: pixels(c.num_channels),
        width=lambda c: c.hidden_size,
        layers=lambda c: c.num_hidden_layers,
        cell=lambda c: pair("patch_size", c.patch_size),
        special=lambda c: 1 + c.registers,
        left_out=_left_out,
        rules=(*TRUNK, *more),
    )


def tasks(name: str) -> tuple[Task, ...]:
    """Both tasks; the Hub's classes begin with `name`."""
    return (
        Task(
            name="image-classification",
            architectures=(f"{name}ForImageClassification",),
            build=lambda c: Dinov2(c, True),
            signature=lambda c: _signature(c, Port("logits", "float", (BATCH, c.num_labels))),
            carried=("mask",),
        ),
        Task(
            name="image-feature-extraction",
            architectures=(f"{name}Model",),
            build=lambda c: Dinov2(c, False),
            signature=lambda c: _signature(
                c,
                Port("last_hidden_state", "float", (BATCH, SEQUENCE, c.hidden_size)),
                Port("pooler_output", "float", (BATCH, c.hidden_size)),
            ),
            carried=("mask",),
        ),
    )


FAMILY = Family(
    name="dinov2",
    title="DINOv2",
    model_types=("dinov2",),
    config=Dinov2Config,
    rules=rules("dinov2"),
    tasks=tasks("Dinov2"),
    levels=levels(),
    prefix="dinov2",
    heads=("classifier", "mask"),
    no_gguf="llama.cpp has no DINOv2",
)
