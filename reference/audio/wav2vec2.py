"""wav2vec 2.0: convolutions over the waveform, a convolution for positions, and a bidirectional transformer.

Baevski et al. 2020, https://arxiv.org/abs/2006.11477. The base models normalize each channel of the first convolution
over the whole recording and are post-norm; the large ones normalize every step of every convolution and are pre-norm
("stable"). Adapters for languages: Pratap et al. 2023, https://arxiv.org/abs/2305.13516.

A recording is padded on the right. The base models were trained without a mask of the padding, and their first norm
sees it: rows of different lengths cannot share a batch, and their signature has no `attention_mask`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.card import Family, Task
from isoform.reference.config import Config, with_labels
from isoform.reference.modules.attention import Attention, Heads
from isoform.reference.modules.layers import MLP, Linear, activation, head_size, padding_bias
from isoform.reference.rules import Rename, Rule, WeightNorm
from isoform.signature import BATCH, Axis, Port, Signature

SAMPLES, FRAMES = "samples", "frames"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wav2Vec2Config(Config):
    harmless = frozenset(
        (
            *("apply_spec_augment", "feat_extract_dropout", "feat_proj_dropout", "feat_quantizer_dropout"),
            *("final_dropout", "freeze_feat_extract_train", "mask_channel_length", "mask_channel_min_space"),
            *("mask_channel_other", "mask_channel_prob", "mask_channel_selection", "mask_feature_length"),
            *("mask_feature_min_masks", "mask_feature_prob", "mask_time_length", "mask_time_min_masks"),
            *("mask_time_min_space", "mask_time_other", "mask_time_prob", "mask_time_selection"),
            *("no_mask_channel_overlap", "no_mask_time_overlap"),  # the above: of training
            *("codevector_dim", "contrastive_logits_temperature", "ctc_loss_reduction", "ctc_zero_infinity"),
            *("diversity_loss_weight", "num_codevector_groups", "num_codevectors_per_group", "num_negatives"),
            "proj_codevector_dim",  # and the above: of losses
            *("tdnn_dilation", "tdnn_dim", "tdnn_kernel", "xvector_output_dim"),  # of a head that is not here
            "num_feat_extract_layers",  # conv_dim has one entry for each
        )
    )

    vocab_size: int | None = 32
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    feat_extract_norm: str = "group"
    feat_extract_activation: str = "gelu"
    conv_dim: tuple[int, ...] = (512, 512, 512, 512, 512, 512, 512)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_bias: bool = False
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    do_stable_layer_norm: bool = False
    use_weighted_layer_sum: bool = False
    classifier_proj_size: int = 256
    add_adapter: bool = False
    adapter_kernel_size: int = 3
    adapter_stride: int = 2
    num_adapter_layers: int = 3
    output_hidden_size: int | None = None
    adapter_attn_dim: int | None = None
    num_labels: int = 2

    @property
    def stride(self) -> int:
        """Samples from one frame to the next."""
        return prod(self.conv_stride)

    @property
    def field(self) -> int:
        """Samples that the convolutions read for one frame."""
        strides = self.conv_stride
        return 1 + sum((kernel - 1) * prod(strides[:n]) for n, kernel in enumerate(self.conv_kernel))

    @property
    def masked(self) -> bool:
        """Whether the model was trained with a mask of the padding, and gives a padded row what it gives it alone."""
        return self.feat_extract_norm == "layer"

    @property
    def width(self) -> int:
        """Channels of what comes out of the trunk."""
        return self.output_hidden_size or self.hidden_size if self.add_adapter else self.hidden_size

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Wav2Vec2Config:
        config = super(Wav2Vec2Config, cls).from_dict(with_labels(data))
        sizes = len(config.conv_dim), len(config.conv_stride), len(config.conv_kernel)
        if len(set(sizes)) > 1 or not sizes[0]:
            raise CheckpointError(
                "config.json: conv_dim, conv_stride and conv_kernel have {}, {} and {} entries; they need one for each "
                "convolution".format(*sizes)
            )
        if config.feat_extract_norm not in ("group", "layer"):
            raise UnsupportedModel(f"feat_extract_norm={config.feat_extract_norm!r} is not known; 'group' or 'layer'")
        return config


class Convolution(nn.Module):
    """One step of the feature extractor: convolution, norm ("group", "layer" or none), activation."""

    def __init__(self, channels: int, dim: int, kernel: int, stride: int, *, bias: bool, norm: str, act: str) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, dim, kernel, stride, bias=bias)
        if norm == "group":
            self.norm: nn.Module = nn.GroupNorm(dim, dim)
        elif norm == "layer":
            self.norm = nn.LayerNorm(dim)
        self.kind, self.act = norm, activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x (B, C, N) -> (B, dim, (N - kernel) // stride + 1)."""
        x = self.conv(x)
        if self.kind == "group":
            x = self.norm(x)
        elif self.kind == "layer":
            x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return self.act(x)


class PositionConvolution(nn.Conv1d):
    """Positions relative to the frames around; an even kernel gives one frame too many, which is cut off."""

    def __init__(self, dim: int, kernel: int, groups: int) -> None:
        super().__init__(dim, dim, kernel, padding=kernel // 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x (B, T, C) -> (B, T, C)."""
        y = super().forward(x.transpose(1, 2))
        return (y[:, :, :-1] if self.kernel_size[0] % 2 == 0 else y).transpose(1, 2)


class LanguageAdapter(nn.Module):
    """What a language adds to the states of a layer."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(dim), Linear(dim, hidden), Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(torch.relu(self.up(self.norm(x))))
        return y


class Layer(nn.Module):
    """Attention and MLP, each with its norm: before it ("stable"), or after the sum with what went in."""

    def __init__(self, c: Wav2Vec2Config) -> None:
        super().__init__()
        dim, heads = c.hidden_size, c.num_attention_heads
        self.attn = Attention(dim, Heads(heads, heads, head_size(dim, heads)), bias=True, out_bias=True)
        self.attn_norm = nn.LayerNorm(dim, c.layer_norm_eps)
        self.mlp = MLP(dim, c.intermediate_size, c.hidden_act)
        self.mlp_norm = nn.LayerNorm(dim, c.layer_norm_eps)
        self.stable = c.do_stable_layer_norm
        self.adapted = self.stable and c.adapter_attn_dim is not None
        if self.adapted:
            self.adapter = LanguageAdapter(dim, c.adapter_attn_dim or 0)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Shapes: x (B, T, C), bias (B, 1, 1, T) -> (B, T, C)."""
        if not self.stable:
            x = self.attn_norm(x + self.attn(x, bias))
            y: Tensor = self.mlp_norm(x + self.mlp(x))
            return y
        x = x + self.attn(self.attn_norm(x), bias)
        x = x + self.mlp(self.mlp_norm(x))
        return x + self.adapter(x) if self.adapted else x


class Adapter(nn.Module):
    """Shortens the sequence after the trunk, by convolutions with a gate."""

    def __init__(self, c: Wav2Vec2Config) -> None:
        super().__init__()
        self.projected = c.width != c.hidden_size
        if self.projected:
            self.proj, self.norm = Linear(c.hidden_size, c.width), nn.LayerNorm(c.width)
        self.width, self.stride = c.width, c.adapter_stride
        self.layers = nn.ModuleList(
            nn.Conv1d(c.width, 2 * c.width, c.adapter_kernel_size, c.adapter_stride, padding=1)
            for _ in range(c.num_adapter_layers)
        )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Shapes: x (B, T, C), mask (B, T) -> (B, T', width). Padding stays 0, as the end of a row alone is padded."""
        x = self.norm(self.proj(x)) if self.projected else x
        for conv in self.layers:
            if mask is not None:
                x = x * mask.unsqueeze(-1).to(x.dtype)
                mask = mask[:, :: self.stride]
            x = conv(x.transpose(1, 2)).transpose(1, 2)
            x = x[..., : self.width] * torch.sigmoid(x[..., self.width :])
        return x


class LayerSum(nn.Module):
    """The states before the first layer and after each, mixed by learned shares."""

    def __init__(self, states: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(states))

    def forward(self, states: list[Tensor]) -> Tensor:
        """Shapes: (B, T, C) each -> (B, T, C)."""
        shares = torch.softmax(self.weights, -1)
        return (torch.stack(states, 1) * shares.unsqueeze(-1).unsqueeze(-1)).sum(1)


class Wav2Vec2(nn.Module):
    """The trunk with one head: "none", "ctc" or "sequence"."""

    def __init__(self, c: Wav2Vec2Config, head: str) -> None:
        super().__init__()
        if c.add_adapter and head == "sequence":
            raise UnsupportedModel("a classifier over an adapter (add_adapter) does not exist; open it for CTC")
        dim = c.hidden_size
        norms = ["layer" if c.masked else "none" for _ in c.conv_dim]
        norms[0] = c.feat_extract_norm
        self.features = nn.ModuleList(
            Convolution(channels, size, kernel, stride, bias=c.conv_bias, norm=norm, act=c.feat_extract_activation)
            for channels, size, kernel, stride, norm in zip(
                (1, *c.conv_dim), c.conv_dim, c.conv_kernel, c.conv_stride, norms, strict=False
            )
        )
        self.projection_norm = nn.LayerNorm(c.conv_dim[-1], c.layer_norm_eps)
        self.projection = Linear(c.conv_dim[-1], dim)
        self.position_conv = PositionConvolution(dim, c.num_conv_pos_embeddings, c.num_conv_pos_embedding_groups)
        self.position_act = activation(c.feat_extract_activation)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers))
        self.adapter = Adapter(c) if c.add_adapter else None
        self.kind, self.stable, self.first, self.stride = head, c.do_stable_layer_norm, c.field - 1, c.stride
        self.weighted = c.use_weighted_layer_sum and head == "sequence"
        if not (self.stable and self.weighted):  # such a sum is of the layers' outputs, none of them normalized
            self.norm = nn.LayerNorm(dim, c.layer_norm_eps)
        if self.weighted:
            self.layer_sum = LayerSum(c.num_hidden_layers + 1)
        if head == "ctc":
            if c.vocab_size is None:
                raise CheckpointError("config.json: vocab_size is null; a CTC head needs the number of its characters")
            self.head = Linear(c.width, c.vocab_size)
        elif head == "sequence":
            self.projector = Linear(dim, c.classifier_proj_size)
            self.classifier = Linear(c.classifier_proj_size, c.num_labels)

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Shapes: input_values (B, N), attention_mask (B, N) with 0 for padding on the right; omitted: no padding.

        Returns logits (B, T, V) or (B, labels), or the last hidden state (B, T, C).
        """
        x = input_values.unsqueeze(1)
        for convolution in self.features:
            x = convolution(x)
        x = self.projection(self.projection_norm(x.transpose(1, 2)))
        mask = bias = None
        if attention_mask is not None:  # a frame is real where the last sample that it reads is
            mask = attention_mask[:, self.first :: self.stride]
            x = x * mask.unsqueeze(-1).to(x.dtype)
            bias = padding_bias(mask, x.dtype)
        x = x + self.position_act(self.position_conv(x))
        x = x if self.stable else self.norm(x)
        states = [x]
        for layer in self.layers:
            x = layer(x, bias)
            states.append(x)
        x = self.norm(x) if self.stable and not self.weighted else x
        if self.adapter is not None:
            x = self.adapter(x, mask)
        if self.kind == "ctc":
            return (self.head(x),)
        if self.kind == "sequence":
            return (self.classify(states if self.weighted else [x], mask),)
        return (x,)

    def classify(self, states: list[Tensor], mask: Tensor | None) -> Tensor:
        """States (B, T, C), summed by learned weights if there are several; mean over the frames -> (B, labels)."""
        x = self.projector(self.layer_sum(states) if self.weighted else states[0])
        if mask is None:
            pooled = x.mean(1)
        else:
            seen = mask.unsqueeze(-1).to(x.dtype)
            pooled = (x * seen).sum(1) / seen.sum(1).clamp(min=1)
        y: Tensor = self.classifier(pooled)
        return y


def _signature(output: str, axes: Callable[[Wav2Vec2Config], tuple[Axis, ...]]) -> Callable[[Any], Signature]:
    def signature(c: Wav2Vec2Config) -> Signature:
        inputs = [Port("input_values", "float", (BATCH, SAMPLES))]
        if c.masked:
            inputs.append(Port("attention_mask", "int64", (BATCH, SAMPLES)))
        return Signature(tuple(inputs), (Port(output, "float", (BATCH, *axes(c))),), units={SAMPLES: c.field})

    return signature


RULES: tuple[Rule, ...] = (
    Rename("wav2vec2.feature_extractor.conv_layers.*.conv", "features.*.conv"),
    Rename("wav2vec2.feature_extractor.conv_layers.*.layer_norm", "features.*.norm"),
    Rename("wav2vec2.feature_projection.layer_norm", "projection_norm"),
    Rename("wav2vec2.feature_projection.projection", "projection"),
    WeightNorm("wav2vec2.encoder.pos_conv_embed.conv", "position_conv", 2),
    Rename("wav2vec2.encoder.pos_conv_embed.conv", "position_conv"),
    Rename("wav2vec2.encoder.layer_norm", "norm"),
    Rename("wav2vec2.encoder.layers.*.attention.q_proj", "layers.*.attn.q"),
    Rename("wav2vec2.encoder.layers.*.attention.k_proj", "layers.*.attn.k"),
    Rename("wav2vec2.encoder.layers.*.attention.v_proj", "layers.*.attn.v"),
    Rename("wav2vec2.encoder.layers.*.attention.out_proj", "layers.*.attn.out"),
    Rename("wav2vec2.encoder.layers.*.layer_norm", "layers.*.attn_norm"),
    Rename("wav2vec2.encoder.layers.*.feed_forward.intermediate_dense", "layers.*.mlp.up"),
    Rename("wav2vec2.encoder.layers.*.feed_forward.output_dense", "layers.*.mlp.down"),
    Rename("wav2vec2.encoder.layers.*.final_layer_norm", "layers.*.mlp_norm"),
    Rename("wav2vec2.encoder.layers.*.adapter_layer.norm", "layers.*.adapter.norm"),
    Rename("wav2vec2.encoder.layers.*.adapter_layer.linear_1", "layers.*.adapter.up"),
    Rename("wav2vec2.encoder.layers.*.adapter_layer.linear_2", "layers.*.adapter.down"),
    Rename("wav2vec2.adapter.proj", "adapter.proj"),
    Rename("wav2vec2.adapter.proj_layer_norm", "adapter.norm"),
    Rename("wav2vec2.adapter.layers.*.conv", "adapter.layers.*"),
    Rename("lm_head", "head"),
    Rename("projector", "projector"),
    Rename("classifier", "classifier"),
    Rename("layer_weights", "layer_sum.weights"),
    # Of the training: what masked frames are replaced by, and the targets of the contrastive loss.
    Rename("wav2vec2.masked_spec_embed", "augmentation.mask"),
    Rename("quantizer.codevectors", "quantizer.codevectors"),
    Rename("quantizer.weight_proj", "quantizer.proj"),
    Rename("project_hid", "contrast.hidden"),
    Rename("project_q", "contrast.target"),
)


def frames(c: Wav2Vec2Config) -> dict[str, Any]:
    """The convolutions that make frames of samples, as [kernel, stride], and those that shorten the frames after it."""
    after = [[c.adapter_kernel_size, c.adapter_stride]] * c.num_adapter_layers if c.add_adapter else []
    convolutions = zip(c.conv_kernel, c.conv_stride, strict=True)
    return {"convolutions": [[kernel, stride] for kernel, stride in convolutions], "adapters": after}


FAMILY = Family(
    name="wav2vec2",
    title="wav2vec 2.0, MMS",
    model_types=("wav2vec2",),
    config=Wav2Vec2Config,
    rules=RULES,
    tasks=(
        Task(
            name="automatic-speech-recognition",
            architectures=("Wav2Vec2ForCTC",),
            build=lambda c: Wav2Vec2(c, "ctc"),
            signature=_signature("logits", lambda c: (FRAMES, c.vocab_size or 0)),
            carried=("augmentation",),
            facts=lambda c: {"reader": "characters", "frames": frames(c)},
        ),
        Task(
            name="audio-classification",
            architectures=("Wav2Vec2ForSequenceClassification",),
            build=lambda c: Wav2Vec2(c, "sequence"),
            signature=_signature("logits", lambda c: (c.num_labels,)),
            carried=("augmentation", "norm"),
            facts=lambda c: {"frames": frames(c)},
        ),
        Task(
            name="feature-extraction",
            architectures=("Wav2Vec2Model", "Wav2Vec2ForPreTraining"),
            build=lambda c: Wav2Vec2(c, "none"),
            signature=_signature("last_hidden_state", lambda c: (FRAMES, c.width)),
            carried=("augmentation",),
        ),
    ),
    prefix="wav2vec2",
    heads=("norm", "head", "projector", "classifier", "layer_sum", "augmentation", "quantizer", "contrast"),
    no_gguf="llama.cpp has no architecture for wav2vec 2.0",
)
