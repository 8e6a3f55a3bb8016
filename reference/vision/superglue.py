"""SuperGlue: keypoints of two pictures look at each other in turns, and are matched by optimal transport.

Sarlin et al. 2020, https://arxiv.org/abs/1911.11763. Two graphs: a detector of keypoints, whose family the config
names, and the matcher. Between them the keypoints are chosen by the host step of the detector and measured from the
middle by `centre_keypoints`; behind the matcher `match_keypoints` reads off the pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.card import Family, Part, Task
from isoform.reference.config import Config
from isoform.reference.families import Tower, tower
from isoform.reference.modules import ops
from isoform.reference.modules.attention import Heads, Projections, attend
from isoform.reference.modules.layers import FrozenBatchNorm, Linear, head_size, hidden
from isoform.reference.rules import Rename, Rule, batch_norm, below
from isoform.signature import BATCH, Port, Signature

DETECTOR = "keypoint_detector"
KEYPOINTS = "keypoints"
"""The axis of a picture's keypoints."""
KINDS = ("self", "cross")
SPREAD = 0.7  # of a picture's longer side: the unit of places


@dataclass(frozen=True, slots=True, kw_only=True)
class SuperGlueSettings(Config):
    """The keys beside the detector's."""

    reads = frozenset(("keypoint_detector_config", "matching_threshold"))

    hidden_size: int = 256
    keypoint_encoder_sizes: tuple[int, ...] = (32, 64, 128, 256)
    gnn_layers_types: tuple[str, ...] = KINDS * 9
    num_attention_heads: int = 4
    sinkhorn_iterations: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class SuperGlueConfig(Config):
    detector: Tower
    settings: SuperGlueSettings
    matching_threshold: float = 0.0

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SuperGlueConfig:
        settings = SuperGlueSettings.from_dict(data)
        unknown = [kind for kind in settings.gnn_layers_types if kind not in KINDS]
        if unknown:
            raise CheckpointError(f"config.json: gnn_layers_types holds {unknown[0]!r:.40}; a layer is self or cross")
        threshold = data.get("matching_threshold", 0.0)
        if isinstance(threshold, bool) or not isinstance(threshold, int | float):
            raise CheckpointError(f"config.json: matching_threshold is {threshold!r:.40}, which is no number")
        detector = tower(data, "keypoint_detector_config", "superpoint")
        part = detector.family.parts.get(DETECTOR)
        if part is None:
            raise UnsupportedModel(
                f"config.json: {detector.family.title} as a detector is not supported; it finds no keypoints"
            )
        width = _described(part.signature(detector.config)).axes[1]
        if width != settings.hidden_size:
            raise CheckpointError(
                f"config.json: hidden_size is {settings.hidden_size}, but the detector's descriptors have {width} "
                "channels; they are one"
            )
        return cls(detector=detector, settings=settings, matching_threshold=float(threshold))

    @property
    def num_hidden_layers(self) -> int:
        return len(self.settings.gnn_layers_types)

    @property
    def part(self) -> Part:
        """How the detector is built."""
        return self.detector.family.parts[DETECTOR]

    @property
    def selection(self) -> Mapping[str, Mapping[str, Any]]:
        """The steps of the detector, which choose its keypoints."""
        (task,) = (task for task in self.detector.family.tasks if task.name == "keypoint-detection")
        return task.steps(self.detector.config)


def _described(signature: Signature) -> Port:
    """The detector's map of descriptors."""
    port = signature.output("descriptors")
    assert port is not None
    return port


class Detector(nn.Module):
    """The detector of both pictures of a pair."""

    def __init__(self, c: SuperGlueConfig) -> None:
        super().__init__()
        self.inner = c.part.build(c.detector.config)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Pairs (B, 2, 3, H, W) -> what the detector gives of each picture, with the axes (B, 2) in front."""
        maps = self.inner(pixel_values.flatten(0, 1))
        return tuple(x.unflatten(0, (-1, 2)) for x in maps)


class NormedLinear(nn.Module):
    """A linear layer with batch normalization and ReLU.

    Bias and mean are one shift, so that two passes over the values are one.
    """

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        self.linear, self.norm = Linear(before, channels), FrozenBatchNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(..., before) -> (..., channels)."""
        scale = self.norm.weight / torch.sqrt(self.norm.var + self.norm.eps)
        shift = self.norm.bias + (self.linear.bias - self.norm.mean) * scale
        return F.relu(F.linear(x, self.linear.weight) * scale + shift)


class PlaceEncoder(nn.Module):
    """Place and score of a keypoint as channels."""

    def __init__(self, sizes: tuple[int, ...], dim: int) -> None:
        super().__init__()
        before = (3, *sizes)
        self.layers = nn.ModuleList(NormedLinear(a, b) for a, b in zip(before, sizes, strict=False))
        self.out = Linear(before[-1], dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., 3) -> (..., C)."""
        for layer in self.layers:
            x = layer(x)
        y: Tensor = self.out(x)
        return y


class Layer(nn.Module):
    """Attention to the keypoints of the same picture, or of the other one, and an MLP over it and what was before."""

    def __init__(self, dim: int, heads: Heads, crosses: bool) -> None:
        super().__init__()
        self.crosses = crosses
        self.attn = PairAttention(dim, heads, bias=True, out_bias=True)
        self.up, self.down = NormedLinear(2 * dim, 2 * dim), Linear(2 * dim, dim)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Keypoints of pairs (B, 2, N, C), and the bias that hides padding (B, 2, 1, 1, N) -> (B, 2, N, C)."""
        y = self.attn(x, _other(x), _other(bias)) if self.crosses else self.attn(x, x, bias)
        z: Tensor = self.down(self.up(torch.cat((x, y), -1)))
        return x + z


def _other(x: Tensor) -> Tensor:
    """What belongs to the other picture of the pair, (B, 2, ...) -> (B, 2, ...)."""
    return torch.stack((x[:, 1], x[:, 0]), 1)


class PairAttention(Projections):
    """Attention of each picture of a pair to keypoints of a picture."""

    def forward(self, x: Tensor, source: Tensor, bias: Tensor) -> Tensor:
        """Shapes: x and source (B, 2, N, C), bias (B, 2, 1, 1, N) -> (B, 2, N, C)."""
        q, k, v, hides = (y.flatten(0, 1) for y in (self.q(x), self.k(source), self.v(source), bias))
        out: Tensor = self.out(attend(q, k, v, hides, self.heads).unflatten(0, (-1, 2)))
        return out


class Transport(nn.Module):
    """Which keypoint goes to which, or to the dustbin of what has no match."""

    def __init__(self, iterations: int) -> None:
        super().__init__()
        self.dustbin = nn.Parameter(torch.zeros(()))
        self.iterations = iterations

    def forward(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Scores (B, N, N) in float32 and mask (B, 2, N) -> masses (B, N, N).

        As many slots as the longer picture has count, one at least; each has the mass 1, the dustbin that of all.
        """
        slots = mask.sum(2).amax(1, keepdim=True).clamp(min=1)
        counted = (torch.ones_like(mask[:, 0]).cumsum(1) <= slots).float()
        masses = torch.cat((counted, slots.float()), 1)
        y: Tensor = ops.transport(scores, self.dustbin.float(), masses, masses, self.iterations)
        return y


class Matcher(nn.Module):
    """Layers over the keypoints of both pictures, and the transport between them."""

    def __init__(self, c: SuperGlueConfig) -> None:
        super().__init__()
        s = c.settings
        heads = Heads(s.num_attention_heads, s.num_attention_heads, head_size(s.hidden_size, s.num_attention_heads))
        self.place_embed = PlaceEncoder(s.keypoint_encoder_sizes, s.hidden_size)
        self.layers = nn.ModuleList(Layer(s.hidden_size, heads, kind == "cross") for kind in s.gnn_layers_types)
        self.out = Linear(s.hidden_size, s.hidden_size)
        self.transport = Transport(s.sinkhorn_iterations)
        self.width = s.hidden_size

    def forward(self, keypoints: Tensor, scores: Tensor, descriptors: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Keypoints of pairs, as `centre_keypoints` gives them, with score and descriptor -> their assignment.

        Pictures of a pair with fewer keypoints than the other's are padded. What a batch pads besides changes nothing:
        it has no mass. Shapes: keypoints (B, 2, N, 2), scores (B, 2, N), descriptors (B, 2, N, C), mask (B, 2, N) ->
        assignment (B, N, N), of the first picture's keypoints to the second's, from 0 to 1.
        """
        x = descriptors + self.place_embed(torch.cat((keypoints, scores.unsqueeze(-1)), -1))
        bias = ((1 - mask.to(x.dtype)) * hidden(x.dtype)).unsqueeze(2).unsqueeze(2)
        for layer in self.layers:
            x = layer(x, bias)
        ends = self.out(x)
        first, second = ends[:, 0].float(), ends[:, 1].float()
        found = first @ second.transpose(1, 2) / self.width**0.5
        seen = (mask[:, 0].unsqueeze(2) != 0) & (mask[:, 1].unsqueeze(1) != 0)
        found = found.masked_fill(~seen, torch.finfo(torch.float32).min)
        return (self.transport(found, mask).to(x.dtype),)


def detector_signature(c: SuperGlueConfig) -> Signature:
    """The detector's, of pairs."""
    inner = c.part.signature(c.detector.config)

    def paired(ports: tuple[Port, ...]) -> tuple[Port, ...]:
        return tuple(replace(port, axes=(BATCH, 2, *port.axes[1:])) for port in ports)

    return Signature(paired(inner.inputs), paired(inner.outputs), units=inner.units)


def matcher_signature(c: SuperGlueConfig) -> Signature:
    return Signature(
        (
            Port("keypoints", "float", (BATCH, 2, KEYPOINTS, 2), "points"),
            Port("scores", "float", (BATCH, 2, KEYPOINTS), "scores"),
            Port("descriptors", "float", (BATCH, 2, KEYPOINTS, c.settings.hidden_size)),
            Port("mask", "int64", (BATCH, 2, KEYPOINTS), "mask"),
        ),
        (Port("assignment", "float", (BATCH, KEYPOINTS, KEYPOINTS), "scores"),),
    )


RULES: tuple[Rule, ...] = (
    Rename("keypoint_encoder.encoder.*.linear", "place_embed.layers.*.linear"),
    *batch_norm("keypoint_encoder.encoder.*.batch_norm", "place_embed.layers.*.norm"),
    Rename("gnn.layers.*.attention.self.query", "layers.*.attn.q"),
    Rename("gnn.layers.*.attention.self.key", "layers.*.attn.k"),
    Rename("gnn.layers.*.attention.self.value", "layers.*.attn.v"),
    Rename("gnn.layers.*.attention.output.dense", "layers.*.attn.out"),
    Rename("gnn.layers.*.mlp.0.linear", "layers.*.up.linear"),
    *batch_norm("gnn.layers.*.mlp.0.batch_norm", "layers.*.up.norm"),
    Rename("gnn.layers.*.mlp.1", "layers.*.down"),
    Rename("final_projection.final_proj", "out"),
    Rename("bin_score", "transport.dustbin"),
)

FAMILY = Family(
    name="superglue",
    title="SuperGlue",
    model_types=("superglue",),
    config=SuperGlueConfig,
    rules=below(RULES, "", "matcher"),
    towers=lambda c: (
        Rename(f"keypoint_encoder.encoder.{len(c.settings.keypoint_encoder_sizes)}", "matcher.place_embed.out"),
        *below(c.detector.rules, DETECTOR, "detector"),
    ),
    tasks=(
        Task(
            name="keypoint-matching",
            architectures=("SuperGlueForKeypointMatching",),
            parts={
                "keypoint_detector": Part(build=Detector, signature=detector_signature, roots={"inner": "detector"}),
                "matcher": Part(build=Matcher, signature=matcher_signature),
            },
            steps=lambda c: {
                **c.selection,
                "centre_keypoints": {"spread": SPREAD},
                "match_keypoints": {"threshold": c.matching_threshold},
            },
        ),
    ),
    prefix="superglue",
    no_gguf="llama.cpp has no architecture that matches keypoints",
)
