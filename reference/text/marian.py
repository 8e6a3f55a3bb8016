"""Marian: the post-norm encoder-decoder of "Attention is all you need", as OPUS-MT has it for 1,400 pairs of languages.

Vaswani et al. 2017, https://arxiv.org/abs/1706.03762; Junczys-Dowmunt et al. 2018, https://arxiv.org/abs/1804.00344. A
text begins with the token of padding. Old checkpoints store the sinusoids of the positions, which then count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from isoform.reference.card import Family
from isoform.reference.rules import Rename, Rule
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
class MarianConfig(SequenceToSequenceConfig):
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = arranged(pre_norm=False, embed_norm=False, sinusoids=True)

    decoder_vocab_size: int | None = None
    share_encoder_decoder_embeddings: bool = True
    vocab_size: int = 58101
    pad_token_id: int = 58100
    eos_token_id: int = 0
    decoder_start_token_id: int = 58100

    @property
    def target_vocabulary(self) -> int:
        return self.vocab_size if self.shared else self.decoder_vocab_size or self.vocab_size

    @property
    def shared(self) -> bool:
        return self.share_encoder_decoder_embeddings


ARRANGEMENT = Arrangement(pre_norm=False, embed_norm=False, positions=sinusoids)

RULES: tuple[Rule, ...] = (*rules(pre_norm=False), STORED_POSITIONS, LOGITS_BIAS)

FAMILY = Family(
    name="marian",
    title="Marian",
    model_types=("marian",),
    config=MarianConfig,
    rules=RULES,
    towers=lambda c: SHARED_TABLE if c.shared else (Rename("model.decoder.embed_tokens", "decoder.embed"),),
    tasks=(generating(ARRANGEMENT, "MarianMTModel"),),
    prefix="model",
    tied=tied,
    no_gguf="llama.cpp has no Marian",
)
