"""BERT: a post-norm bidirectional encoder with learned positions and segment embeddings.

Devlin et al. 2018, https://arxiv.org/abs/1810.04805. Also serves sentence-transformers' MiniLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from isoform.errors import UnsupportedModel
from isoform.reference.card import Family, Gguf
from isoform.reference.config import Config, with_labels
from isoform.reference.modules.encoder import HeadPlan, Tables, TextEncoder, encoder_layer
from isoform.reference.modules.layers import head_size
from isoform.reference.rules import Drop, Rename, Rule
from isoform.reference.text.bidirectional import encoder_fields, encoder_refusal, encoder_tasks, layer_rules


@dataclass(frozen=True, slots=True, kw_only=True)
class BertConfig(Config):
    harmless = frozenset(
        (
            *("directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers"),
            *("pooler_size_per_head", "pooler_type"),  # of the first BERT's own code
        )
    )
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {"is_causal": (False, None)}

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    position_embedding_type: str = "absolute"
    is_decoder: bool = False
    tie_word_embeddings: bool = True
    num_labels: int = 2

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BertConfig:
        return super(BertConfig, cls).from_dict(with_labels(data))


def build(c: BertConfig, head: str) -> TextEncoder:
    """The trunk with one head: "none", "mask", "token", "sequence" or "span"."""
    if c.is_decoder or c.position_embedding_type != "absolute":
        raise UnsupportedModel(
            f"BERT with is_decoder={c.is_decoder} and {c.position_embedding_type!r} positions is not supported"
        )
    dim, heads = c.hidden_size, c.num_attention_heads
    sizes = dim, heads, head_size(dim, heads), c.intermediate_size
    return TextEncoder(
        Tables(vocab=c.vocab_size, positions=c.max_position_embeddings, types=c.type_vocab_size, width=dim, dim=dim),
        [encoder_layer(*sizes, c.hidden_act, c.layer_norm_eps) for _ in range(c.num_hidden_layers)],
        HeadPlan(kind=head, labels=c.num_labels, act=c.hidden_act),
        c.layer_norm_eps,
    )


RULES: tuple[Rule, ...] = (
    Rename("bert.embeddings.word_embeddings", "embed"),
    Rename("bert.embeddings.position_embeddings", "position_embed"),
    Rename("bert.embeddings.token_type_embeddings", "type_embed"),
    Rename("bert.embeddings.LayerNorm", "embed_norm"),
    *layer_rules("bert"),
    Rename("bert.pooler.dense", "pooler"),
    Rename("cls.predictions.transform.dense", "mlm.dense"),
    Rename("cls.predictions.transform.LayerNorm", "mlm.norm"),
    Rename("cls.predictions.bias", "head.bias"),
    Rename("cls.predictions.decoder.weight", "head.weight"),
    Drop("cls.predictions.decoder.bias"),  # the same as cls.predictions.bias
    Rename("cls.seq_relationship", "nsp"),
    Rename("classifier", "classifier"),
    Rename("qa_outputs", "qa"),
    Drop("bert.embeddings.position_ids"),
)


def gguf_fields(c: BertConfig) -> dict[str, Any]:
    return encoder_fields(
        layers=c.num_hidden_layers,
        context=c.max_position_embeddings,
        dim=c.hidden_size,
        hidden=c.intermediate_size,
        heads=c.num_attention_heads,
        eps=c.layer_norm_eps,
        types=c.type_vocab_size,
        act=c.hidden_act,
    )


def from_gguf(fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": shapes["token_embd.weight"][0],
        "hidden_size": fields["embedding_length"],
        "num_hidden_layers": fields["block_count"],
        "num_attention_heads": fields["attention.head_count"],
        "intermediate_size": fields["feed_forward_length"],
        "max_position_embeddings": shapes["position_embd.weight"][0],
        "type_vocab_size": shapes["token_types.weight"][0],
        "layer_norm_eps": fields["attention.layer_norm_epsilon"],
        "hidden_act": fields.get("hidden_activation", "gelu"),
    }


FAMILY = Family(
    name="bert",
    title="BERT, MiniLM",
    model_types=("bert",),
    config=BertConfig,
    rules=RULES,
    tasks=encoder_tasks(
        build,
        {
            "mask": ("BertForMaskedLM", "BertForPreTraining"),
            "token": ("BertForTokenClassification",),
            "sequence": ("BertForSequenceClassification",),
            "span": ("BertForQuestionAnswering",),
            "none": ("BertModel",),
        },
        carried=("pooler",),
    ),
    prefix="bert",
    heads=("pooler", "mlm", "head", "nsp", "classifier", "qa"),
    tied=lambda c: {"head.weight": "embed.weight"} if c.tie_word_embeddings else {},
    gguf=Gguf(
        arch="bert",
        fields=gguf_fields,
        config=from_gguf,
        holds=("token_types.weight",),
        refuse=lambda c: encoder_refusal(c.hidden_act),
        tasks=("feature-extraction",),
    ),
)
