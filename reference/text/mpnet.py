"""MPNet: BERT's encoder with a bias by distance, which all layers share, and without segments.

Song et al. 2020, https://arxiv.org/abs/2004.09297. The trunk of sentence-transformers' all-mpnet-base-v2. Positions
begin after the id of padding, like RoBERTa's, and count over the mask here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from isoform.reference.card import Family
from isoform.reference.config import Config, with_labels
from isoform.reference.modules.encoder import HeadPlan, Tables, TextEncoder, encoder_layer
from isoform.reference.modules.layers import Embedding, head_size
from isoform.reference.modules.relative import DistanceTable, two_sided_buckets
from isoform.reference.rules import Drop, Rename, Rule, Tail
from isoform.reference.text.bidirectional import encoder_tasks

BUCKETS = 32
"""Of distances. config.json states a number too, of rows in the table; transformers computes with this one."""

FIRST_POSITION = 2
"""The row of the first token in the stored table of positions; the id of padding is 1, whatever config.json says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MPNetConfig(Config):
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "is_causal": (False, None),
        "relative_attention_num_buckets": (BUCKETS, None),
    }

    vocab_size: int = 30527
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    layer_norm_eps: float = 1e-12
    tie_word_embeddings: bool = True
    num_labels: int = 2

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MPNetConfig:
        return super(MPNetConfig, cls).from_dict(with_labels(data))

    @property
    def context(self) -> int:
        return self.max_position_embeddings - FIRST_POSITION


class MPNet(TextEncoder):
    """The encoder with a head; the attention of every layer gets the same bias by distance."""

    def __init__(self, c: MPNetConfig, head: str) -> None:
        dim, heads = c.hidden_size, c.num_attention_heads
        sizes = dim, heads, head_size(dim, heads), c.intermediate_size
        super().__init__(
            Tables(vocab=c.vocab_size, positions=c.context, types=0, width=dim, dim=dim),
            [encoder_layer(*sizes, c.hidden_act, c.layer_norm_eps) for _ in range(c.num_hidden_layers)],
            HeadPlan(kind=head, labels=c.num_labels, act="gelu", deep=True),  # the masked head's is fixed
            c.layer_norm_eps,
        )
        self.distance_embed = Embedding(BUCKETS, heads)
        self.buckets = DistanceTable(two_sided_buckets(BUCKETS))

    def context(self, attention_mask: Tensor, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """A bias (B, heads, T, T): by distance, and so low at the padding that it hides it."""
        (padding,) = super().context(attention_mask, positions, dtype)
        near = self.distance_embed(self.buckets(attention_mask.shape[1])).permute(2, 0, 1).unsqueeze(0)
        return (near + padding,)


RULES: tuple[Rule, ...] = (
    Rename("mpnet.embeddings.word_embeddings", "embed"),
    Tail("mpnet.embeddings.position_embeddings", "position_embed", FIRST_POSITION),
    Rename("mpnet.embeddings.LayerNorm", "embed_norm"),
    Rename("mpnet.encoder.layer.*.attention.attn.q", "layers.*.attn.q"),
    Rename("mpnet.encoder.layer.*.attention.attn.k", "layers.*.attn.k"),
    Rename("mpnet.encoder.layer.*.attention.attn.v", "layers.*.attn.v"),
    Rename("mpnet.encoder.layer.*.attention.attn.o", "layers.*.attn.out"),
    Rename("mpnet.encoder.layer.*.attention.LayerNorm", "layers.*.attn_out_norm"),
    Rename("mpnet.encoder.layer.*.intermediate.dense", "layers.*.mlp.up"),
    Rename("mpnet.encoder.layer.*.output.dense", "layers.*.mlp.down"),
    Rename("mpnet.encoder.layer.*.output.LayerNorm", "layers.*.out_norm"),
    Rename("mpnet.encoder.relative_attention_bias", "distance_embed"),
    Rename("mpnet.pooler.dense", "pooler"),  # which no head reads
    Rename("lm_head.dense", "mlm.dense"),
    Rename("lm_head.layer_norm", "mlm.norm"),
    Rename("lm_head.bias", "head.bias"),
    Rename("lm_head.decoder.weight", "head.weight"),
    Drop("lm_head.decoder.bias"),  # the same as lm_head.bias
    Rename("classifier.dense", "classifier.dense"),
    Rename("classifier.out_proj", "classifier.out"),
    Rename("classifier", "classifier"),
    Rename("qa_outputs", "qa"),
    Drop("mpnet.embeddings.position_ids"),  # 0, 1, 2, ... in files of transformers before 4.31
)

FAMILY = Family(
    name="mpnet",
    title="MPNet",
    model_types=("mpnet",),
    config=MPNetConfig,
    rules=RULES,
    tasks=encoder_tasks(
        MPNet,
        {
            "mask": ("MPNetForMaskedLM",),
            "token": ("MPNetForTokenClassification",),
            "sequence": ("MPNetForSequenceClassification",),
            "span": ("MPNetForQuestionAnswering",),
            "none": ("MPNetModel",),
        },
        types=lambda c: False,
        carried=("pooler",),
    ),
    prefix="mpnet",
    heads=("pooler", "mlm", "head", "classifier", "qa"),
    tied=lambda c: {"head.weight": "embed.weight"} if c.tie_word_embeddings else {},
    no_gguf="llama.cpp has no MPNet: none of its encoders adds a bias by distance",
)
