"""mBART: BART with its norms before the layers and one behind them, many languages, a token for each.

Liu et al. 2020, https://arxiv.org/abs/2001.08210. Also serves mBART-50 (Tang et al. 2020, arXiv 2008.00401).
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
class MBartConfig(SequenceToSequenceConfig):
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = arranged(pre_norm=True, embed_norm=True, sinusoids=False)


ARRANGEMENT = Arrangement(pre_norm=True, embed_norm=True, positions=learned)

RULES: tuple[Rule, ...] = (*SHARED_TABLE, *rules(pre_norm=True), EMBED_NORM, LEARNED_POSITIONS, LOGITS_BIAS, *HEADS)

FAMILY = Family(
    name="mbart",
    title="mBART, mBART-50",
    model_types=("mbart",),
    config=MBartConfig,
    rules=RULES,
    tasks=(
        generating(ARRANGEMENT, "MBartForConditionalGeneration"),
        *reading(
            ARRANGEMENT,
            {
                "sequence": ("MBartForSequenceClassification",),
                "span": ("MBartForQuestionAnswering",),
                "none": ("MBartModel",),
            },
        ),
    ),
    prefix="model",
    heads=HEAD_NAMES,
    tied=tied,
    no_gguf="llama.cpp has no mBART",
)
