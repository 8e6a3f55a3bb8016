"""RoBERTa: BERT with positions that begin after the id of padding, one segment, and a head of two layers.

Liu et al. 2019, https://arxiv.org/abs/1907.11692. Also serves XLM-RoBERTa (Conneau et al. 2019, arXiv 1911.02116) and
CamemBERT (Martin et al. 2019, arXiv 1911.03894). Positions count over the mask here, and over the ids that are not
padding in transformers: the same for every tokenizer's output but for a text that spells the padding token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from isoform.errors import CheckpointError
from isoform.reference.card import Family, Gguf
from isoform.reference.config import Config, where, with_labels
from isoform.reference.modules.encoder import HeadPlan, Tables, TextEncoder, encoder_layer
from isoform.reference.modules.layers import head_size
from isoform.reference.rules import Drop, Rename, Rule, Tail
from isoform.reference.text.bidirectional import encoder_fields, encoder_refusal, encoder_tasks, layer_rules


@dataclass(frozen=True, slots=True, kw_only=True)
class RobertaConfig(Config):
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "is_causal": (False, None),
        "position_embedding_type": ("absolute", None),
    }

    vocab_size: int = 50265
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 1
    tie_word_embeddings: bool = True
    num_labels: int = 2

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RobertaConfig:
        """Raises CheckpointError where the ids leave no place for positions."""
        file, path = where(data, "pad_token_id")
        if data.get("pad_token_id", 1) is None:
            raise CheckpointError(f"{file}: {path} is null, but the positions of this family begin after it")
        found = super(RobertaConfig, cls).from_dict(with_labels(data))
        if found.first_position >= found.max_position_embeddings:
            raise CheckpointError(
                f"{file}: {path} {found.pad_token_id} leaves no positions of max_position_embeddings "
                f"{found.max_position_embeddings}"
            )
        return found

    @property
    def first_position(self) -> int:
        """The row of the first token in the stored table of positions."""
        return self.pad_token_id + 1

    @property
    def context(self) -> int:
        return self.max_position_embeddings - self.first_position


def build(c: RobertaConfig, head: str) -> TextEncoder:
    """The trunk with one head: "none", "mask", "token", "sequence" or "span"."""
    dim, heads = c.hidden_size, c.num_attention_heads
    sizes = dim, heads, head_size(dim, heads), c.intermediate_size
    return TextEncoder(
        Tables(vocab=c.vocab_size, positions=c.context, types=c.type_vocab_size, width=dim, dim=dim),
        [encoder_layer(*sizes, c.hidden_act, c.layer_norm_eps) for _ in range(c.num_hidden_layers)],
        HeadPlan(kind=head, labels=c.num_labels, act="gelu", deep=True),  # the masked head's is fixed
        c.layer_norm_eps,
    )


RULES: tuple[Rule, ...] = (
    Rename("roberta.embeddings.word_embeddings", "embed"),
    Tail("roberta.embeddings.position_embeddings", "position_embed", lambda c: c.first_position),
    Rename("roberta.embeddings.token_type_embeddings", "type_embed"),
    Rename("roberta.embeddings.LayerNorm", "embed_norm"),
    *layer_rules("roberta"),
    Rename("roberta.pooler.dense", "pooler"),
    Rename("lm_head.dense", "mlm.dense"),
    Rename("lm_head.layer_norm", "mlm.norm"),
    Rename("lm_head.bias", "head.bias"),
    Rename("lm_head.decoder.weight", "head.weight"),
    Drop("lm_head.decoder.bias"),  # the same as lm_head.bias
    Rename("classifier.dense", "classifier.dense"),
    Rename("classifier.out_proj", "classifier.out"),
    Rename("classifier", "classifier"),
    Rename("qa_outputs", "qa"),
    Drop("roberta.embeddings.position_ids"),
)


def gguf_fields(c: RobertaConfig) -> dict[str, Any]:
    return encoder_fields(
        layers=c.num_hidden_layers,
        context=c.context,
        dim=c.hidden_size,
        hidden=c.intermediate_size,
        heads=c.num_attention_heads,
        eps=c.layer_norm_eps,
        types=c.type_vocab_size,
        act=c.hidden_act,
    )


def from_gguf(fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """llama.cpp's table of positions begins with the first one."""
    sentencepiece = fields["tokenizer.ggml.model"] == "t5"
    pad = fields["tokenizer.ggml.padding_token_id"]
    return {
        "architectures": ["XLMRobertaModel" if sentencepiece else "RobertaModel"],
        "model_type": "xlm-roberta" if sentencepiece else "roberta",
        "vocab_size": shapes["token_embd.weight"][0],
        "hidden_size": fields["embedding_length"],
        "num_hidden_layers": fields["block_count"],
        "num_attention_heads": fields["attention.head_count"],
        "intermediate_size": fields["feed_forward_length"],
        "max_position_embeddings": shapes["position_embd.weight"][0] + pad + 1,
        "type_vocab_size": shapes["token_types.weight"][0],
        "layer_norm_eps": fields["attention.layer_norm_epsilon"],
        "hidden_act": fields.get("hidden_activation", "gelu"),
        "pad_token_id": pad,
    }


FAMILY = Family(
    name="roberta",
    title="RoBERTa, XLM-RoBERTa, CamemBERT",
    model_types=("roberta", "xlm-roberta", "camembert"),
    config=RobertaConfig,
    rules=RULES,
    tasks=encoder_tasks(
        build,
        {
            kind: tuple(f"{family}{suffix}" for family in ("Roberta", "XLMRoberta", "Camembert"))
            for kind, suffix in {
                "mask": "ForMaskedLM",
                "token": "ForTokenClassification",
                "sequence": "ForSequenceClassification",
                "span": "ForQuestionAnswering",
                "none": "Model",
            }.items()
        },
        types=lambda c: c.type_vocab_size > 1,
        carried=("pooler",),
        facts=lambda c: {"context": c.context},
    ),
    prefix="roberta",
    heads=("pooler", "mlm", "head", "classifier", "qa"),
    tied=lambda c: {"head.weight": "embed.weight"} if c.tie_word_embeddings else {},
    gguf=Gguf(
        arch="bert",
        fields=gguf_fields,
        config=from_gguf,
        holds=("token_types.weight",),
        vocabularies=("gpt2", "t5"),
        refuse=lambda c: encoder_refusal(c.hidden_act),
        tasks=("feature-extraction",),
    ),
)
