"""What the configs of the decoders share: keys that are no fields, and sizes that follow from others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from isoform.reference.config import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig(Config):
    """Heads in groups that share keys and values. A family states these fields again where its format has defaults."""

    harmless = frozenset(
        (
            "is_decoder",  # such a model has no other direction, whatever this says
            "is_llama_config",
            "max_sequence_length",
            "multiple_of",
        )
    )
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {  # other values: a view of both sides, other pairs of channels
        "is_causal": (True,),
        "rope_interleaved": (False, None),
        "use_bidirectional_attention": (False, None),
        "use_mrope": (False, None),
    }

    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads
