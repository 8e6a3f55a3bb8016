"""What goes into a model and what comes out: ports with a dtype and named axes, and the layout of a cache.

A `Signature` is data. The family card makes it, the exporters name graph inputs by it, the manifest stores it, and the
runtimes feed by it; nothing guesses a port from a model type. Axis names are the ecosystem's (`batch_size`,
`sequence_length`, `past_sequence_length`, `total_sequence_length`); a number is a fixed size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Axis = str | int
DType = Literal["int64", "float"]  # "float" is the dtype of the artifact's activations

BATCH, LENGTH, PAST, TOTAL = "batch_size", "sequence_length", "past_sequence_length", "total_sequence_length"


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
    """A decoder's key/value cache: per layer one key and one value of shape (B, heads, P, head_dim)."""

    layers: int
    heads: int
    head_dim: int

    def ports(self, prefix: str, length: Axis) -> tuple[Port, ...]:
        """`prefix.N.key`, `prefix.N.value` for every layer N, in that order."""
        axes: tuple[Axis, ...] = (BATCH, self.heads, length, self.head_dim)
        return tuple(
            Port(f"{prefix}.{n}.{kind}", "float", axes) for n in range(self.layers) for kind in ("key", "value")
        )


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs and outputs in positional order; `cache` is set when they carry one.

    With a cache, `inputs` ends with the ports `past_key_values.N.key|value` and `outputs` with `present.N.key|value`.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    cache: CacheLayout | None = None

    def to_json(self) -> dict[str, Any]:
        cache = self.cache
        return {
            "inputs": [p.to_json() for p in self.inputs],
            "outputs": [p.to_json() for p in self.outputs],
            "cache": cache and {"layers": cache.layers, "heads": cache.heads, "head_dim": cache.head_dim},
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Signature:
        cache = data.get("cache")
        return cls(
            tuple(Port.from_json(p) for p in data["inputs"]),
            tuple(Port.from_json(p) for p in data["outputs"]),
            CacheLayout(**cache) if cache else None,
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
