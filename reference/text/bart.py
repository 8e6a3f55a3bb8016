"""BART: a post-norm encoder-decoder with learned positions and a norm after its embeddings.

Lewis et al. 2019, https://arxiv.org/abs/1910.13461. Summaries (bart-large-cnn) and entailment (bart-large-mnli).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from isoform.reference.card import Family
from isoform.reference.rules import Rule
from isoform.reference.text.sequence_to_sequence import (
    EMBED_NORM,
    HEAD_NAMES,
    HEADS,
    LEARNED_POSITIONS,
    LOGITS_BIAS,
    SHARED_TABLE,
    Arrangement,
    SequenceToSequenceConfig,
    arranged,
    generating,
    learned,
    reading,
    rules,
    tied,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BartConfig(SequenceToSequenceConfig):
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = arranged(pre_norm=False, embed_norm=True, sinusoids=False)

    decoder_start_token_id: int = 2


ARRANGEMENT = Arrangement(pre_norm=False, embed_norm=True, positions=learned)

RULES: tuple[Rule, ...] = (*SHARED_TABLE, *rules(pre_norm=False), EMBED_NORM, LEARNED_POSITIONS, LOGITS_BIAS, *HEADS)

FAMILY = Family(
    name="bart",
    title="BART",
    model_types=("bart",),
    config=BartConfig,
    rules=RULES,
    tasks=(
        generating(ARRANGEMENT, "BartForConditionalGeneration"),
        *reading(
            ARRANGEMENT,
            {
                "sequence": ("BartForSequenceClassification",),
                "span": ("BartForQuestionAnswering",),
                "none": ("BartModel",),
            },
        ),
    ),
    prefix="model",
    heads=HEAD_NAMES,
    tied=tied,
    no_gguf="llama.cpp has no BART",
)
