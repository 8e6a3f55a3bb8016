"""Mask2Former: queries that attend to a picture where their own mask is, for semantic, instance or panoptic segments.

Cheng et al. 2021, https://arxiv.org/abs/2112.01527. A backbone gives maps by its model_type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import log2
from typing import Any

from torch import Tensor, nn

from isoform.errors import CheckpointError
from isoform.reference.card import Family, Task
from isoform.reference.config import Config, section, with_labels
from isoform.reference.families import Tower
from isoform.reference.modules.layers import Embedding
from isoform.reference.rules import Rename, Rule, below
from isoform.reference.vision import pixel_decoder
from isoform.reference.vision.convolutions import Conv
from isoform.reference.vision.maps import sequence, sine_positions
from isoform.reference.vision.mask_decoder import EPS, LEVELS, MaskDecoder, apart, merged
from isoform.reference.vision.pixel_decoder import PixelDecoder
from isoform.reference.vision.pyramids import backbone, backbone_rules, pyramid_of
from isoform.signature import BATCH, Port, Signature

ROWS, COLUMNS = "mask_height", "mask_width"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask2FormerSettings(Config):
    """The keys beside the backbone that are read with their types."""

    reads = frozenset(("backbone_config",))
    harmless = frozenset(
        (
            *("class_weight", "dice_weight", "ignore_value", "importance_sample_ratio", "init_std", "init_xavier_std"),
            *("mask_weight", "no_object_weight", "oversample_ratio", "train_num_points"),  # of a training
            *("output_auxiliary_logits", "use_auxiliary_loss"),  # outputs that no graph here gives
        )
    )
    only = {  # noqa: RUF012
        "backbone": (None,),
        "backbone_kwargs": (None, {}),
        "use_pretrained_backbone": (False, None),
        "use_timm_backbone": (False, None),
    }

    feature_size: int = 256
    mask_feature_size: int = 256
    hidden_dim: int = 256
    encoder_feedforward_dim: int = 1024
    activation_function: str = "relu"
    encoder_layers: int = 6
    decoder_layers: int = 10
    num_attention_heads: int = 8
    dim_feedforward: int = 2048
    pre_norm: bool = False
    enforce_input_projection: bool = False
    common_stride: int = 4
    num_queries: int = 100
    feature_strides: tuple[int, ...] = (4, 8, 16, 32)
    num_labels: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask2FormerConfig(Mask2FormerSettings):
    tower: Tower

    @property
    def num_hidden_layers(self) -> int:
        return self.decoder_layers

    @property
    def picture(self) -> int | None:
        return self.tower.config.picture

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of the backbone whose maps are read."""
        found: tuple[str, ...] = self.tower.config.stages  # type: ignore[attr-defined]
        return tuple(name for n, name in enumerate(found) if n < self.finer or n >= len(found) - LEVELS)

    @property
    def finer(self) -> int:
        """How many maps the pixel decoder adds below the three that it attends to."""
        return int(log2(min(self.feature_strides[-LEVELS:])) - log2(self.common_stride))

    @property
    def projected(self) -> bool:
        return self.feature_size != self.hidden_dim or self.enforce_input_projection

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Mask2FormerConfig:
        found = section(data, "backbone_config")
        if found.get("model_type", "swin") == "swin" and not {"out_features", "out_indices"} & found.keys():
            found = {**found, "out_features": ["stage1", "stage2", "stage3", "stage4"]}
        tower = backbone({**data, "backbone_config": found}, "backbone_config", "swin")
        settings = Mask2FormerSettings.from_dict(with_labels(data))
        config = cls(tower=tower, **{spec.name: getattr(settings, spec.name) for spec in fields(settings)})
        if config.decoder_layers < 2 or config.common_stride < 1:
            raise CheckpointError("config.json: decoder_layers is 2 or more, common_stride 1 or more")
        return config


class Mask2Former(nn.Module):
    """Pictures to scores of classes and masks, one of each per query."""

    def __init__(self, c: Mask2FormerConfig) -> None:
        super().__init__()
        dim, pyramid = c.hidden_dim, pyramid_of(c.tower)
        self.dim = dim
        self.backbone = pyramid.build(c.tower.config, c.stages)
        self.pixels = PixelDecoder(
            pyramid.channels(c.tower.config, c.stages),
            c.feature_size,
            c.mask_feature_size,
            heads=c.num_attention_heads,
            hidden=c.encoder_feedforward_dim,
            layers=c.encoder_layers,
            finer=c.finer,
        )
        self.project = nn.ModuleList(Conv(c.feature_size, dim, 1) for _ in range(LEVELS if c.projected else 0))
        self.places, self.queries = Embedding(c.num_queries, dim), Embedding(c.num_queries, dim)
        self.level_embed = Embedding(LEVELS, dim)
        self.decoder = MaskDecoder(
            dim,
            c.mask_feature_size,
            c.num_labels,
            layers=c.decoder_layers - 1,
            heads=c.num_attention_heads,
            inner=c.dim_feedforward,
            act=c.activation_function,
            eps=EPS,
            pre_norm=c.pre_norm,
        )

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Pictures (B, channels, H, W).

        Returns scores of classes (B, Q, labels + 1) and mask logits (B, Q, H / 4, W / 4), rounded up.
        """
        maps, fine = self.pixels(self.backbone(pixel_values))
        if len(self.project):
            maps = [project(y) for project, y in zip(self.project, maps, strict=True)]
        values = [sequence(y) + self.level_embed.weight[n] for n, y in enumerate(maps)]
        pairs = [(value + sine_positions(y, self.dim), value) for value, y in zip(values, maps, strict=True)]
        x = self.queries.weight.unsqueeze(0).expand(pixel_values.shape[0], -1, -1)
        found: tuple[Tensor, ...] = self.decoder(x, self.places.weight.unsqueeze(0), pairs, maps, fine)
        return found


def signature(c: Mask2FormerConfig) -> Signature:
    inner = c.tower.family.tasks[-1].signature
    of_tower = None if inner is None else inner(c.tower.config)
    return Signature(
        (pyramid_of(c.tower).pixels(c.tower.config),),
        (
            Port("class_queries_logits", "float", (BATCH, c.num_queries, c.num_labels + 1), "scores"),
            Port("masks_queries_logits", "float", (BATCH, c.num_queries, ROWS, COLUMNS), "masks"),
        ),
        units=of_tower.units if of_tower else {},
        traced=of_tower.traced if of_tower else {},
    )


_DECODER: tuple[Rule, ...] = (
    *below(
        (
            *merged("cross_attn", "cross"),
            Rename("cross_attn_layer_norm", "cross_norm"),
            *apart("self_attn", "attn"),
            Rename("self_attn_layer_norm", "attn_norm"),
            Rename("fc1", "mlp.up"),
            Rename("fc2", "mlp.down"),
            Rename("final_layer_norm", "mlp_norm"),
        ),
        "layers.*",
        "layers.*",
    ),
    Rename("layernorm", "norm"),
    Rename("mask_predictor.mask_embedder.*.0", "mask.layers.*"),
)
RULES: tuple[Rule, ...] = (
    *below(pixel_decoder.RULES, "model.pixel_level_module.decoder", "pixels"),
    *below(_DECODER, "model.transformer_module.decoder", "decoder"),
    Rename("model.transformer_module.input_projections.*", "project.*"),
    Rename("model.transformer_module.queries_embedder", "places"),
    Rename("model.transformer_module.queries_features", "queries"),
    Rename("model.transformer_module.level_embed", "level_embed"),
    Rename("class_predictor", "decoder.classifier"),
    Rename("criterion.empty_weight", "loss.weights"),  # of a training
)

FAMILY = Family(
    name="mask2former",
    title="Mask2Former",
    model_types=("mask2former",),
    config=Mask2FormerConfig,
    rules=RULES,
    towers=lambda c: (
        *below(backbone_rules(c.tower, ("layernorm",)), "model.pixel_level_module.encoder", "backbone"),
        *below(pixel_decoder.finer_rules(c.finer), "model.pixel_level_module.decoder", "pixels"),
    ),
    tasks=(
        Task(
            name="image-segmentation",
            architectures=("Mask2FormerForUniversalSegmentation",),
            build=Mask2Former,
            signature=signature,
            carried=lambda c: (
                "loss",
                *(f"backbone.{name}" for name in pyramid_of(c.tower).left_out(c.tower.config, c.stages)),
            ),
        ),
    ),
    prefix="mask2former",
    heads=("loss",),
    no_gguf="llama.cpp has no architecture that segments pictures",
)
