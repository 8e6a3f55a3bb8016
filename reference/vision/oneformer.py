"""OneFormer: one model for semantic, instance and panoptic segmentation, which a text names ("the task is panoptic").

Jain et al. 2022, https://arxiv.org/abs/2211.06220. The queries of a mask transformer begin as a token of the task. A
backbone gives maps by its model_type; the encoder of the texts of a training is carried and not built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import log2
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.card import Family, Task
from isoform.reference.config import Config, section, with_labels
from isoform.reference.families import Tower
from isoform.reference.modules.layers import MLP, Embedding, Linear
from isoform.reference.rules import Rename, Rule, below
from isoform.reference.vision import pixel_decoder
from isoform.reference.vision.convolutions import Conv
from isoform.reference.vision.maps import sequence, sine_positions
from isoform.reference.vision.mask_decoder import LEVELS, Between, MaskDecoder, apart, merged
from isoform.reference.vision.pixel_decoder import PixelDecoder
from isoform.reference.vision.pyramids import backbone, backbone_rules, pyramid_of
from isoform.signature import BATCH, Port, Signature

ROWS, COLUMNS = "mask_height", "mask_width"


@dataclass(frozen=True, slots=True, kw_only=True)
class OneFormerSettings(Config):
    """The keys beside the backbone that are read with their types."""

    reads = frozenset(("backbone_config",))
    harmless = frozenset(
        (
            *("class_weight", "contrastive_temperature", "contrastive_weight", "dice_weight", "ignore_value"),
            *("importance_sample_ratio", "init_std", "init_xavier_std", "is_training", "mask_weight"),
            *("no_object_weight", "oversample_ratio", "train_num_points"),  # of a training
            *("output_auxiliary_logits", "use_auxiliary_loss"),  # outputs that no graph here gives
            *("text_encoder_context_length", "text_encoder_n_ctx", "text_encoder_num_layers"),
            *("text_encoder_proj_layers", "text_encoder_width"),  # the encoder of a training's texts
            "max_seq_len",
        )
    )
    only = {  # noqa: RUF012
        "backbone": (None,),
        "backbone_kwargs": (None, {}),
        "use_pretrained_backbone": (False, None),
        "use_timm_backbone": (False, None),
        "norm": ("GN",),
        "enforce_input_proj": (False,),  # the Hub's code does not store what it would need
    }

    num_queries: int = 150
    layer_norm_eps: float = 1e-5
    strides: tuple[int, ...] = (4, 8, 16, 32)
    task_seq_len: int = 77
    text_encoder_vocab_size: int = 49408
    conv_dim: int = 256
    mask_dim: int = 256
    hidden_dim: int = 256
    encoder_feedforward_dim: int = 1024
    encoder_layers: int = 6
    decoder_layers: int = 10
    use_task_norm: bool = True
    num_attention_heads: int = 8
    dim_feedforward: int = 2048
    pre_norm: bool = False
    query_dec_layers: int = 2
    common_stride: int = 4
    num_labels: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class OneFormerConfig(OneFormerSettings):
    tower: Tower

    @property
    def num_hidden_layers(self) -> int:
        return self.decoder_layers

    @property
    def vocabulary(self) -> int | None:
        return self.text_encoder_vocab_size

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
        return int(log2(min(self.strides[-LEVELS:])) - log2(self.common_stride))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> OneFormerConfig:
        if section(data, "backbone_config").get("model_type") in ("dinat", "nat"):
            raise UnsupportedModel(
                "OneFormer with a DiNAT backbone is not supported: the attention of DiNAT to neighbours is a kernel of "
                "NATTEN without a form in plain torch; take a checkpoint with a Swin backbone"
            )
        found = section(data, "backbone_config")
        if found.get("model_type", "swin") == "swin" and not {"out_features", "out_indices"} & found.keys():
            found = {**found, "out_features": ["stage1", "stage2", "stage3", "stage4"]}
        tower = backbone({**data, "backbone_config": found}, "backbone_config", "swin")
        settings = OneFormerSettings.from_dict(with_labels(data))
        config = cls(tower=tower, **{spec.name: getattr(settings, spec.name) for spec in fields(settings)})
        if not config.conv_dim == config.mask_dim == config.hidden_dim:
            raise CheckpointError(
                f"config.json: conv_dim is {config.conv_dim}, mask_dim {config.mask_dim} and hidden_dim "
                f"{config.hidden_dim}; the Hub's code computes with equal ones alone"
            )
        if (
            config.decoder_layers < 2
            or config.query_dec_layers < 1
            or config.num_queries < 2
            or config.common_stride < 1
        ):
            raise CheckpointError(
                "config.json: decoder_layers and num_queries are 2 or more, query_dec_layers 1 or more"
            )
        return config


class TaskToken(nn.Module):
    """Token ids of the task's text, as numbers, through two layers.

    In float32 or wider: ids go beyond what a half holds.
    """

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.up, self.down = Linear(length, dim), Linear(dim, dim)

    def forward(self, ids: Tensor, like: Tensor) -> Tensor:
        """(B, length) -> (B, 1, C) in float32 or wider; `like` has the dtype of the model."""
        wide = torch.promote_types(like.dtype, torch.float32)
        up, down = ((layer.weight.to(wide), layer.bias.to(wide)) for layer in (self.up, self.down))
        return F.linear(F.relu(F.linear(ids.to(wide), *up)), *down).unsqueeze(1)


class QueryLayer(nn.Module):
    """Attention of the queries to each other and to a map, and an MLP; norms after each, or with `pre_norm` before."""

    def __init__(self, c: OneFormerConfig) -> None:
        super().__init__()
        dim, heads, eps = c.hidden_dim, c.num_attention_heads, c.layer_norm_eps
        self.pre_norm = c.pre_norm
        self.attn, self.attn_norm = Between(dim, heads), nn.LayerNorm(dim, eps)
        self.cross, self.cross_norm = Between(dim, heads), nn.LayerNorm(dim, eps)
        self.mlp, self.mlp_norm = MLP(dim, c.dim_feedforward, "relu"), nn.LayerNorm(dim, eps)

    def forward(self, x: Tensor, places: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Shapes: x and places (B, Q, C), key and value (B, S, C) -> (B, Q, C)."""
        if self.pre_norm:
            y = self.attn_norm(x)
            x = x + self.attn.between(y + places, y + places, y)
            x = x + self.cross.between(self.cross_norm(x) + places, key, value)
            return x + self.mlp(self.mlp_norm(x))
        x = self.attn_norm(x + self.attn.between(x + places, x + places, x))
        x = self.cross_norm(x + self.cross.between(x + places, key, value))
        z: Tensor = self.mlp_norm(x + self.mlp(x))
        return z


class Queries(nn.Module):
    """The queries that a task begins with: copies of its token that have looked at the finest map.

    As the Hub's code has it, what they take are the positions of that map, and its features are what they compare.
    """

    def __init__(self, c: OneFormerConfig) -> None:
        super().__init__()
        self.dim = c.hidden_dim
        self.layers = nn.ModuleList(QueryLayer(c) for _ in range(c.query_dec_layers))
        self.norm = nn.LayerNorm(c.hidden_dim, c.layer_norm_eps)
        self.project = Conv(c.mask_dim, c.hidden_dim, 1)

    def forward(self, x: Tensor, places: Tensor, fine: Tensor) -> Tensor:
        """Shapes: x (B, Q - 1, C), places (1, Q - 1, C), fine (B, mask_dim, H, W) -> (B, Q - 1, C)."""
        value = sine_positions(fine, self.dim)
        key = value + sequence(self.project(fine))
        value = value.expand(x.shape[0], -1, -1)
        for layer in self.layers:
            x = layer(x, places, key, value)
        y: Tensor = self.norm(x)
        return y


class OneFormer(nn.Module):
    """Pictures and the tokens of a task to scores of classes and masks, one of each per query."""

    def __init__(self, c: OneFormerConfig) -> None:
        super().__init__()
        dim, pyramid = c.hidden_dim, pyramid_of(c.tower)
        self.dim, self.count, self.normed = dim, c.num_queries, c.use_task_norm
        self.backbone = pyramid.build(c.tower.config, c.stages)
        self.pixels = PixelDecoder(
            pyramid.channels(c.tower.config, c.stages),
            c.conv_dim,
            c.mask_dim,
            heads=c.num_attention_heads,
            hidden=c.encoder_feedforward_dim,
            layers=c.encoder_layers,
            finer=c.finer,
            eps=c.layer_norm_eps,
        )
        self.task = TaskToken(c.task_seq_len, dim)
        self.places, self.level_embed = Embedding(c.num_queries, dim), Embedding(LEVELS, dim)
        self.queries = Queries(c)
        self.decoder = MaskDecoder(
            dim,
            c.mask_dim,
            c.num_labels,
            layers=c.decoder_layers - 1,
            heads=c.num_attention_heads,
            inner=c.dim_feedforward,
            act="relu",
            eps=c.layer_norm_eps,
            pre_norm=c.pre_norm,
        )

    def forward(self, pixel_values: Tensor, task_inputs: Tensor) -> tuple[Tensor, ...]:
        """Pictures (B, channels, H, W) and token ids (B, length of a task).

        Returns scores of classes (B, Q, labels + 1) and mask logits (B, Q, H / 4, W / 4), rounded up.
        """
        maps, fine = self.pixels(self.backbone(pixel_values))
        task = self._task(task_inputs, fine)
        places = self.places.weight.unsqueeze(0)
        start = task if self.normed else torch.zeros_like(task)
        x = self.queries(start.expand(-1, self.count - 1, -1), places[:, :-1], fine)
        x = torch.cat((x, task), 1)
        values = [sequence(y) + self.level_embed.weight[n] for n, y in enumerate(maps)]
        pairs = [(value + sine_positions(y, self.dim), value) for value, y in zip(values, maps, strict=True)]
        found: tuple[Tensor, ...] = self.decoder(x, places, pairs, maps, fine)
        return found

    def _task(self, ids: Tensor, like: Tensor) -> Tensor:
        """The task's token (B, 1, C) in the dtype of `like`."""
        task: Tensor = self.task(ids, like)
        if self.normed:
            norm = self.decoder.norm
            weight, bias = norm.weight.to(task.dtype), norm.bias.to(task.dtype)
            task = F.layer_norm(task, (self.dim,), weight, bias, norm.eps)
        return task.to(like.dtype)


def signature(c: OneFormerConfig) -> Signature:
    inner = c.tower.family.tasks[-1].signature
    given = pyramid_of(c.tower).pixels(c.tower.config)
    of_tower = None if inner is None else inner(c.tower.config)
    return Signature(
        (given, Port("task_inputs", "int64", (BATCH, c.task_seq_len), "task")),
        (
            Port("class_queries_logits", "float", (BATCH, c.num_queries, c.num_labels + 1), "scores"),
            Port("masks_queries_logits", "float", (BATCH, c.num_queries, ROWS, COLUMNS), "masks"),
        ),
        units=of_tower.units if of_tower else {},
        traced=of_tower.traced if of_tower else {},
    )


_TEXT: tuple[Rule, ...] = (
    Rename("text_encoder.positional_embedding", "position_embed"),
    Rename("text_encoder.token_embedding", "embed"),
    Rename("text_encoder.ln_final", "norm"),
    *below(
        (
            *merged("self_attn", "attn"),
            Rename("layer_norm1", "attn_norm"),
            Rename("layer_norm2", "mlp_norm"),
            Rename("mlp.fc1", "mlp.up"),
            Rename("mlp.fc2", "mlp.down"),
        ),
        "text_encoder.transformer.layers.*",
        "layers.*",
    ),
    Rename("text_projector.layers.*.0", "project.*"),
    Rename("prompt_ctx", "context"),
)
_QUERIES: tuple[Rule, ...] = (
    *below(
        (
            *merged("self_attn", "attn"),
            *merged("multihead_attn", "cross"),
            Rename("linear1", "mlp.up"),
            Rename("linear2", "mlp.down"),
            Rename("norm1", "attn_norm"),
            Rename("norm2", "cross_norm"),
            Rename("norm3", "mlp_norm"),
        ),
        "query_transformer.decoder.layers.*",
        "layers.*",
    ),
    Rename("query_transformer.decoder.norm", "norm"),
    Rename("query_input_projection", "project"),
)
_DECODER: tuple[Rule, ...] = (
    *below(
        (
            *merged("cross_attn.multihead_attn", "cross"),
            Rename("cross_attn.norm", "cross_norm"),
            *apart("self_attn.self_attn", "attn"),
            Rename("self_attn.norm", "attn_norm"),
            Rename("ffn.linear1", "mlp.up"),
            Rename("ffn.linear2", "mlp.down"),
            Rename("ffn.norm", "mlp_norm"),
        ),
        "layers.*",
        "layers.*",
    ),
    Rename("decoder_norm", "norm"),
    Rename("class_embed", "classifier"),
    Rename("mask_embed.layers.*.0", "mask.layers.*"),
)
RULES: tuple[Rule, ...] = (
    *below(pixel_decoder.RULES, "model.pixel_level_module.decoder", "pixels"),
    *below(_QUERIES, "model.transformer_module.decoder", "queries"),
    *below(_DECODER, "model.transformer_module.decoder", "decoder"),
    Rename("model.transformer_module.queries_embedder", "places"),
    Rename("model.transformer_module.level_embed", "level_embed"),
    Rename("model.task_encoder.task_mlp.layers.0.0", "task.up"),
    Rename("model.task_encoder.task_mlp.layers.1.0", "task.down"),
    # Of a training: the encoder of its texts, and what its loss stores.
    *below(_TEXT, "model.text_mapper", "text"),
    Rename("criterion.empty_weight", "loss.weights"),
    Rename("criterion.logit_scale", "loss.scale"),
)

FAMILY = Family(
    name="oneformer",
    title="OneFormer",
    model_types=("oneformer",),
    config=OneFormerConfig,
    rules=RULES,
    towers=lambda c: (
        *below(backbone_rules(c.tower, ("layernorm",)), "model.pixel_level_module.encoder", "backbone"),
        *below(pixel_decoder.finer_rules(c.finer), "model.pixel_level_module.decoder", "pixels"),
    ),
    tasks=(
        Task(
            name="image-segmentation",
            architectures=("OneFormerForUniversalSegmentation",),
            build=OneFormer,
            signature=signature,
            carried=lambda c: (
                *("loss", "text"),
                *(f"backbone.{name}" for name in pyramid_of(c.tower).left_out(c.tower.config, c.stages)),
            ),
        ),
    ),
    prefix="oneformer",
    heads=("loss", "text"),
    no_gguf="llama.cpp has no architecture that segments pictures",
)
