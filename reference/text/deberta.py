"""DeBERTa-v2 and v3: BERT's encoder whose attention scores add up contents and distances.

He et al. 2020, https://arxiv.org/abs/2006.03654, and 2021, https://arxiv.org/abs/2111.09543. Also serves mDeBERTa. The
table of distances belongs to the encoder; each layer projects it, with the matrices of its contents or its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.card import Family
from isoform.reference.config import Config, where, with_labels
from isoform.reference.modules.attention import Heads
from isoform.reference.modules.encoder import EncoderLayer, HeadPlan, Tables, TextEncoder
from isoform.reference.modules.layers import Embedding, Linear, activation, head_size, true_positions
from isoform.reference.modules.relative import Disentangled, DisentangledAttention, DistanceTable, log_buckets
from isoform.reference.rules import Drop, Rename, Rule
from isoform.reference.text.bidirectional import encoder_tasks

TERMS = ("c2p", "p2c")
LONGEST = 2**20
"""Distances that a table may be asked to number; the longest model of the Hub has 24,576."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DebertaConfig(Config):
    """`relative_span` distances have a row in the table, to each side."""

    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "is_causal": (False, None),
        "norm_rel_ebd": ("none", "layer_norm", None),
        "z_steps": (0, 1, None),
    }
    harmless: ClassVar[frozenset[str]] = frozenset({"cls_dropout", "pooler_dropout", "padding_idx"})

    vocab_size: int = 128100
    hidden_size: int = 1536
    embedding_size: int | None = None
    num_hidden_layers: int = 24
    num_attention_heads: int = 24
    attention_head_size: int | None = None
    intermediate_size: int = 6144
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 0
    layer_norm_eps: float = 1e-7
    relative_attention: bool = False
    max_relative_positions: int | None = None
    position_buckets: int | None = None
    position_biased_input: bool = True
    pos_att_type: tuple[str, ...] = ()
    share_att_key: bool = False
    norm_rel_ebd: str = "none"
    conv_kernel_size: int | None = None
    conv_groups: int = 1
    conv_act: str = "tanh"
    pooler_hidden_act: str = "gelu"
    pooler_hidden_size: int | None = None
    legacy: bool = True
    tie_word_embeddings: bool = True
    num_labels: int = 2

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DebertaConfig:
        """-1 means "not set", and the kinds of scores may be joined by "|"."""
        values = dict(with_labels(data))
        for key in ("max_relative_positions", "position_buckets"):
            if values.get(key) in (-1, 0):
                values[key] = None
        for key in ("type_vocab_size", "conv_kernel_size"):
            if values.get(key) == 0:
                values[key] = None
        values["type_vocab_size"] = values.get("type_vocab_size") or 0
        kinds = values.get("pos_att_type") or []
        if isinstance(kinds, str):
            values["pos_att_type"] = [kind.strip() for kind in kinds.lower().split("|") if kind.strip()]
        types = values.pop("type_vocab_size")
        found = super(DebertaConfig, cls).from_dict({**values, **({"type_vocab_size": types} if types else {})})
        file, path = where(data, "pos_att_type")
        if unknown := sorted(set(found.pos_att_type) - set(TERMS)):
            raise UnsupportedModel(f"{file}: {path} has {unknown[0]!r}; isoform knows {', '.join(TERMS)}")
        if found.pooler_hidden_size not in (None, found.hidden_size):
            raise UnsupportedModel(f"{file}: pooler_hidden_size {found.pooler_hidden_size} is not hidden_size")
        if found.attention_head_size not in (None, size := found.hidden_size // found.num_attention_heads):
            raise UnsupportedModel(
                f"{file}: attention_head_size {found.attention_head_size} is not hidden_size / heads, {size}"
            )
        if (found.conv_kernel_size or 1) % 2 == 0:
            raise CheckpointError(f"{file}: a convolution over {found.conv_kernel_size} positions has no middle")
        middle = (found.position_buckets or 4) // 2
        if middle < 2 or not middle < found.farthest - 1 < LONGEST:
            raise CheckpointError(
                f"{file}: {found.position_buckets} position_buckets for distances up to {found.farthest} make no sense"
            )
        return found

    @property
    def width(self) -> int:
        """Of the embeddings."""
        return self.embedding_size or self.hidden_size

    @property
    def farthest(self) -> int:
        """The distance at which the buckets end."""
        return self.max_relative_positions or self.max_position_embeddings

    @property
    def relative_span(self) -> int:
        return self.position_buckets or self.farthest

    @property
    def context(self) -> int | None:
        """Distances have no end: only a table of positions limits a text."""
        return self.max_position_embeddings if self.position_biased_input else None

    @property
    def kind(self) -> Disentangled:
        return Disentangled("c2p" in self.pos_att_type, "p2c" in self.pos_att_type, self.share_att_key)


class Convolution(nn.Module):
    """norm(y + act(convolution(x))) over the tokens alone: what the first layer's output y gets from its input x."""

    def __init__(self, c: DebertaConfig, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(c.hidden_size, c.hidden_size, kernel, padding=(kernel - 1) // 2, groups=c.conv_groups)
        self.norm = nn.LayerNorm(c.hidden_size, c.layer_norm_eps)
        self.act = activation(c.conv_act)

    def forward(self, x: Tensor, y: Tensor, kept: Tensor) -> Tensor:
        """Shapes: x and y (B, T, C), kept (B, T, 1) is 1 at a token and 0 at padding -> (B, T, C)."""
        mixed = self.conv(x.transpose(1, 2)).transpose(1, 2) * kept
        z: Tensor = self.norm(y + self.act(mixed)) * kept
        return z


class Deberta(TextEncoder):
    """The encoder with a head."""

    def __init__(self, c: DebertaConfig, head: str) -> None:
        dim, heads, eps = c.hidden_size, c.num_attention_heads, c.layer_norm_eps
        layout = Heads(heads, heads, head_size(dim, heads))
        super().__init__(
            Tables(
                vocab=c.vocab_size,
                positions=c.max_position_embeddings if c.position_biased_input else 0,
                types=c.type_vocab_size,
                width=c.width,
                dim=dim,
            ),
            [
                EncoderLayer(
                    DisentangledAttention(dim, layout, c.kind, c.relative_attention),
                    dim,
                    c.intermediate_size,
                    c.hidden_act,
                    eps,
                )
                for _ in range(c.num_hidden_layers)
            ],
            HeadPlan(kind=head, labels=c.num_labels, act=c.hidden_act, pooled_act=c.pooler_hidden_act),
            eps,
        )
        self.embed_norm = nn.LayerNorm(dim, eps)  # after the projection, unlike ELECTRA's
        self.project = Linear(c.width, dim, False) if c.width != dim else None
        self.relative = c.relative_attention
        if self.relative:
            self.distance_embed = Embedding(2 * c.relative_span, dim)
            self.distance_norm = nn.LayerNorm(dim, eps) if c.norm_rel_ebd == "layer_norm" else None
            self.buckets = DistanceTable(log_buckets(c.position_buckets or 0, c.farthest))
        self.conv = Convolution(c, c.conv_kernel_size) if c.conv_kernel_size else None
        self.plain_layers = self.conv is None

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """See `TextEncoder.forward`."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        positions = true_positions(attention_mask)
        x = self.embed(input_ids)
        if self.position_embed is not None:
            x = x + self.position_embed(positions)
        if self.type_embed is not None:
            x = x + self.type_embed(torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids)
        if self.project is not None:
            x = self.project(x)
        kept = attention_mask.to(x.dtype).unsqueeze(-1)
        x = self.embed_norm(x) * kept  # the convolution reads across the edge of a text
        context = self.context(attention_mask, positions, x.dtype)
        for n, layer in enumerate(self.layers):
            y = layer(x, *context)
            x = self.conv(x, y, kept) if n == 0 and self.conv is not None else y
        return self.answer(x, attention_mask)

    def context(self, attention_mask: Tensor, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The bias (B, 1, 1, T) that hides the padding, the table of distances, and which row each pair reads."""
        bias = super().context(attention_mask, positions, dtype)
        if not self.relative:
            return bias
        table = self.distance_embed.weight
        if self.distance_norm is not None:
            table = self.distance_norm(table)
        return (*bias, table, self.buckets(attention_mask.shape[1]))


RULES: tuple[Rule, ...] = (
    Rename("deberta.embeddings.word_embeddings", "embed"),
    Rename("deberta.embeddings.position_embeddings", "position_embed"),
    Rename("deberta.embeddings.token_type_embeddings", "type_embed"),
    Rename("deberta.embeddings.embed_proj", "project"),
    Rename("deberta.embeddings.LayerNorm", "embed_norm"),
    Rename("deberta.encoder.rel_embeddings", "distance_embed"),
    Rename("deberta.encoder.LayerNorm", "distance_norm"),
    Rename("deberta.encoder.conv.conv", "conv.conv"),
    Rename("deberta.encoder.conv.LayerNorm", "conv.norm"),
    Rename("deberta.encoder.layer.*.attention.self.query_proj", "layers.*.attn.q"),
    Rename("deberta.encoder.layer.*.attention.self.key_proj", "layers.*.attn.k"),
    Rename("deberta.encoder.layer.*.attention.self.value_proj", "layers.*.attn.v"),
    Rename("deberta.encoder.layer.*.attention.self.pos_key_proj", "layers.*.attn.place_k"),
    Rename("deberta.encoder.layer.*.attention.self.pos_query_proj", "layers.*.attn.place_q"),
    Rename("deberta.encoder.layer.*.attention.output.dense", "layers.*.attn.out"),
    Rename("deberta.encoder.layer.*.attention.output.LayerNorm", "layers.*.attn_out_norm"),
    Rename("deberta.encoder.layer.*.intermediate.dense", "layers.*.mlp.up"),
    Rename("deberta.encoder.layer.*.output.dense", "layers.*.mlp.down"),
    Rename("deberta.encoder.layer.*.output.LayerNorm", "layers.*.out_norm"),
    Rename("pooler.dense", "pooler"),
    Rename("classifier", "classifier"),
    Rename("qa_outputs", "qa"),
    Rename("mask_predictions.dense", "mask_predictions.dense"),  # of the pretraining, which no class reads
    Rename("mask_predictions.LayerNorm", "mask_predictions.norm"),
    Rename("mask_predictions.classifier", "mask_predictions.classifier"),
    Drop("deberta.embeddings.position_ids"),
)


def masked_head(c: DebertaConfig) -> tuple[Rule, ...]:
    """The masked head that this config's class has, and the other one, which a file may hold as well."""
    legacy, paper = ("mlm", "unread") if c.legacy else ("unread", "mlm")
    heads = {"mlm": "head", "unread": "unread"}
    return (
        Rename("cls.predictions.transform.dense", f"{legacy}.dense"),
        Rename("cls.predictions.transform.LayerNorm", f"{legacy}.norm"),
        Rename("cls.predictions.bias", f"{heads[legacy]}.bias"),
        Rename("cls.predictions.decoder.weight", f"{heads[legacy]}.weight"),
        Drop("cls.predictions.decoder.bias"),  # the same as cls.predictions.bias
        Rename("lm_predictions.lm_head.dense", f"{paper}.dense"),
        Rename("lm_predictions.lm_head.LayerNorm", f"{paper}.norm"),
        Rename("lm_predictions.lm_head.bias", f"{heads[paper]}.bias"),
    )


def shared(c: DebertaConfig) -> Mapping[str, str]:
    """The paper's masked head has no matrix of its own, whatever config.json says of tying."""
    return {"head.weight": "embed.weight"} if c.tie_word_embeddings or not c.legacy else {}


def build(c: DebertaConfig, head: str) -> Deberta:
    """Raises CheckpointError for a masked head over embeddings of another width."""
    if head == "mask" and not c.legacy and c.width != c.hidden_size:
        raise CheckpointError("config.json: legacy=false needs embeddings as wide as the layers")
    return Deberta(c, head)


FAMILY = Family(
    name="deberta_v2",
    title="DeBERTa-v2, DeBERTa-v3",
    model_types=("deberta-v2",),
    config=DebertaConfig,
    rules=RULES,
    towers=masked_head,
    tasks=encoder_tasks(
        build,
        {
            "mask": ("DebertaV2ForMaskedLM",),
            "token": ("DebertaV2ForTokenClassification",),
            "sequence": ("DebertaV2ForSequenceClassification",),
            "span": ("DebertaV2ForQuestionAnswering",),
            "none": ("DebertaV2Model",),
        },
        types=lambda c: c.type_vocab_size > 0,
    ),
    prefix="deberta",
    heads=("pooler", "mlm", "head", "classifier", "qa", "unread", "mask_predictions", "position_embed"),
    tied=shared,
    no_gguf="llama.cpp has no DeBERTa: none of its encoders scores distances",
)
