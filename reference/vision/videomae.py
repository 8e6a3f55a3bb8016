"""VideoMAE: a vision transformer over tubelets, patches that span a few frames, at fixed positions.

Tong et al. 2022, https://arxiv.org/abs/2203.12602. It was pre-trained to draw the tubelets that were hidden from it,
with a small decoder: that is the task "pretraining". A classifier reads the mean of all tubelets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoform.errors import CheckpointError
from isoform.reference.card import Family, Task
from isoform.reference.config import Config, where, with_labels
from isoform.reference.modules.layers import MLP, Linear
from isoform.reference.rules import Rename, Rule, below
from isoform.reference.vision.patches import Layer, grid, pair
from isoform.signature import BATCH, Port, Signature

VISIBLE, MASKED = "visible_tubelets", "masked_tubelets"
HEAD_EPS = 1e-5  # the Hub's code has it as a constant


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoMAEConfig(Config):
    harmless = frozenset(("norm_pix_loss",))
    aliases: ClassVar[Mapping[str, str]] = {"qkv_bias": "qv_bias"}

    image_size: int | tuple[int, ...] = 224
    patch_size: int | tuple[int, ...] = 16
    num_channels: int = 3
    num_frames: int = 16
    tubelet_size: int = 2
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    qv_bias: bool = True
    use_mean_pooling: bool = True
    decoder_num_attention_heads: int = 6
    decoder_hidden_size: int = 384
    decoder_num_hidden_layers: int = 4
    decoder_intermediate_size: int = 1536
    num_labels: int = 2

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> VideoMAEConfig:
        config = super(VideoMAEConfig, cls).from_dict(with_labels(data))
        grid(config.image_size, config.patch_size)
        if config.num_frames < config.tubelet_size:
            file, path = where(data, "num_frames")
            raise CheckpointError(
                f"{file}: {path} is {config.num_frames}, which holds no tubelet of {config.tubelet_size} frames"
            )
        return config

    @property
    def tubelets(self) -> int:
        """How many a video has."""
        rows, columns = grid(self.image_size, self.patch_size)
        return self.num_frames // self.tubelet_size * rows * columns

    @property
    def values(self) -> int:
        """Of a tubelet, pixels times channels."""
        down, across = pair("patch_size", self.patch_size)
        return self.tubelet_size * down * across * self.num_channels


def sinusoids(count: int, dim: int) -> Tensor:
    """Fixed positions (1, count, dim): sines and cosines in turn, of frequencies that fall from 1 to 1/10000.

    Vaswani et al. 2017, https://arxiv.org/abs/1706.03762. Computed in float64.
    """
    channels = torch.arange(dim, dtype=torch.float64, device="cpu")
    places = torch.arange(count, dtype=torch.float64, device="cpu")
    angles = places.unsqueeze(1) / 10000 ** (2 * (channels // 2) / dim)
    return torch.where(channels % 2 == 0, angles.sin(), angles.cos()).float().unsqueeze(0)


class Tubelets(nn.Conv3d):
    """Frames (B, T, channels, H, W) to tubelets (B, times * rows * columns, C); what is left over is not seen."""

    def __init__(self, c: VideoMAEConfig) -> None:
        size = (c.tubelet_size, *pair("patch_size", c.patch_size))
        super().__init__(c.num_channels, c.hidden_size, size, size)

    def reset_parameters(self) -> None:
        """The weights come from a checkpoint."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).flatten(2).transpose(1, 2)


class Encoder(nn.Module):
    """Tubelets with their positions and the layers; a norm at the end where nothing is averaged."""

    positions: Tensor

    def __init__(self, c: VideoMAEConfig) -> None:
        super().__init__()
        self.patch_embed = Tubelets(c)
        self.register_buffer("positions", sinusoids(c.tubelets, c.hidden_size), persistent=False)
        self.layers = _layers(c, c.num_hidden_layers, c.hidden_size, c.num_attention_heads, c.intermediate_size)
        self.norm = None if c.use_mean_pooling else nn.LayerNorm(c.hidden_size, c.layer_norm_eps)

    def forward(self, pixel_values: Tensor, visible: Tensor | None = None) -> Tensor:
        """Frames (B, T, channels, H, W) -> (B, tubelets, C), of the `visible` ones (B, V) alone where given."""
        x = self.patch_embed(pixel_values)
        x = x + self.positions.to(x.dtype)
        if visible is not None:
            x = x.gather(1, visible.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        for layer in self.layers:
            x = layer(x)
        return x if self.norm is None else self.norm(x)


class Features(nn.Module):
    """The encoder alone."""

    def __init__(self, c: VideoMAEConfig) -> None:
        super().__init__()
        self.encoder = Encoder(c)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        """Frames (B, T, channels, H, W) -> (B, tubelets, C)."""
        return (self.encoder(pixel_values),)


class Classifier(nn.Module):
    """A linear layer on the mean of all tubelets, normed, or on the first one."""

    def __init__(self, c: VideoMAEConfig) -> None:
        super().__init__()
        self.encoder = Encoder(c)
        self.pooled_norm = nn.LayerNorm(c.hidden_size, HEAD_EPS) if c.use_mean_pooling else None
        self.classifier = Linear(c.hidden_size, c.num_labels)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        """Frames (B, T, channels, H, W) -> logits (B, labels)."""
        x = self.encoder(pixel_values)
        pooled = x[:, 0] if self.pooled_norm is None else self.pooled_norm(x.mean(1))
        return (self.classifier(pooled),)


class PreTraining(nn.Module):
    """The encoder reads the visible tubelets, the decoder draws the masked ones."""

    decoder_positions: Tensor

    def __init__(self, c: VideoMAEConfig) -> None:
        super().__init__()
        dim = c.decoder_hidden_size
        self.encoder, self.narrow = Encoder(c), Linear(c.hidden_size, dim, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("decoder_positions", sinusoids(c.tubelets, dim), persistent=False)
        self.layers = _layers(
            c, c.decoder_num_hidden_layers, dim, c.decoder_num_attention_heads, c.decoder_intermediate_size
        )
        self.norm, self.head = nn.LayerNorm(dim, HEAD_EPS), Linear(dim, c.values)

    def forward(self, pixel_values: Tensor, visible_positions: Tensor, masked_positions: Tensor) -> tuple[Tensor]:
        """Frames (B, T, channels, H, W), positions (B, V) and (B, M) -> the masked tubelets' pixels (B, M, values)."""
        x = self.narrow(self.encoder(pixel_values, visible_positions))
        places = self.decoder_positions[0].to(x.dtype)
        seen, hidden = (F.embedding(chosen, places) for chosen in (visible_positions, masked_positions))
        count = x.shape[1]
        x = torch.cat((x + seen, self.mask_token + hidden), 1)
        for layer in self.layers:
            x = layer(x)
        return (self.head(self.norm(x[:, count:])),)


def _layers(c: VideoMAEConfig, count: int, dim: int, heads: int, hidden: int) -> nn.ModuleList:
    """Pre-norm layers; keys never have a bias."""

    def layer() -> Layer:
        mlp = MLP(dim, hidden, c.hidden_act)
        return Layer(dim, heads, mlp, c.layer_norm_eps, bias=c.qv_bias, k_bias=False)

    return nn.ModuleList(layer() for _ in range(count))


def _video(c: VideoMAEConfig) -> Port:
    size = pair("image_size", c.image_size)
    return Port("pixel_values", "float", (BATCH, c.num_frames, c.num_channels, *size), "video")


def _pretraining(c: VideoMAEConfig) -> Signature:
    return Signature(
        (
            _video(c),
            Port("visible_positions", "int64", (BATCH, VISIBLE), "choice"),
            Port("masked_positions", "int64", (BATCH, MASKED), "choice"),
        ),
        (Port("logits", "float", (BATCH, MASKED, c.values), ""),),
    )


LAYERS: tuple[Rule, ...] = (
    Rename("layernorm_before", "attn_norm"),
    Rename("attention.attention.query.weight", "attn.q.weight"),
    Rename("attention.attention.key.weight", "attn.k.weight"),
    Rename("attention.attention.value.weight", "attn.v.weight"),
    Rename("attention.attention.q_bias", "attn.q.bias"),
    Rename("attention.attention.v_bias", "attn.v.bias"),
    Rename("attention.output.dense", "attn.out"),
    Rename("layernorm_after", "mlp_norm"),
    Rename("intermediate.dense", "mlp.up"),
    Rename("output.dense", "mlp.down"),
)
RULES: tuple[Rule, ...] = (
    Rename("videomae.embeddings.patch_embeddings.projection", "encoder.patch_embed"),
    *below(LAYERS, "videomae.encoder.layer.*", "encoder.layers.*"),
    Rename("videomae.layernorm", "encoder.norm"),
    Rename("fc_norm", "pooled_norm"),
    Rename("classifier", "classifier"),
    Rename("encoder_to_decoder", "narrow"),
    Rename("mask_token", "mask_token"),
    *below(LAYERS, "decoder.decoder_layers.*", "layers.*"),
    Rename("decoder.norm", "norm"),
    Rename("decoder.head", "head"),
)

FAMILY = Family(
    name="videomae",
    title="VideoMAE",
    model_types=("videomae",),
    config=VideoMAEConfig,
    rules=RULES,
    tasks=(
        Task(
            name="video-classification",
            architectures=("VideoMAEForVideoClassification",),
            build=Classifier,
            signature=lambda c: Signature((_video(c),), (Port("logits", "float", (BATCH, c.num_labels)),)),
        ),
        Task(
            name="pretraining",
            architectures=("VideoMAEForPreTraining",),
            build=PreTraining,
            signature=_pretraining,
            steps=lambda c: {"split_positions": {"positions": c.tubelets}},
            facts=lambda c: {"choices": dict.fromkeys(("visible_positions", "masked_positions"), c.tubelets)},
        ),
        Task(
            name="image-feature-extraction",
            architectures=("VideoMAEModel",),
            build=Features,
            signature=lambda c: Signature(
                (_video(c),), (Port("last_hidden_state", "float", (BATCH, c.tubelets, c.hidden_size)),)
            ),
        ),
    ),
    prefix="videomae",
    heads=("classifier", "pooled_norm", "narrow", "mask_token", "layers", "norm", "head"),
    no_gguf="llama.cpp has no architecture that reads videos",
)
