"""M2M-100: a pre-norm encoder-decoder with sinusoid positions that translates between a hundred languages.

Fan et al. 2020, https://arxiv.org/abs/2010.11125. Also serves NLLB-200 (Costa-jussà et al. 2022, arXiv 2207.04672).
Positions begin after the id of padding. They count over the mask here, and over the ids that are not padding in
transformers: the same for every tokenizer's output but for a text that spells the padding token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from isoform.reference.card import Family
from isoform.reference.rules import Drop, Rule
from isoform.reference.text.sequence_to_sequence import (
    SHARED_TABLE,
    Arrangement,
    SequenceToSequenceConfig,
    Sinusoids,
    arranged,
    generating,
    rules,
    tied,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class M2M100Config(SequenceToSequenceConfig):
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = arranged(pre_norm=True, embed_norm=False, sinusoids=True)

    vocab_size: int = 128112
    activation_function: str = "relu"
    scale_embedding: bool = True
    final_logits_bias: bool = False
    decoder_start_token_id: int = 2


def positions(c: SequenceToSequenceConfig) -> Sinusoids:
    """The rows of the table from the first that a token reads."""
    first = c.pad_token_id + 1
    return Sinusoids(table(first + c.max_position_embeddings, c.d_model)[first:])


def table(count: int, dim: int) -> Tensor:
    """Float32 (`count`, `dim`): sines, then cosines, of angles that are rounded to float32, as in the training."""
    half = dim // 2
    step = math.log(10000) / max(half - 1, 1)
    waves = torch.exp(torch.arange(half, dtype=torch.float32, device="cpu") * -step)
    angles = torch.arange(count, dtype=torch.float32, device="cpu").unsqueeze(1) * waves
    return torch.cat((angles.sin(), angles.cos(), torch.zeros(count, dim % 2, device="cpu")), 1)


ARRANGEMENT = Arrangement(pre_norm=True, embed_norm=False, positions=positions)

RULES: tuple[Rule, ...] = (
    *SHARED_TABLE,
    *rules(pre_norm=True),
    Drop("model.*.embed_positions"),  # computed from the config
)

FAMILY = Family(
    name="m2m_100",
    title="M2M-100, NLLB",
    model_types=("m2m_100",),
    config=M2M100Config,
    rules=RULES,
    tasks=(generating(ARRANGEMENT, "M2M100ForConditionalGeneration"),),
    prefix="model",
    tied=tied,
    no_gguf="llama.cpp has no M2M-100",
)
