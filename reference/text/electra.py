"""ELECTRA: BERT's encoder behind narrower embeddings, trained to find the tokens that a small generator replaced.

Clark et al. 2020, https://arxiv.org/abs/2003.10555. The generator fills masks. The discriminator's own head says which
tokens were replaced; no task reads it, and such a checkpoint opens as the trunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from isoform.reference.card import Family
from isoform.reference.config import Config, with_labels
from isoform.reference.modules.encoder import HeadPlan, Tables, TextEncoder, encoder_layer
from isoform.reference.modules.layers import head_size
from isoform.reference.rules import Drop, Rename, Rule
from isoform.reference.text.bidirectional import encoder_tasks, layer_rules


@dataclass(frozen=True, slots=True, kw_only=True)
class ElectraConfig(Config):
    harmless: ClassVar[frozenset[str]] = frozenset(  # of the summary that only multiple choice has
        ("summary_activation", "summary_last_dropout", "summary_type", "summary_use_proj")
    )
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "is_causal": (False, None),
        "position_embedding_type": ("absolute", None),
    }

    vocab_size: int = 30522
    embedding_size: int = 128
    hidden_size: int = 256
    num_hidden_layers: int = 12
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    tie_word_embeddings: bool = True
    num_labels: int = 2

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ElectraConfig:
        return super(ElectraConfig, cls).from_dict(with_labels(data))


def build(c: ElectraConfig, head: str) -> TextEncoder:
    """The trunk with one head: "none", "mask", "token", "sequence" or "span"."""
    dim, heads = c.hidden_size, c.num_attention_heads
    sizes = dim, heads, head_size(dim, heads), c.intermediate_size
    return TextEncoder(
        Tables(
            vocab=c.vocab_size,
            positions=c.max_position_embeddings,
            types=c.type_vocab_size,
            width=c.embedding_size,
            dim=dim,
            projected=c.embedding_size != dim,
        ),
        [encoder_layer(*sizes, c.hidden_act, c.layer_norm_eps) for _ in range(c.num_hidden_layers)],
        # The activations of both heads are fixed.
        HeadPlan(kind=head, labels=c.num_labels, act="gelu", pooled_act="gelu", deep=True),
        c.layer_norm_eps,
    )


RULES: tuple[Rule, ...] = (
    Rename("electra.embeddings.word_embeddings", "embed"),
    Rename("electra.embeddings.position_embeddings", "position_embed"),
    Rename("electra.embeddings.token_type_embeddings", "type_embed"),
    Rename("electra.embeddings.LayerNorm", "embed_norm"),
    Rename("electra.embeddings_project", "project"),
    *layer_rules("electra"),
    Rename("generator_predictions.dense", "mlm.dense"),
    Rename("generator_predictions.LayerNorm", "mlm.norm"),
    Rename("generator_lm_head", "head"),
    Rename("discriminator_predictions.dense", "discriminator.dense"),
    Rename("discriminator_predictions.dense_prediction", "discriminator.out"),
    Rename("classifier.dense", "classifier.dense"),
    Rename("classifier.out_proj", "classifier.out"),
    Rename("classifier", "classifier"),
    Rename("qa_outputs", "qa"),
    Drop("electra.embeddings.position_ids"),
)

FAMILY = Family(
    name="electra",
    title="ELECTRA",
    model_types=("electra",),
    config=ElectraConfig,
    rules=RULES,
    tasks=encoder_tasks(
        build,
        {
            "mask": ("ElectraForMaskedLM",),
            "token": ("ElectraForTokenClassification",),
            "sequence": ("ElectraForSequenceClassification",),
            "span": ("ElectraForQuestionAnswering",),
            "none": ("ElectraModel", "ElectraForPreTraining"),
        },
    ),
    prefix="electra",
    heads=("mlm", "head", "discriminator", "classifier", "qa"),
    tied=lambda c: {"head.weight": "embed.weight"} if c.tie_word_embeddings else {},
    no_gguf="llama.cpp has no architecture with a projection behind BERT's embeddings",
)
