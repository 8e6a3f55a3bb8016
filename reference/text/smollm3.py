"""SmolLM3: Llama whose every fourth layer sees no positions (NoPE).

Hugging Face 2025, https://huggingface.co/blog/smollm3; layers without positions: https://arxiv.org/abs/2501.18795.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from isoform.errors import CheckpointError
from isoform.reference.card import Family, Gguf
from isoform.reference.config import RopeConfig, read_rope
from isoform.reference.modules.decoder_plan import DecoderPlan, Kind
from isoform.reference.text.causal import (
    HEADS,
    NORMS,
    TRUNK,
    causal_parts,
    causal_tasks,
    decoder_config,
    decoder_fields,
    decoder_refusal,
    layer_types,
    plain_decoder,
    tied_head,
    with_head,
)
from isoform.reference.text.decoder_config import DecoderConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class SmolLM3Config(DecoderConfig):
    """`no_rope_layers` has a 1 for a layer with rotary positions, 0 for one without."""

    vocab_size: int = 128256
    hidden_size: int = 2048
    intermediate_size: int = 11008
    num_hidden_layers: int = 36
    num_attention_heads: int = 16
    num_key_value_heads: int | None = 4
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: int | None = None
    no_rope_layers: tuple[int, ...] = ()
    no_rope_layer_interval: int = 4
    layer_types: tuple[str, ...] = ()
    tie_word_embeddings: bool = True
    num_labels: int = 2
    pad_token_id: int | None = 128004
    rope: RopeConfig = field(default_factory=lambda: RopeConfig(theta=2e6))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return super(SmolLM3Config, cls).from_dict(
            {**with_head(data), "rope": read_rope(data, theta=2e6, context=32768)}
        )


def rotates(c: SmolLM3Config) -> list[bool]:
    """Whether each layer has rotary positions."""
    if not c.no_rope_layers:
        return [(n + 1) % c.no_rope_layer_interval != 0 for n in range(c.num_hidden_layers)]
    if len(c.no_rope_layers) < c.num_hidden_layers:
        raise CheckpointError(
            f"config.json: no_rope_layers has {len(c.no_rope_layers)} entries for {c.num_hidden_layers} layers"
        )
    return [bool(found) for found in c.no_rope_layers[: c.num_hidden_layers]]


def windows(c: SmolLM3Config) -> list[int | None]:
    """Each layer's window: by `layer_types`, or on the layers without positions when windows are switched on."""
    rotary = rotates(c)
    types = layer_types(c, lambda n: c.use_sliding_window and not rotary[n])
    return [c.sliding_window if kind == "sliding_attention" else None for kind in types]


def plan(c: SmolLM3Config) -> DecoderPlan:
    pairs = zip(rotates(c), windows(c), strict=True)
    return plain_decoder(
        c,
        qkv_bias=c.attention_bias,
        out_bias=c.attention_bias,
        mlp_bias=c.mlp_bias,
        kinds=tuple(Kind("rope" if rotary else None, window) for rotary, window in pairs),
    )


def gguf_fields(c: SmolLM3Config) -> dict[str, Any]:
    return {**decoder_fields(c), "vocab_size": c.vocab_size, "rope.dimension_count": c.head_size}


def refuse(c: SmolLM3Config) -> str:
    if rotates(c) != [(n + 1) % 4 != 0 for n in range(c.num_hidden_layers)]:
        return "llama.cpp rotates all but every fourth layer of this architecture (no_rope_layers says otherwise)"
    if c.attention_bias or c.mlp_bias:
        return "llama.cpp has no bias in the layers of this architecture (attention_bias or mlp_bias is true)"
    return decoder_refusal(c, windows(c))


FAMILY = Family(
    name="smollm3",
    title="SmolLM3",
    model_types=("smollm3",),
    config=SmolLM3Config,
    rules=(*TRUNK, *NORMS),
    tasks=causal_tasks(
        plan,
        ("SmolLM3ForCausalLM",),
        ("SmolLM3Model",),
        sequence=("SmolLM3ForSequenceClassification",),
        token=("SmolLM3ForTokenClassification",),
        span=("SmolLM3ForQuestionAnswering",),
    ),
    parts=causal_parts(plan),
    prefix="model",
    other_prefix="transformer",
    heads=HEADS,
    tied=tied_head,
    gguf=Gguf(
        arch="smollm3",
        fields=gguf_fields,
        config=lambda fields, shapes: decoder_config("SmolLM3ForCausalLM", "smollm3", fields, shapes),
        interleaved_rope=True,
        refuse=refuse,
        tasks=("text-generation",),
    ),
)
