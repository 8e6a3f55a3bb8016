"""CLIP's vision tower alone, as a model of its own and as a part of others.

Radford et al. 2021, https://arxiv.org/abs/2103.00020.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isoform.reference.card import Family, States, Task
from isoform.reference.modules.layers import Embedding
from isoform.reference.multimodal.towers import VISION_RULES, VisionConfig, layers
from isoform.reference.rules import Rename, Rule, aliases, below
from isoform.reference.vision.patches import PatchEmbed, grid, layers_before, left_out, pixels
from isoform.signature import BATCH, Port, Signature


class ClipVision(nn.Module):
    """Pictures (B, channels, H, W) -> the last states (B, 1 + patches, C) and that of the class token, normed (B, C).

    `state`: only the states after a layer, as `layers_before` counts.
    """

    def __init__(self, c: VisionConfig, state: int | None = None) -> None:
        super().__init__()
        rows, columns = grid(c.image_size, c.patch_size)
        self.class_token = nn.Parameter(torch.zeros(c.hidden_size))
        self.patch_embed = PatchEmbed(c.num_channels, c.hidden_size, c.patch_size, bias=False)
        self.position_embed = Embedding(1 + rows * columns, c.hidden_size)
        self.embed_norm = nn.LayerNorm(c.hidden_size, c.layer_norm_eps)
        self.layers = layers(c, None if state is None else layers_before(state, c.num_hidden_layers))
        self.norm = nn.LayerNorm(c.hidden_size, c.layer_norm_eps) if state is None else None

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        x = self.patch_embed(pixel_values)
        x = torch.cat((self.class_token.expand(x.shape[0], 1, -1), x), 1) + self.position_embed.weight
        x = self.embed_norm(x)
        for layer in self.layers:
            x = layer(x)
        return (x,) if self.norm is None else (x, self.norm(x[:, 0]))


def _shape(c: VisionConfig) -> tuple[int, int]:
    rows, columns = grid(c.image_size, c.patch_size)
    return 1 + rows * columns, c.hidden_size


def _signature(c: VisionConfig) -> Signature:
    states = Port("last_hidden_state", "float", (BATCH, *_shape(c)))
    pooled = Port("pooler_output", "float", (BATCH, c.hidden_size))
    return Signature((pixels(c.num_channels, c.image_size),), (states, pooled))


TOWER: tuple[Rule, ...] = (
    *VISION_RULES,
    Rename("embeddings.class_embedding", "class_token"),
    Rename("pre_layrnorm", "embed_norm"),
)

FAMILY = Family(
    name="clip_vision",
    title="CLIP's vision tower",
    model_types=("clip_vision_model",),
    config=VisionConfig,
    rules=(*below(TOWER, "vision_model", ""), *aliases(TOWER)),  # transformers 5 writes no prefix
    tasks=(
        Task(
            name="image-feature-extraction",
            architectures=("CLIPVisionModel",),
            build=ClipVision,
            signature=_signature,
        ),
    ),
    states=States(
        build=ClipVision,
        pixels=lambda c: pixels(c.num_channels, c.image_size),
        shape=_shape,
        special=1,
        left_out=lambda c, state: left_out(state, c.num_hidden_layers, "norm"),
    ),
    prefix="",
    no_gguf="llama.cpp reads CLIP's vision tower only as part of a language model (mmproj)",
)
