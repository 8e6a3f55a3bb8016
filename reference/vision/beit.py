"""BEiT: a vision transformer with a learned number per head and relative position added to the scores.

Bao et al. 2021, https://arxiv.org/abs/2106.08254. The numbers are of each layer, or shared by all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoform.errors import CheckpointError
from isoform.reference.card import Family, Task
from isoform.reference.config import Config, where, with_labels
from isoform.reference.modules.layers import MLP, Linear
from isoform.reference.rules import Drop, Rename, Rule
from isoform.reference.vision.patches import Layer, PatchEmbed, grid, pixels
from isoform.signature import BATCH, Port, Signature

if TYPE_CHECKING:
    from isoform.reference.checkpoints.checkpoint import Checkpoint

ENDS = 3  # numbers besides those of distances: from the class token, to it, and from it to itself


@dataclass(frozen=True, slots=True, kw_only=True)
class BeitConfig(Config):
    """`scaled`: layers multiply what they add (LayerScale), where its initial value is above 0.

    `pooled`: the checkpoint holds the norm of the mean; one that was pre-trained does not.
    """

    reads = frozenset(("layer_scale_init_value",))
    harmless = frozenset(
        (
            *(
                "add_fpn",
                "out_features",
                "out_indices",
                "reshape_hidden_states",
                "segmentation_indices",
            ),  # a backbone's
            *("auxiliary_channels", "auxiliary_concat_input", "auxiliary_loss_weight", "auxiliary_num_convs"),
            *("pool_scales", "semantic_loss_ignore_index", "stage_names", "use_auxiliary_head"),  # of segmentation
            *("use_mask_token", "vocab_size"),  # of masked pictures
        )
    )

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    use_absolute_position_embeddings: bool = False
    use_relative_position_bias: bool = False
    use_shared_relative_position_bias: bool = False
    use_mean_pooling: bool = True
    num_labels: int = 2
    scaled: bool = True
    pooled: bool = True

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BeitConfig:
        initial = data.get("layer_scale_init_value", 0.1)
        if isinstance(initial, bool) or not isinstance(initial, int | float):
            file, path = where(data, "layer_scale_init_value")
            raise CheckpointError(f"{file}: {path} is {initial!r:.60}, which is no number")
        config = replace(super(BeitConfig, cls).from_dict(with_labels(data)), scaled=initial > 0)
        grid(config.image_size, config.patch_size)
        return config

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> BeitConfig:
        config = cls.from_dict(checkpoint.config)
        held = any(key.endswith("pooler.layernorm.weight") for key in checkpoint)
        return replace(config, pooled=held or not config.use_mean_pooling)

    @property
    def side(self) -> int:
        """Rows, and columns, of patches."""
        return grid(self.image_size, self.patch_size)[0]

    @property
    def vocabulary(self) -> None:
        """There are no texts: `vocab_size` counts visual tokens, which only pre-training knows."""


class Distances(nn.Module):
    """A number per head for each distance of two patches in rows and columns, and for the class token."""

    offsets: Tensor

    def __init__(self, side: int, heads: int) -> None:
        super().__init__()
        count = (2 * side - 1) ** 2
        self.table = nn.Parameter(torch.zeros(count + ENDS, heads))
        places = torch.arange(side, device="cpu")
        steps = places.unsqueeze(1) - places.unsqueeze(0) + side - 1  # (from, to)
        rows, columns = steps.view(side, 1, side, 1), steps.view(1, side, 1, side)
        patches = (rows * (2 * side - 1) + columns).reshape(side * side, side * side)
        offsets = torch.full((side * side + 1,) * 2, count + 1, device="cpu")
        offsets[0], offsets[0, 0], offsets[1:, 1:] = count, count + 2, patches
        self.register_buffer("offsets", offsets, persistent=False)

    def forward(self) -> Tensor:
        """(1, heads, 1 + patches, 1 + patches)."""
        return F.embedding(self.offsets, self.table).permute(2, 0, 1).unsqueeze(0)


class Beit(nn.Module):
    """The trunk; `classifies`: with a linear layer on the normed mean of the patches, or on the class token."""

    def __init__(self, c: BeitConfig, classifies: bool) -> None:
        super().__init__()
        dim, heads = c.hidden_size, c.num_attention_heads
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.patch_embed = PatchEmbed(c.num_channels, dim, c.patch_size)
        self.placed = c.use_absolute_position_embeddings
        if self.placed:
            self.position_embed = nn.Parameter(torch.zeros(1, 1 + c.side**2, dim))
        self.layers = nn.ModuleList(
            Layer(
                dim,
                heads,
                MLP(dim, c.intermediate_size, c.hidden_act),
                c.layer_norm_eps,
                k_bias=False,
                scaled=c.scaled,
            )
            for _ in range(c.num_hidden_layers)
        )
        self.shared = Distances(c.side, heads) if c.use_shared_relative_position_bias else None
        own = c.num_hidden_layers if c.use_relative_position_bias else 0
        self.distances = nn.ModuleList(Distances(c.side, heads) for _ in range(own))
        self.averaged, self.classifies = c.use_mean_pooling, classifies
        self.norm = None if self.averaged else nn.LayerNorm(dim, c.layer_norm_eps)
        self.pools = classifies or c.pooled
        if self.averaged and self.pools:
            self.pooled_norm = nn.LayerNorm(dim, c.layer_norm_eps)
        if classifies:
            self.classifier = Linear(dim, c.num_labels)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Pictures (B, channels, H, W) -> the last hidden state (B, 1 + patches, C) and its mean or first token (B, C),
        or logits (B, labels)."""
        x = self.patch_embed(pixel_values)
        x = torch.cat((self.class_token.expand(x.shape[0], -1, -1), x), 1)
        if self.placed:
            x = x + self.position_embed
        for n, layer in enumerate(self.layers):
            found = ([self.shared] if self.shared is not None else []) + list(self.distances[n : n + 1])
            biases = [distances() for distances in found]
            x = layer(x, None if not biases else biases[0] if len(biases) == 1 else biases[0] + biases[1])
        if self.norm is not None:
            x = self.norm(x)
        if not self.pools:
            return (x,)
        pooled = self.pooled_norm(x[:, 1:].mean(1)) if self.averaged else x[:, 0]
        return (self.classifier(pooled),) if self.classifies else (x, pooled)


def _features(c: BeitConfig) -> Signature:
    outputs = [Port("last_hidden_state", "float", (BATCH, 1 + c.side**2, c.hidden_size))]
    if c.pooled:
        outputs.append(Port("pooler_output", "float", (BATCH, c.hidden_size)))
    return Signature((pixels(c.num_channels, c.image_size),), tuple(outputs))


BIAS = "attention.attention.relative_position_bias"
RULES: tuple[Rule, ...] = (
    Rename("beit.embeddings.cls_token", "class_token"),
    Rename("beit.embeddings.position_embeddings", "position_embed"),
    Rename("beit.embeddings.patch_embeddings.projection", "patch_embed"),
    Rename("beit.embeddings.mask_token", "mask.token"),
    Rename("beit.encoder.relative_position_bias.relative_position_bias_table", "shared.table"),
    Drop("beit.encoder.relative_position_bias.relative_position_index"),  # follows from the size of a picture
    Rename(f"beit.encoder.layer.*.{BIAS}.relative_position_bias_table", "distances.*.table"),
    Drop(f"beit.encoder.layer.*.{BIAS}.relative_position_index"),
    Rename("beit.encoder.layer.*.layernorm_before", "layers.*.attn_norm"),
    Rename("beit.encoder.layer.*.attention.attention.query", "layers.*.attn.q"),
    Rename("beit.encoder.layer.*.attention.attention.key", "layers.*.attn.k"),
    Rename("beit.encoder.layer.*.attention.attention.value", "layers.*.attn.v"),
    Rename("beit.encoder.layer.*.attention.output.dense", "layers.*.attn.out"),
    Rename("beit.encoder.layer.*.lambda_1", "layers.*.attn_scale"),
    Rename("beit.encoder.layer.*.layernorm_after", "layers.*.mlp_norm"),
    Rename("beit.encoder.layer.*.intermediate.dense", "layers.*.mlp.up"),
    Rename("beit.encoder.layer.*.output.dense", "layers.*.mlp.down"),
    Rename("beit.encoder.layer.*.lambda_2", "layers.*.mlp_scale"),
    Rename("beit.layernorm", "norm"),
    Rename("beit.pooler.layernorm", "pooled_norm"),
    Rename("classifier", "classifier"),
)

FAMILY = Family(
    name="beit",
    title="BEiT",
    model_types=("beit",),
    config=BeitConfig,
    rules=RULES,
    tasks=(
        Task(
            name="image-classification",
            architectures=("BeitForImageClassification",),
            build=lambda c: Beit(c, True),
            signature=lambda c: Signature(
                (pixels(c.num_channels, c.image_size),), (Port("logits", "float", (BATCH, c.num_labels)),)
            ),
            carried=("mask",),
        ),
        Task(
            name="image-feature-extraction",
            architectures=("BeitModel",),
            build=lambda c: Beit(c, False),
            signature=_features,
            carried=("mask",),
        ),
    ),
    prefix="beit",
    heads=("classifier", "mask", "pooled_norm"),
    no_gguf="llama.cpp has no BEiT",
)
