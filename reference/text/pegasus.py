"""Pegasus: a pre-norm encoder-decoder with sinusoid positions, for summaries.

Zhang et al. 2019, https://arxiv.org/abs/1912.08777. Old checkpoints store the sinusoids, which then count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from isoform.reference.card import Family
from isoform.reference.rules import Rule
from isoform.reference.text.sequence_to_sequence import (
    LOGITS_BIAS,
    SHARED_TABLE,
    STORED_POSITIONS,
    Arrangement,
    SequenceToSequenceConfig,
    arranged,
    generating,
    rules,
    sinusoids,
    tied,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PegasusConfig(SequenceToSequenceConfig):
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = arranged(pre_norm=True, embed_norm=False, sinusoids=True)

    pad_token_id: int = 0
    eos_token_id: int = 1
    decoder_start_token_id: int = 0


ARRANGEMENT = Arrangement(pre_norm=True, embed_norm=False, positions=sinusoids)

RULES: tuple[Rule, ...] = (*SHARED_TABLE, *rules(pre_norm=True), STORED_POSITIONS, LOGITS_BIAS)

FAMILY = Family(
    name="pegasus",
    title="Pegasus",
    model_types=("pegasus",),
    config=PegasusConfig,
    rules=RULES,
    tasks=(generating(ARRANGEMENT, "PegasusForConditionalGeneration"),),
    prefix="model",
    tied=tied,
    no_gguf="llama.cpp has no Pegasus",
)
