"""ALBERT: BERT whose layers share their weights, behind narrower embeddings.

Lan et al. 2019, https://arxiv.org/abs/1909.11942. A group of layers runs several times in a row; its weights are stored
once, here and in every exported graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from isoform.errors import CheckpointError
from isoform.reference.card import Family
from isoform.reference.config import Config, with_labels
from isoform.reference.modules.encoder import EncoderLayer, HeadPlan, Tables, TextEncoder, encoder_layer
from isoform.reference.modules.layers import head_size
from isoform.reference.rules import Drop, Rename, Rule, below
from isoform.reference.text.bidirectional import encoder_tasks

MOST_LAYERS = 1000
"""How many runs of layers are built; nothing in the checkpoint's size bounds them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlbertConfig(Config):
    harmless: ClassVar[frozenset[str]] = frozenset(  # of the first ALBERT's own code
        ("down_scale_factor", "gap_size", "layers_to_keep", "net_structure_type", "num_memory_blocks")
    )
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "is_causal": (False, None),
        "position_embedding_type": ("absolute", None),
    }

    vocab_size: int = 30000
    embedding_size: int = 128
    hidden_size: int = 4096
    num_hidden_layers: int = 12
    num_hidden_groups: int = 1
    num_attention_heads: int = 64
    intermediate_size: int = 16384
    inner_group_num: int = 1
    hidden_act: str = "gelu_new"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    tie_word_embeddings: bool = True
    num_labels: int = 2

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AlbertConfig:
        """Raises CheckpointError for groups that the layers cannot be divided into."""
        found = super(AlbertConfig, cls).from_dict(with_labels(data))
        if found.num_hidden_groups > found.num_hidden_layers:
            raise CheckpointError(
                f"config.json: num_hidden_groups {found.num_hidden_groups} is more than num_hidden_layers "
                f"{found.num_hidden_layers}"
            )
        if found.num_hidden_layers * found.inner_group_num > MOST_LAYERS:
            raise CheckpointError(
                f"config.json: {found.num_hidden_layers} layers of {found.inner_group_num} are more than {MOST_LAYERS}"
            )
        return found

    @property
    def order(self) -> tuple[int, ...]:
        """The group that each layer runs; the Hub's code divides in floating point."""
        size = self.num_hidden_layers / self.num_hidden_groups
        return tuple(int(n / size) for n in range(self.num_hidden_layers))


class LayerGroup(nn.Module):
    """Layers that run, and run again, one after the other."""

    def __init__(self, layers: Sequence[EncoderLayer]) -> None:
        super().__init__()
        self.inner = nn.ModuleList(layers)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Shapes: x (B, T, C), bias as in `EncoderLayer` -> (B, T, C)."""
        for layer in self.inner:
            x = layer(x, bias)
        return x


def build(c: AlbertConfig, head: str) -> TextEncoder:
    """The trunk with one head: "none", "mask", "token", "sequence" or "span"."""
    dim, heads = c.hidden_size, c.num_attention_heads
    sizes = dim, heads, head_size(dim, heads), c.intermediate_size

    def group() -> LayerGroup:
        return LayerGroup([encoder_layer(*sizes, c.hidden_act, c.layer_norm_eps) for _ in range(c.inner_group_num)])

    return TextEncoder(
        Tables(
            vocab=c.vocab_size,
            positions=c.max_position_embeddings,
            types=c.type_vocab_size,
            width=c.embedding_size,
            dim=dim,
            projected=True,
        ),
        [group() for _ in range(c.num_hidden_groups)],
        HeadPlan(kind=head, labels=c.num_labels, act=c.hidden_act),
        c.layer_norm_eps,
        c.order,
    )


LAYER: tuple[Rule, ...] = (
    Rename("attention.query", "attn.q"),
    Rename("attention.key", "attn.k"),
    Rename("attention.value", "attn.v"),
    Rename("attention.dense", "attn.out"),
    Rename("attention.LayerNorm", "attn_out_norm"),
    Rename("ffn", "mlp.up"),
    Rename("ffn_output", "mlp.down"),
    Rename("full_layer_layer_norm", "out_norm"),
)

RULES: tuple[Rule, ...] = (
    Rename("albert.embeddings.word_embeddings", "embed"),
    Rename("albert.embeddings.position_embeddings", "position_embed"),
    Rename("albert.embeddings.token_type_embeddings", "type_embed"),
    Rename("albert.embeddings.LayerNorm", "embed_norm"),
    Rename("albert.encoder.embedding_hidden_mapping_in", "project"),
    *below(LAYER, "albert.encoder.albert_layer_groups.*.albert_layers.*", "layers.*.inner.*"),
    Rename("albert.pooler", "pooler"),
    Rename("predictions.dense", "mlm.dense"),
    Rename("predictions.LayerNorm", "mlm.norm"),
    Rename("predictions.bias", "head.bias"),
    Rename("predictions.decoder.weight", "head.weight"),
    Drop("predictions.decoder.bias"),  # the same as predictions.bias
    Rename("sop_classifier.classifier", "sop"),
    Rename("classifier", "classifier"),
    Rename("qa_outputs", "qa"),
    Drop("albert.embeddings.position_ids"),
)

FAMILY = Family(
    name="albert",
    title="ALBERT",
    model_types=("albert",),
    config=AlbertConfig,
    rules=RULES,
    tasks=encoder_tasks(
        build,
        {
            "mask": ("AlbertForMaskedLM", "AlbertForPreTraining"),
            "token": ("AlbertForTokenClassification",),
            "sequence": ("AlbertForSequenceClassification",),
            "span": ("AlbertForQuestionAnswering",),
            "none": ("AlbertModel",),
        },
        carried=("pooler",),
    ),
    prefix="albert",
    heads=("pooler", "mlm", "head", "sop", "classifier", "qa"),
    tied=lambda c: {"head.weight": "embed.weight"} if c.tie_word_embeddings else {},
    no_gguf="llama.cpp has no architecture whose layers share their weights",
)
