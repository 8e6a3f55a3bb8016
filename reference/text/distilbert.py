"""DistilBERT: BERT's encoder with half of the layers, without segment embeddings and without a pooler.

Sanh et al. 2019, https://arxiv.org/abs/1910.01108. Positions may be sinusoids; they are stored like learned ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from isoform.reference.card import Family, Gguf
from isoform.reference.config import Config, with_labels
from isoform.reference.modules.encoder import HeadPlan, Tables, TextEncoder, encoder_layer
from isoform.reference.modules.layers import head_size
from isoform.reference.rules import Drop, Rename, Rule
from isoform.reference.text.bidirectional import encoder_fields, encoder_refusal, encoder_tasks

EPS = 1e-12
"""Of every layer norm; config.json does not state it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DistilBertConfig(Config):
    harmless = frozenset(
        (
            *("qa_dropout", "seq_classif_dropout"),
            "sinusoidal_pos_embds",  # the table is stored
        )
    )
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {"is_causal": (False, None)}
    aliases: ClassVar[Mapping[str, str]] = {
        "hidden_size": "dim",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
    }

    vocab_size: int = 30522
    dim: int = 768
    n_layers: int = 6
    n_heads: int = 12
    hidden_dim: int = 3072
    activation: str = "gelu"
    max_position_embeddings: int = 512
    tie_word_embeddings: bool = True
    num_labels: int = 2

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DistilBertConfig:
        return super(DistilBertConfig, cls).from_dict(with_labels(data))

    @property
    def hidden_size(self) -> int:
        return self.dim

    @property
    def num_hidden_layers(self) -> int:
        return self.n_layers


def build(c: DistilBertConfig, head: str) -> TextEncoder:
    """The trunk with one head: "none", "mask", "token", "sequence" or "span"."""
    sizes = c.dim, c.n_heads, head_size(c.dim, c.n_heads, "dim", "n_heads"), c.hidden_dim
    return TextEncoder(
        Tables(vocab=c.vocab_size, positions=c.max_position_embeddings, types=0, width=c.dim, dim=c.dim),
        [encoder_layer(*sizes, c.activation, EPS) for _ in range(c.n_layers)],
        HeadPlan(kind=head, labels=c.num_labels, act=c.activation, pooled_act="relu"),
        EPS,
    )


RULES: tuple[Rule, ...] = (
    Rename("distilbert.embeddings.word_embeddings", "embed"),
    Rename("distilbert.embeddings.position_embeddings", "position_embed"),
    Rename("distilbert.embeddings.LayerNorm", "embed_norm"),
    Rename("distilbert.transformer.layer.*.attention.q_lin", "layers.*.attn.q"),
    Rename("distilbert.transformer.layer.*.attention.k_lin", "layers.*.attn.k"),
    Rename("distilbert.transformer.layer.*.attention.v_lin", "layers.*.attn.v"),
    Rename("distilbert.transformer.layer.*.attention.out_lin", "layers.*.attn.out"),
    Rename("distilbert.transformer.layer.*.sa_layer_norm", "layers.*.attn_out_norm"),
    Rename("distilbert.transformer.layer.*.ffn.lin1", "layers.*.mlp.up"),
    Rename("distilbert.transformer.layer.*.ffn.lin2", "layers.*.mlp.down"),
    Rename("distilbert.transformer.layer.*.output_layer_norm", "layers.*.out_norm"),
    Rename("vocab_transform", "mlm.dense"),
    Rename("vocab_layer_norm", "mlm.norm"),
    Rename("vocab_projector", "head"),
    Rename("pre_classifier", "pooler"),
    Rename("classifier", "classifier"),
    Rename("qa_outputs", "qa"),
    Drop("distilbert.embeddings.position_ids"),  # 0, 1, 2, ... in files of transformers before 4.31
)


def gguf_fields(c: DistilBertConfig) -> dict[str, Any]:
    return encoder_fields(
        layers=c.n_layers,
        context=c.max_position_embeddings,
        dim=c.dim,
        hidden=c.hidden_dim,
        heads=c.n_heads,
        eps=EPS,
        types=1,
        act=c.activation,
    )


def from_gguf(fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    return {
        "architectures": ["DistilBertModel"],
        "model_type": "distilbert",
        "vocab_size": shapes["token_embd.weight"][0],
        "dim": fields["embedding_length"],
        "n_layers": fields["block_count"],
        "n_heads": fields["attention.head_count"],
        "hidden_dim": fields["feed_forward_length"],
        "activation": fields.get("hidden_activation", "gelu"),
        "max_position_embeddings": shapes["position_embd.weight"][0],
    }


FAMILY = Family(
    name="distilbert",
    title="DistilBERT",
    model_types=("distilbert",),
    config=DistilBertConfig,
    rules=RULES,
    tasks=encoder_tasks(
        build,
        {
            "mask": ("DistilBertForMaskedLM",),
            "token": ("DistilBertForTokenClassification",),
            "sequence": ("DistilBertForSequenceClassification",),
            "span": ("DistilBertForQuestionAnswering",),
            "none": ("DistilBertModel",),
        },
        types=lambda c: False,
    ),
    prefix="distilbert",
    heads=("mlm", "head", "pooler", "classifier", "qa"),
    tied=lambda c: {"head.weight": "embed.weight"} if c.tie_word_embeddings else {},
    gguf=Gguf(
        arch="bert",
        fields=gguf_fields,
        config=from_gguf,
        refuse=lambda c: encoder_refusal(c.activation),
        tasks=("feature-extraction",),
    ),
)
