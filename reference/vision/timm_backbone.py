"""Residual networks as the timm library names them: which ResNet a name stands for, and how its weights are spelled.

Detectors were stored with such a backbone before transformers had one of its own. The numbers are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.config import Config, section
from isoform.reference.families import Tower
from isoform.reference.rules import Rule, below
from isoform.reference.vision.convolutions import conv_norm
from isoform.reference.vision.pyramids import backbone, backbone_rules

BASIC, BOTTLENECK = (64, 128, 256, 512), (256, 512, 1024, 2048)
"""Channels of the stages by the kind of layer."""

NETWORKS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    "resnet18": ("basic", (2, 2, 2, 2), BASIC),
    "resnet34": ("basic", (3, 4, 6, 3), BASIC),
    "resnet50": ("bottleneck", (3, 4, 6, 3), BOTTLENECK),
    "resnet101": ("bottleneck", (3, 4, 23, 3), BOTTLENECK),
    "resnet152": ("bottleneck", (3, 8, 36, 3), BOTTLENECK),
}
"""timm's name -> kind of layer, layers and channels of each stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimmBackboneConfig(Config):
    """A `backbone_config` of the model_type timm_backbone. `out_indices` count the stages from 1; -1 is the last.

    `out_features` are the same by name.
    """

    harmless = frozenset(("freeze_batch_norm_2d", "stage_names", "use_pretrained_backbone"))
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "features_only": (True,),
        "output_stride": (None, 32),
        "use_timm_backbone": (True, None),
    }

    backbone: str
    num_channels: int = 3
    out_indices: tuple[int, ...] = (-1,)
    out_features: tuple[str, ...] | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TimmBackboneConfig:
        config = super(TimmBackboneConfig, cls).from_dict(data)
        count = len(config.resnet["depths"])
        if not config.out_indices or any(n != -1 and not 1 <= n <= count for n in config.out_indices):
            raise CheckpointError(
                f"config.json: out_indices of the backbone is {list(config.out_indices)}; stages go from 1 to {count}"
            )
        features = tuple(f"layer{n}" for n in config.out_indices)
        if config.out_features not in (None, features):
            raise CheckpointError(
                f"config.json: out_features of the backbone is {config.out_features!r:.80}, and out_indices say "
                f"{features}"
            )
        return config

    @property
    def resnet(self) -> dict[str, Any]:
        """The same network as a config.json of the model_type resnet, which reads its maps. Raises UnsupportedModel."""
        name = self.backbone.partition(".")[0]  # behind the dot is what it was trained on
        if name not in NETWORKS:
            raise UnsupportedModel(
                f"config.json: backbone is {self.backbone!r:.40} of timm; supported are {', '.join(NETWORKS)}"
            )
        kind, depths, widths = NETWORKS[name]
        last = len(depths)
        stages = sorted({last if n == -1 else n for n in self.out_indices})
        return {
            "model_type": "resnet",
            "num_channels": self.num_channels,
            "embedding_size": 64,
            "hidden_sizes": list(widths),
            "depths": list(depths),
            "layer_type": kind,
            "out_features": [f"stage{n}" for n in stages],
        }


def timm_rules(stages: int) -> tuple[Rule, ...]:
    """The weight rules of a ResNet of so many stages in timm's spelling."""
    rules = [*conv_norm(("conv1", "bn1"), "stem")]
    for n in range(stages):
        hub, own = f"layer{n + 1}.*", f"stages.{n}.*"
        for m in range(3):
            rules += conv_norm((f"{hub}.conv{m + 1}", f"{hub}.bn{m + 1}"), f"{own}.convs.{m}")
        rules += conv_norm((f"{hub}.downsample.0", f"{hub}.downsample.1"), f"{own}.shortcut")
    return tuple(rules)


def detector_backbone(data: Mapping[str, Any], channels: int, indices: Sequence[int]) -> tuple[Tower, bool]:
    """The backbone of a detector's config.json, and whether its weights are spelled as timm has them.

    `channels` and `indices` are those of a file that gives no more than a name of timm. Raises UnsupportedModel.
    """
    found, stated = section(data, "backbone_config"), bool(data.get("backbone_config"))
    timm = found.get("model_type") == "timm_backbone" if stated else data.get("use_timm_backbone") is not False
    if data.get("backbone") is not None and (stated or not timm):
        raise UnsupportedModel(
            "config.json: backbone names a network of timm, and backbone_config or use_timm_backbone say another; "
            "give one of them"
        )
    if timm:
        found = TimmBackboneConfig.from_dict(found if stated else _by_name(data, channels, indices)).resnet
    elif not stated:
        found = {**found, "out_features": ["stage4"]}
    return backbone({**data, "backbone_config": found}, "backbone_config", "resnet"), timm


def _by_name(data: Mapping[str, Any], channels: int, indices: Sequence[int]) -> dict[str, Any]:
    """The backbone that config.json describes by its name in timm, as a `backbone_config`.

    Its settings may have been stored beside the name, as what timm is called with.
    """
    stated = section(data, "backbone_kwargs")
    names = {"in_chans": "num_channels"}
    settings = {names.get(key, key): value for key, value in stated.items()}
    return {
        "backbone": "resnet50" if data.get("backbone") is None else data["backbone"],
        "num_channels": channels,
        "out_indices": list(indices),
        **settings,
    }


def detector_rules(tower: Tower, timm: bool) -> tuple[Rule, ...]:
    """The weight rules of a detector's backbone."""
    depths: Sequence[int] = getattr(tower.config, "depths", ())
    rules = timm_rules(len(depths)) if timm else backbone_rules(tower)
    return below(rules, "model.backbone.conv_encoder.model", "backbone")
