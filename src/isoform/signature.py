"""What goes into a model and what comes out: ports with a dtype and named axes, and the layout of a cache.

A `Signature` is data. The family card makes it, the exporters name graph inputs by it, the manifest stores it, and the
runtimes feed by it; nothing guesses a port from a model type. Axis names are the ecosystem's (`batch_size`,
`sequence_length`, `past_sequence_length`, `total_sequence_length`); a number is a fixed size.

A model of several graphs has one signature per part. What an encoder gives (`last_hidden_state`) is the memory that the
decoder attends to: its input `encoder_hidden_states`, with `encoder_attention_mask` where that may be padded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Axis = str | int
DType = Literal["bool", "int64", "float"]  # "float" is the dtype of the artifact's activations

BATCH, LENGTH, PAST, TOTAL = "batch_size", "sequence_length", "past_sequence_length", "total_sequence_length"
MEMORY, PAST_MEMORY = "encoder_sequence_length", "past_encoder_sequence_length"
USE_CACHE = "use_cache_branch"
"""The port that says whether the cache's ports hold something; the first step computes the memory's keys and values."""
PICTURES, SENTENCES = "image_batch_size", "text_batch_size"  # where a model takes so many of each
HEIGHT, WIDTH = "height", "width"


@dataclass(frozen=True, slots=True)
class Port:
    """One named tensor that enters or leaves a model."""

    name: str
    dtype: DType
    axes: tuple[Axis, ...]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "axes": list(self.axes)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Port:
        return cls(data["name"], data["dtype"], tuple(data["axes"]))


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """A decoder's key/value cache: per layer one key and one value of shape (B, heads, P, head_dim).

    With `cross` a layer also keeps those of the memory of S slots that it attends to, (B, heads, S, head_dim).
    """

    layers: int
    heads: int
    head_dim: int
    cross: bool = False

    def ports(self, prefix: str, length: Axis, memory: Axis = MEMORY) -> tuple[Port, ...]:
        """`prefix.N.key`, `prefix.N.value` for every layer N, in that order.

        With `cross`: `prefix.N.decoder.key|value` and `prefix.N.encoder.key|value`, these of `memory` slots.
        """
        sides = (("decoder.", length), ("encoder.", memory)) if self.cross else (("", length),)
        return tuple(
            Port(f"{prefix}.{n}.{side}{kind}", "float", (BATCH, self.heads, slots, self.head_dim))
            for n in range(self.layers)
            for side, slots in sides
            for kind in ("key", "value")
        )

    def to_json(self) -> dict[str, Any]:
        data = {"layers": self.layers, "heads": self.heads, "head_dim": self.head_dim}
        return data | ({"cross": True} if self.cross else {})


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs and outputs in positional order; `cache` is set when they carry one.

    With a cache, `inputs` ends with the ports `past_key_values.N.key|value` and `outputs` with `present.N.key|value`;
    with one over a memory as well, `use_cache_branch` is the last input.
    `units`: of an axis that a convolution reads (height, samples), the least size, which is also the step that makes
    one more position; elsewhere it is 1.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    cache: CacheLayout | None = None
    units: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "inputs": [p.to_json() for p in self.inputs],
            "outputs": [p.to_json() for p in self.outputs],
            "cache": self.cache and self.cache.to_json(),
            **({"units": dict(self.units)} if self.units else {}),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Signature:
        cache = data.get("cache")
        return cls(
            tuple(Port.from_json(p) for p in data["inputs"]),
            tuple(Port.from_json(p) for p in data["outputs"]),
            CacheLayout(**cache) if cache else None,
            dict(data.get("units", {})),
        )


def decoder_signature(layers: int, heads: int, head_dim: int, vocab: int) -> Signature:
    """Token ids in, logits out, with one cache entry per layer; serves prefill (P = 0) and decode alike."""
    cache = CacheLayout(layers, heads, head_dim)
    return Signature(
        (
            Port("input_ids", "int64", (BATCH, LENGTH)),
            Port("attention_mask", "int64", (BATCH, TOTAL)),
            Port("position_ids", "int64", (BATCH, LENGTH)),
            *cache.ports("past_key_values", PAST),
        ),
        (Port("logits", "float", (BATCH, LENGTH, vocab)), *cache.ports("present", TOTAL)),
        cache,
    )


def memory_decoder_signature(
    layers: int, heads: int, head_dim: int, vocab: int, width: int, *, masked: bool = False
) -> Signature:
    """Token ids and a memory (B, S, width) in, logits out: the decoder of an encoder-decoder model.

    It has no mask of its own: token t of a step stands at position P + t. While `use_cache_branch` is false the past is
    ignored, and `present.N.encoder` are the memory's keys and values; while it is true they are empty, for those given
    as past stay valid. `masked`: the memory may be padded, `encoder_attention_mask` says where.
    """
    cache = CacheLayout(layers, heads, head_dim, cross=True)
    mask = (Port("encoder_attention_mask", "int64", (BATCH, MEMORY)),) if masked else ()
    return Signature(
        (
            Port("input_ids", "int64", (BATCH, LENGTH)),
            *mask,
            Port("encoder_hidden_states", "float", (BATCH, MEMORY, width)),
            *cache.ports("past_key_values", PAST, PAST_MEMORY),
            Port(USE_CACHE, "bool", (1,)),
        ),
        (Port("logits", "float", (BATCH, LENGTH, vocab)), *cache.ports("present", TOTAL)),
        cache,
    )
