"""LayoutLMv3: a post-norm encoder over the words of a page, where each of them stands, and patches of its picture.

Huang et al. 2022, https://arxiv.org/abs/2204.08387. A token adds up its word, its place in the text and six lookups of
its box; behind the tokens come a class token and the patches of a small picture of the page. All layers share a bias
by distance: in the text, and from left edge to left edge and bottom to bottom. The picture may be left out.

CogView's softmax (Ding et al. 2021, https://arxiv.org/abs/2105.13290), of scores that are divided by 32, reduced by
their maximum and multiplied again, is the softmax: it keeps half precision from overflowing, which `ops.attention` does
in its own way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from isoform.errors import CheckpointError
from isoform.reference.card import Family, Task
from isoform.reference.config import Config, where, with_labels
from isoform.reference.modules.encoder import DeepClassifier, EncoderLayer, encoder_layer
from isoform.reference.modules.layers import Embedding, Linear, first_token, head_size, padding_bias, true_positions
from isoform.reference.modules.relative import DistanceTable, two_sided_buckets
from isoform.reference.rules import Drop, Rename, Rule, Tail
from isoform.reference.text.bidirectional import layer_rules
from isoform.reference.vision.patches import PatchEmbed, grid, pixels
from isoform.signature import BATCH, DOCUMENT, LENGTH, PICTURES, Axis, Port, Signature, Size

EDGE = 1000
"""Boxes are in thousandths of the page."""
LONGEST_SIDE = 1023
"""A box that is higher or wider counts as of this height or width, whatever config.json says."""
SHALLOW = 10
"""A head with fewer labels for tokens is one layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutLMv3Config(Config):
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {"is_causal": (False, None), "text_embed": (True, None)}
    harmless: ClassVar[frozenset[str]] = frozenset(("second_input_size",))  # of the original code's training

    vocab_size: int = 50265
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-5
    pad_token_id: int = 1
    max_2d_position_embeddings: int = 1024
    coordinate_size: int = 128
    shape_size: int = 128
    has_relative_attention_bias: bool = True
    rel_pos_bins: int = 32
    max_rel_pos: int = 128
    has_spatial_attention_bias: bool = True
    rel_2d_pos_bins: int = 64
    max_rel_2d_pos: int = 256
    visual_embed: bool = True
    input_size: int = 224
    num_channels: int = 3
    patch_size: int = 16
    num_labels: int = 2

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayoutLMv3Config:
        """Raises CheckpointError where widths or sizes do not fit together."""
        file, path = where(data, "pad_token_id")
        if data.get("pad_token_id", 1) is None:
            raise CheckpointError(f"{file}: {path} is null, but the positions of this family begin after it")
        c = super(LayoutLMv3Config, cls).from_dict(with_labels(data))
        if c.first_position >= c.max_position_embeddings:
            raise CheckpointError(
                f"{file}: {path} {c.pad_token_id} leaves no positions of max_position_embeddings "
                f"{c.max_position_embeddings}"
            )
        if (width := 4 * c.coordinate_size + 2 * c.shape_size) != c.hidden_size:
            raise CheckpointError(
                f"{file}: four lookups of coordinate_size {c.coordinate_size} and two of shape_size {c.shape_size} are "
                f"{width} channels, not hidden_size {c.hidden_size}"
            )
        if c.max_2d_position_embeddings <= EDGE:
            raise CheckpointError(
                f"{file}: max_2d_position_embeddings {c.max_2d_position_embeddings} has no row for the edge of a page, "
                f"at {EDGE}"
            )
        for bins, far in (("rel_pos_bins", "max_rel_pos"), ("rel_2d_pos_bins", "max_rel_2d_pos")):
            if getattr(c, bins) < 4 or getattr(c, far) <= getattr(c, bins) // 4:
                raise CheckpointError(
                    f"{file}: {getattr(c, bins)} {bins} for distances up to {far} {getattr(c, far)} make no sense"
                )
        return c

    @property
    def first_position(self) -> int:
        """The row of the first token in the stored table of positions."""
        return self.pad_token_id + 1

    @property
    def context(self) -> int:
        return self.max_position_embeddings - self.first_position

    @property
    def picture(self) -> int | None:
        return self.input_size if self.visual_embed else None


class Layout(nn.Module):
    """Where a token stands, as six lookups beside each other: left, top, right, bottom, height, width."""

    def __init__(self, c: LayoutLMv3Config) -> None:
        super().__init__()
        rows = c.max_2d_position_embeddings
        self.x, self.y = Embedding(rows, c.coordinate_size), Embedding(rows, c.coordinate_size)
        self.height, self.width = Embedding(rows, c.shape_size), Embedding(rows, c.shape_size)

    def forward(self, bbox: Tensor) -> Tensor:
        """Shapes: bbox (B, T, 4) of left, top, right, bottom -> (B, T, C)."""
        left, top, right, bottom = bbox.unbind(-1)
        high, wide = (bottom - top).clamp(0, LONGEST_SIDE), (right - left).clamp(0, LONGEST_SIDE)
        corners = self.x(left), self.y(top), self.x(right), self.y(bottom)
        return torch.cat((*corners, self.height(high), self.width(wide)), -1)


class Vision(nn.Module):
    """Pictures (P, channels, H, W) to a class token and patches, (P, 1 + patches, C)."""

    def __init__(self, c: LayoutLMv3Config) -> None:
        super().__init__()
        rows, columns = grid(c.input_size, c.patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, c.hidden_size))
        self.position_embed = nn.Parameter(torch.zeros(1, 1 + rows * columns, c.hidden_size))
        self.patch_embed = PatchEmbed(c.num_channels, c.hidden_size, c.patch_size)
        self.norm = nn.LayerNorm(c.hidden_size, 1e-6)  # not layer_norm_eps

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.patch_embed(pixel_values)
        x = torch.cat((self.class_token.expand(x.shape[0], -1, -1), x), 1) + self.position_embed
        y: Tensor = self.norm(x)
        return y


class DistanceBias(nn.Module):
    """What each head adds to a score by the bucket of a distance; weight (heads, buckets), as the Hub stores it."""

    def __init__(self, heads: int, count: int, farthest: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, count))
        self.buckets = DistanceTable(two_sided_buckets(count, farthest))

    def forward(self, places: Tensor, scale: float) -> Tensor:
        """For key minus query, times `scale`: places (B, S), whole numbers -> (B, S, S, heads)."""
        far = self.buckets.far
        by_distance = nn.functional.embedding(self.buckets.numbers, self.weight.transpose(0, 1)) * scale
        distances = (places.unsqueeze(1) - places.unsqueeze(2)).clamp(-far, far) + far
        return nn.functional.embedding(distances, by_distance)


class Slots(NamedTuple):
    """What stands where: a mask (B, S) of those that are no padding, places in the text, boxes (B, S, 4)."""

    mask: Tensor
    places: Tensor
    boxes: Tensor


class LayoutLMv3(nn.Module):
    """The encoder with one head: "none", "token", "sequence" or "span"."""

    patch_boxes: Tensor
    patch_places: Tensor

    def __init__(self, c: LayoutLMv3Config, head: str) -> None:
        if head == "span" and c.num_labels != 2:
            raise CheckpointError(
                f"config.json: {c.num_labels} labels, but a head that answers questions has 2: where an answer begins "
                "and where it ends"
            )
        super().__init__()
        dim, eps, heads = c.hidden_size, c.layer_norm_eps, c.num_attention_heads
        self.embed = Embedding(c.vocab_size, dim)
        self.position_embed = Embedding(c.context, dim)
        self.type_embed = Embedding(c.type_vocab_size, dim)
        self.layout = Layout(c)
        self.embed_norm = nn.LayerNorm(dim, eps)
        self.sees, self.typed = c.visual_embed, c.type_vocab_size > 1
        if self.sees:
            self.vision = Vision(c)
            self.joint_norm = nn.LayerNorm(dim, eps)
            boxes = patch_boxes(*grid(c.input_size, c.patch_size))
            self.register_buffer("patch_boxes", boxes, persistent=False)
            self.register_buffer("patch_places", torch.arange(len(boxes), device="cpu"), persistent=False)
        self.relative = c.has_relative_attention_bias
        self.spatial = c.has_relative_attention_bias and c.has_spatial_attention_bias
        if self.relative:
            self.distance = DistanceBias(heads, c.rel_pos_bins, c.max_rel_pos)
        if self.spatial:
            self.x_distance = DistanceBias(heads, c.rel_2d_pos_bins, c.max_rel_2d_pos)
            self.y_distance = DistanceBias(heads, c.rel_2d_pos_bins, c.max_rel_2d_pos)
        sizes = dim, heads, head_size(dim, heads), c.intermediate_size
        self.scale = sizes[2] ** -0.5
        layers: list[EncoderLayer] = [encoder_layer(*sizes, c.hidden_act, eps) for _ in range(c.num_hidden_layers)]
        self.layers = nn.ModuleList(layers)
        self.kind = head
        if head == "token" and c.num_labels < SHALLOW:
            self.classifier: nn.Module = Linear(dim, c.num_labels)
        elif head in ("token", "sequence"):
            self.classifier = DeepClassifier(dim, c.num_labels, "tanh")
        elif head == "span":
            self.qa = DeepClassifier(dim, c.num_labels, "tanh")

    def forward(self, input_ids: Tensor, bbox: Tensor, attention_mask: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """Shapes: input_ids and attention_mask (B, T), bbox (B, T, 4); then the tokens' types (B, T), where there are
        several, and pixel_values (B or 0, channels, H, W), where the model sees.

        Returns, S being the tokens and behind them the patches, if any: the last hidden state (B, S, C), logits (B, T,
        labels) or (B, labels), or start and end logits (B, S) each.
        """
        types = others[0] if self.typed else torch.zeros_like(input_ids)
        places = true_positions(attention_mask)  # so that padding on the left changes nothing
        x = self.embed(input_ids) + self.type_embed(types) + self.position_embed(places) + self.layout(bbox)
        x, slots = self.embed_norm(x), Slots(attention_mask, places, bbox)
        if self.sees:
            x, slots = self._with_patches(x, slots, others[-1])
        bias = padding_bias(slots.mask, x.dtype)
        if self.relative:
            bias = bias + self._by_distance(slots)
        for layer in self.layers:
            x = layer(x, bias)
        return self._answer(x, attention_mask)

    def _with_patches(self, x: Tensor, slots: Slots, pixel_values: Tensor) -> tuple[Tensor, Slots]:
        """The states and slots with those of the patches behind, and the norm that only states with patches go through.

        Without pictures the batch axis of `pixel_values` is 0, and so are the patches of a row.
        """
        patches, count, rows = self.vision(pixel_values), pixel_values.shape[0], x.shape[0]
        real = torch.ones_like(self.patch_places).expand(count, -1).reshape(rows, -1)
        places = self.patch_places.expand(count, -1).reshape(rows, -1)
        boxes = self.patch_boxes.expand(count, -1, -1).reshape(rows, -1, 4)
        joined = torch.cat((x, patches.reshape(rows, -1, x.shape[-1])), 1)
        mask = torch.cat((slots.mask, real), 1)
        seen = (mask.cumsum(1)[:, -1:] != slots.mask.cumsum(1)[:, -1:]).unsqueeze(-1)
        x = torch.where(seen, self.joint_norm(joined), joined)
        return x, Slots(mask, torch.cat((slots.places, places), 1), torch.cat((slots.boxes, boxes), 1))

    def _by_distance(self, slots: Slots) -> Tensor:
        """The bias (B, heads, S, S) of all layers."""
        bias = self.distance(slots.places, self.scale)
        if self.spatial:
            bias = bias + self.x_distance(slots.boxes[..., 0], self.scale)
            bias = bias + self.y_distance(slots.boxes[..., 3], self.scale)
        return bias.permute(0, 3, 1, 2)

    def _answer(self, x: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        if self.kind == "token":
            return (self.classifier(x[:, : attention_mask.shape[1]]),)
        if self.kind == "sequence":
            return (self.classifier(first_token(x, attention_mask)),)
        if self.kind == "span":
            start, end = self.qa(x).unbind(-1)
            return start, end
        return (x,)


def patch_boxes(rows: int, columns: int) -> Tensor:
    """The boxes of the class token and of the patches, int64 (1 + rows * columns, 4); the class token's is the page's
    without its edge."""
    down, across = (torch.arange(n + 1, device="cpu") * EDGE // n for n in (rows, columns))
    left, top = across[:-1].repeat(rows), down[:-1].repeat_interleave(columns)
    right, bottom = across[1:].repeat(rows), down[1:].repeat_interleave(columns)
    page = torch.tensor([[1, 1, EDGE - 1, EDGE - 1]], device="cpu")
    return torch.cat((page, torch.stack((left, top, right, bottom), -1)))


def signature(c: LayoutLMv3Config, outputs: Mapping[str, tuple[Axis, ...]]) -> Signature:
    """Tokens with boxes, and a picture for each row, or none at all: then the batch axis of `pixel_values` is 0."""
    inputs = [Port("input_ids", "int64", (BATCH, LENGTH)), Port("bbox", "int64", (BATCH, LENGTH, 4))]
    inputs.append(Port("attention_mask", "int64", (BATCH, LENGTH)))
    if c.type_vocab_size > 1:
        inputs.append(Port("token_type_ids", "int64", (BATCH, LENGTH)))
    sizes: tuple[Size, ...] = ()
    if c.visual_embed:
        inputs.append(pixels(c.num_channels, c.input_size, PICTURES))
        sizes = (Size(PICTURES, (BATCH,), optional=True),)
    return Signature(
        tuple(inputs), tuple(Port(name, "float", (BATCH, *axes)) for name, axes in outputs.items()), sizes=sizes
    )


def task(kind: str, name: str, suffix: str, outputs: Callable[[LayoutLMv3Config], dict[str, tuple[Axis, ...]]]) -> Task:
    return Task(
        name=name,
        architectures=(f"LayoutLMv3{suffix}",),
        build=lambda c: LayoutLMv3(c, kind),
        signature=lambda c: signature(c, outputs(c)),
        carried=unread,
        facts=lambda c: {"context": c.context},
    )


def unread(c: LayoutLMv3Config) -> tuple[str, ...]:
    """The biases by distance on the page, which nothing adds where there is none by distance in the text."""
    return ("x_distance", "y_distance") if not c.has_relative_attention_bias else ()


def slots_of(c: LayoutLMv3Config) -> str:
    """The axis of the states: patches lie behind the tokens where the model sees."""
    return DOCUMENT if c.visual_embed else LENGTH


RULES: tuple[Rule, ...] = (
    Rename("layoutlmv3.embeddings.word_embeddings", "embed"),
    Tail("layoutlmv3.embeddings.position_embeddings", "position_embed", lambda c: c.first_position),
    Rename("layoutlmv3.embeddings.token_type_embeddings", "type_embed"),
    Rename("layoutlmv3.embeddings.x_position_embeddings", "layout.x"),
    Rename("layoutlmv3.embeddings.y_position_embeddings", "layout.y"),
    Rename("layoutlmv3.embeddings.h_position_embeddings", "layout.height"),
    Rename("layoutlmv3.embeddings.w_position_embeddings", "layout.width"),
    Rename("layoutlmv3.embeddings.LayerNorm", "embed_norm"),
    Rename("layoutlmv3.patch_embed.proj", "vision.patch_embed"),
    Rename("layoutlmv3.cls_token", "vision.class_token"),
    Rename("layoutlmv3.pos_embed", "vision.position_embed"),
    Rename("layoutlmv3.norm", "vision.norm"),
    Rename("layoutlmv3.LayerNorm", "joint_norm"),
    Rename("layoutlmv3.encoder.rel_pos_bias", "distance"),
    Rename("layoutlmv3.encoder.rel_pos_x_bias", "x_distance"),
    Rename("layoutlmv3.encoder.rel_pos_y_bias", "y_distance"),
    *layer_rules("layoutlmv3"),
    Rename("classifier.dense", "classifier.dense"),
    Rename("classifier.out_proj", "classifier.out"),
    Rename("classifier", "classifier"),
    Rename("qa_outputs.dense", "qa.dense"),
    Rename("qa_outputs.out_proj", "qa.out"),
    Drop("layoutlmv3.embeddings.position_ids"),  # 0, 1, 2, ... in files of transformers before 4.31
)

FAMILY = Family(
    name="layoutlmv3",
    title="LayoutLMv3",
    model_types=("layoutlmv3",),
    config=LayoutLMv3Config,
    rules=RULES,
    tasks=(
        task(
            "span",
            "document-question-answering",
            "ForQuestionAnswering",
            lambda c: {"start_logits": (slots_of(c),), "end_logits": (slots_of(c),)},
        ),
        task("token", "token-classification", "ForTokenClassification", lambda c: {"logits": (LENGTH, c.num_labels)}),
        task("sequence", "text-classification", "ForSequenceClassification", lambda c: {"logits": (c.num_labels,)}),
        task("none", "feature-extraction", "Model", lambda c: {"last_hidden_state": (slots_of(c), c.hidden_size)}),
    ),
    prefix="layoutlmv3",
    heads=("classifier", "qa"),
    no_gguf="llama.cpp has no LayoutLMv3: none of its encoders reads boxes",
)
