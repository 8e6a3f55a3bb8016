"""EmbeddingGemma: Gemma 3 (text) whose layers see both sides, for vectors of texts instead of next tokens.

Schechter Vera et al. 2025, https://arxiv.org/abs/2509.20354. sentence-transformers pools the states and takes them
through two Dense modules; those are in folders of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from isoform.reference.card import Family, Gguf, Task
from isoform.reference.modules.decoder_plan import DecoderPlan, Kind
from isoform.reference.text.causal import HEADS
from isoform.reference.text.gemma3 import RULES, Gemma3Config, kinds_of, period, window_refusal
from isoform.reference.text.gemma3 import from_gguf as decoder_from_gguf
from isoform.reference.text.gemma3 import gguf_fields as decoder_gguf_fields
from isoform.reference.text.sandwich import sandwich_decoder, sandwich_refusal
from isoform.signature import BATCH, LENGTH, Port, Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingGemmaConfig(Gemma3Config):
    """Gemma 3's, in which `sliding_window` counts the tokens on both sides together."""

    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {"is_causal": (True, False)}

    use_bidirectional_attention: bool = True

    @property
    def reach(self) -> int:
        """From which distance on a token is not seen in a windowed layer."""
        return self.sliding_window // 2 + 1


def plan(c: EmbeddingGemmaConfig) -> DecoderPlan:
    kinds = kinds_of(c, Kind("rope"), Kind("local_rope", c.reach))
    ropes = {"rope": c.rope, "local_rope": c.local_rope}
    return replace(sandwich_decoder(c, kinds, ropes, head_norms=True), both_sides=True)


def build(c: EmbeddingGemmaConfig) -> nn.Module:
    from isoform.reference.modules.decoder import encoder

    return encoder(plan(c))


def states(c: EmbeddingGemmaConfig) -> Signature:
    inputs = tuple(Port(name, "int64", (BATCH, LENGTH)) for name in ("input_ids", "attention_mask"))
    return Signature(inputs, (Port("last_hidden_state", "float", (BATCH, LENGTH, c.hidden_size)),))


def from_gguf(fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    config = decoder_from_gguf(fields, shapes)
    own = {"architectures": ["Gemma3TextModel"], "use_bidirectional_attention": True}
    return {**config, **own, "query_pre_attn_scalar": fields["attention.key_length"]}


def refuse(c: EmbeddingGemmaConfig) -> str:
    if reason := window_refusal(c):
        return reason
    if period(c) != 6:
        return "llama.cpp lets every sixth layer of this architecture see all, and layer_types says otherwise"
    return sandwich_refusal(c, 0)


FAMILY = Family(
    name="embedding_gemma",
    title="EmbeddingGemma",
    model_types=("gemma3_text",),
    config=EmbeddingGemmaConfig,
    rules=RULES,
    tasks=(
        Task(
            name="feature-extraction",
            architectures=("Gemma3TextModel",),
            build=build,
            signature=states,
            shapes=lambda c: plan(c).shapes(False),
        ),
    ),
    prefix="model",
    heads=HEADS,
    gguf=Gguf(
        arch="gemma-embedding",
        fields=decoder_gguf_fields,
        config=from_gguf,
        refuse=refuse,
        tasks=("feature-extraction",),
    ),
)
