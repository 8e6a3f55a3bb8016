"""What goes into a graph and what comes out: ports with roles, the states of a step, and how sizes depend on another.

A `Signature` is data. The family card makes it, the exporters name graph inputs by it, the manifest stores it, and the
runtimes feed by it. Port and axis names are the ecosystem's (`input_ids`, `past_sequence_length`); they differ between
ecosystems, so runtimes and validators look for a port's role. An axis that is a number has a fixed size.

A model of several graphs has one signature per part; the card's wires say which output feeds which input.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Axis = str | int
DType = Literal["bool", "int64", "float"]  # "float" is the dtype of the artifact's activations
Role = Literal[
    "",  # none of these
    "attentions",
    "boxes",
    "cells",
    "choice",
    "depth",
    "descriptors",
    "embeddings",
    "encoder_mask",
    "encoder_states",
    "features",
    "heatmaps",
    "image_features",
    "labels",
    "logits",
    "mask",
    "masks",
    "pixel_mask",
    "pixels",
    "points",
    "pooled",
    "positions",
    "scores",
    "similarity",
    "sound",
    "state",
    "states",
    "switch",
    "task",
    "token_types",
    "tokens",
    "video",
]
"""What a port is for. Inputs: token ids and types, embeddings in their place, a mask of the slots, positions, encoder
states (cross-attention) with their mask, pixels of pictures with a mask of those that are no padding, the pictures of a
video, points on pictures with their labels, the token ids of a text that names a task (as many as the axis says),
features or the waveform of sound, choices out of a closed list (a data set, patches). Outputs: logits, hidden states
per slot, one pooled vector per row, similarities, attention weights, scores of masks, depths, descriptors of places,
heat maps of keypoints. Both: boxes, masks and features of pictures, a state, and the switch that says whether the
states hold something."""

Kind = Literal["append", "once", "replace", "window"]
"""How a state changes in a step. append: it grows by the new slots (self-attention's keys and values). window: it does,
and keeps only the last ones. once: the first step computes it, later steps keep it (cross-attention's keys and values).
replace: each step gives a new one of the same size (a recurrent state, the edge of a streaming convolution)."""

BATCH, LENGTH, PAST, TOTAL = "batch_size", "sequence_length", "past_sequence_length", "total_sequence_length"
ENCODER_LENGTH, PAST_ENCODER_LENGTH = "encoder_sequence_length", "past_encoder_sequence_length"
PICTURES, SENTENCES = "image_batch_size", "text_batch_size"  # where a model takes so many of each
HEIGHT, WIDTH = "height", "width"
DOCUMENT = "document_sequence_length"  # the tokens of a row and, behind them, the patches of its picture

ROLES: dict[str, Role] = {
    "attention_mask": "mask",
    "cross_attentions": "attentions",
    "bbox": "boxes",
    "descriptors": "descriptors",
    "encoder_attention_mask": "encoder_mask",
    "encoder_hidden_states": "encoder_states",
    "heatmaps": "heatmaps",
    "image_embeddings": "image_features",
    "image_embeds": "pooled",
    "image_features": "image_features",
    "image_positional_embeddings": "image_features",
    "input_features": "features",
    "input_ids": "tokens",
    "input_labels": "labels",
    "input_points": "points",
    "input_values": "sound",
    "inputs_embeds": "embeddings",
    "iou_scores": "scores",
    "last_hidden_state": "states",
    "logits": "logits",
    "logits_per_image": "similarity",
    "logits_per_text": "similarity",
    "pixel_mask": "pixel_mask",
    "pixel_values": "pixels",
    "pooler_output": "pooled",
    "position_ids": "positions",
    "pred_boxes": "boxes",
    "pred_masks": "masks",
    "predicted_depth": "depth",
    "sentence_embedding": "pooled",
    "text_embeds": "pooled",
    "token_type_ids": "token_types",
    "use_cache_branch": "switch",
}
"""Role by the ecosystem's port names: for graphs that come without a signature, and manifests of version 1."""


@dataclass(frozen=True, slots=True)
class Port:
    """One named tensor that enters or leaves a graph. `role` defaults to that of the name in `ROLES`."""

    name: str
    dtype: DType
    axes: tuple[Axis, ...]
    role: Role | None = None

    def __post_init__(self) -> None:
        if self.role is None:
            object.__setattr__(self, "role", ROLES.get(self.name, ""))

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "axes": list(self.axes), "role": self.role}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Port:
        """Raises ValueError for a role that this isoform does not know."""
        role = data.get("role")
        if role is not None and role not in get_args(Role):
            raise ValueError(f"the port {data['name']} has the unknown role {role!r}")
        return cls(data["name"], data["dtype"], tuple(data["axes"]), role)


@dataclass(frozen=True, slots=True)
class State:
    """A tensor that a step gives as the port `output` and the next step takes as the port `input`.

    `axes` are the input's. `grown`: the output's, where they differ (`append`: all slots so far).
    """

    input: str
    output: str
    axes: tuple[Axis, ...]
    kind: Kind = "append"
    grown: tuple[Axis, ...] = ()

    def taken(self) -> Port:
        return Port(self.input, "float", self.axes, "state")

    def given(self) -> Port:
        return Port(self.output, "float", self.grown or self.axes, "state")

    @property
    def slots(self) -> int | None:
        """The axis that has one entry per slot; None where the state has a fixed size."""
        found = (n for n, axis in enumerate(self.axes) if n and isinstance(axis, str))
        return next(found, None)

    def shape(self, batch: int, slots: int = 0) -> tuple[int, ...]:
        """The sizes of the input with so many rows and slots."""
        return tuple(axis if isinstance(axis, int) else slots if n else batch for n, axis in enumerate(self.axes))


@dataclass(frozen=True, slots=True)
class Size:
    """A relation between axes: `axis` is the sum of `terms`, divided by `divisor` (merged = patches / 4).

    `optional`: it may be 0 instead, where the model runs without what has that axis (a text without its pictures).
    """

    axis: str
    terms: tuple[str, ...]
    divisor: int = 1
    optional: bool = False

    def value(self, sizes: Mapping[str, int]) -> int | None:
        """The size that follows from the others; None while a term is unknown."""
        if not all(term in sizes for term in self.terms):
            return None
        return sum(sizes[term] for term in self.terms) // self.divisor

    def __str__(self) -> str:
        total = " + ".join(self.terms)
        text = f"{self.axis} = {total}" if self.divisor == 1 else f"{self.axis} = ({total}) / {self.divisor}"
        return f"{text}, or 0" if self.optional else text

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"axis": self.axis, "sum": list(self.terms), "divisor": self.divisor}
        return {**data, "optional": True} if self.optional else data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Size:
        return cls(data["axis"], tuple(data["sum"]), data["divisor"], bool(data.get("optional", False)))


SLOTS = (Size(TOTAL, (PAST, LENGTH)),)
"""The mask of a step spans the slots before it and its own."""


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs and outputs in positional order, the ports of states among them; `states` says which belong together.

    A graph with states can decode: a step takes what the last one gave.
    `units`: of an axis that a convolution reads (height, samples), the least size, which is also the step that makes
    one more position; elsewhere it is 1.
    `traced`: two sizes of an axis between which a graph is recorded, where what follows from any two would not tell the
    axes of the model apart (a map and the same map filled up to whole windows). No file holds it.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    states: tuple[State, ...] = ()
    sizes: tuple[Size, ...] = ()
    units: Mapping[str, int] = field(default_factory=dict)
    traced: Mapping[str, tuple[int, int]] = field(default_factory=dict, compare=False)

    def port(self, role: Role) -> Port | None:
        """The first input of a role."""
        return next((port for port in self.inputs if port.role == role), None)

    def output(self, role: Role) -> Port | None:
        """The first output of a role."""
        return next((port for port in self.outputs if port.role == role), None)

    def takes(self, *roles: Role) -> bool:
        """Whether there is an input of each role."""
        return all(self.port(role) is not None for role in roles)

    @property
    def given(self) -> tuple[Port, ...]:
        """The inputs of a step that are no states and no switch of them: what a caller brings."""
        return tuple(port for port in self.inputs if port.role not in ("state", "switch"))

    @property
    def results(self) -> tuple[Port, ...]:
        """The outputs that are no states."""
        return tuple(port for port in self.outputs if port.role != "state")

    def layout(self) -> tuple[int, int, int] | None:
        """(layers, heads, head size) where every state is a growing key or value of one shape; None elsewhere."""
        shapes = {(state.axes[1:], state.kind) for state in self.states}
        if len(shapes) != 1 or len(self.states) % 2:
            return None
        axes, kind = shapes.pop()
        if kind != "append" or len(axes) != 3 or not isinstance(axes[0], int) or not isinstance(axes[2], int):
            return None
        return len(self.states) // 2, axes[0], axes[2]

    def kept(self, *kinds: Kind) -> tuple[State, ...]:
        """The states of these kinds."""
        return tuple(state for state in self.states if state.kind in kinds)

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {
            "inputs": [port.to_json() for port in self.inputs],
            "outputs": [port.to_json() for port in self.outputs],
        }
        if self.states:
            data["states"] = [{"input": s.input, "output": s.output, "kind": s.kind} for s in self.states]
        if self.sizes:
            data["sizes"] = [size.to_json() for size in self.sizes]
        if self.units:
            data["units"] = dict(self.units)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Signature:
        """Of a manifest of version 1 or 2. Raises KeyError, TypeError or ValueError for what is none."""
        inputs = tuple(Port.from_json(port) for port in data["inputs"])
        outputs = tuple(Port.from_json(port) for port in data["outputs"])
        if "cache" in data:  # version 1: one layout for all layers
            return cls(*with_states(inputs, outputs), units=dict(data.get("units", {})))
        taken, given = ({port.name: port.axes for port in ports} for ports in (inputs, outputs))
        states = tuple(
            State(s["input"], s["output"], taken[s["input"]], _kind(s["kind"]), _other(taken, given, s))
            for s in data.get("states", ())
        )
        sizes = tuple(Size.from_json(size) for size in data.get("sizes", ()))
        return cls(inputs, outputs, states, sizes, dict(data.get("units", {})))


def _kind(name: str) -> Kind:
    if name not in get_args(Kind):
        raise ValueError(f"there is no kind of state {name!r}")
    return name  # type: ignore[return-value]


def _other(taken: Mapping[str, Any], given: Mapping[str, Any], state: Mapping[str, str]) -> tuple[Axis, ...]:
    """The output's axes where they are not the input's."""
    axes: tuple[Axis, ...] = given[state["output"]]
    return () if axes == taken[state["input"]] else axes


_PAST_PORT = re.compile(r"past_key_values\.(\d+\.(?:(?:de|en)coder\.)?(?:key|value))")


def with_states(
    inputs: Iterable[Port], outputs: Iterable[Port]
) -> tuple[tuple[Port, ...], tuple[Port, ...], tuple[State, ...], tuple[Size, ...]]:
    """Ports without roles of states, as the ecosystem names them -> inputs, outputs, states and sizes of a signature.

    `past_key_values.N.key` becomes `present.N.key`; `.encoder.` is computed once. Raises KeyError for a past whose
    present is missing.
    """
    given = {port.name: port for port in outputs}
    states: list[State] = []
    found: list[Port] = []
    for port in inputs:
        match = _PAST_PORT.fullmatch(port.name)
        if match is None:
            found.append(port)
            continue
        present = given[f"present.{match[1]}"]
        grown = () if present.axes == port.axes else present.axes
        state = State(port.name, present.name, port.axes, "once" if ".encoder." in port.name else "append", grown)
        states.append(state)
        found.append(state.taken())
        given[present.name] = state.given()
    sizes = SLOTS if states and any(TOTAL in port.axes for port in found) else ()
    return tuple(found), tuple(given.values()), tuple(states), sizes


def key_values(layers: int, heads: int, head_dim: int, *, side: str = "") -> Iterator[State]:
    """A growing key and value per layer, (B, heads, P, head_dim); `side` stands before "key" in the port's name."""
    for n in range(layers):
        for name in ("key", "value"):
            yield State(
                f"past_key_values.{n}.{side}{name}",
                f"present.{n}.{side}{name}",
                (BATCH, heads, PAST, head_dim),
                "append",
                (BATCH, heads, TOTAL, head_dim),
            )


def crossed_key_values(layers: int, heads: int, head_dim: int) -> Iterator[State]:
    """Per layer a growing key and value, then those of the encoder states, which the first step computes."""
    for n, state in enumerate(key_values(layers, heads, head_dim, side="decoder.")):
        yield state
        if n % 2:
            for name in ("key", "value"):
                yield State(
                    f"past_key_values.{n // 2}.encoder.{name}",
                    f"present.{n // 2}.encoder.{name}",
                    (BATCH, heads, PAST_ENCODER_LENGTH, head_dim),
                    "once",
                    (BATCH, heads, ENCODER_LENGTH, head_dim),
                )


def decoder_signature(
    layers: int, heads: int, head_dim: int, vocab: int, *, embeddings: int | None = None
) -> Signature:
    """Token ids in, logits out, with a key and a value per layer; serves prefill (P = 0) and decode alike.

    `embeddings`: their width, where they come in instead of ids.
    """
    states = tuple(key_values(layers, heads, head_dim))
    tokens = Port("input_ids", "int64", (BATCH, LENGTH), "tokens")
    if embeddings is not None:
        tokens = Port("inputs_embeds", "float", (BATCH, LENGTH, embeddings), "embeddings")
    return Signature(
        (
            tokens,
            Port("attention_mask", "int64", (BATCH, TOTAL), "mask"),
            Port("position_ids", "int64", (BATCH, LENGTH), "positions"),
            *(state.taken() for state in states),
        ),
        (Port("logits", "float", (BATCH, LENGTH, vocab), "logits"), *(state.given() for state in states)),
        states,
        SLOTS,
    )


def encoder_decoder_signature(
    layers: int, heads: int, head_dim: int, vocab: int, width: int, *, masked: bool = False
) -> Signature:
    """Token ids and encoder states (B, S, width) in, logits out: the decoder of an encoder-decoder model.

    It has no mask of its own: token t of a step stands at position P + t. While `use_cache_branch` is false the past is
    ignored, and the states of kind "once" are computed; while it is true what the step gives for them is empty, since
    those given as past stay valid. `masked`: the encoder states may be padded, `encoder_attention_mask` says where.
    """
    states = tuple(crossed_key_values(layers, heads, head_dim))
    mask = (Port("encoder_attention_mask", "int64", (BATCH, ENCODER_LENGTH), "encoder_mask"),) if masked else ()
    return Signature(
        (
            Port("input_ids", "int64", (BATCH, LENGTH), "tokens"),
            *mask,
            Port("encoder_hidden_states", "float", (BATCH, ENCODER_LENGTH, width), "encoder_states"),
            *(state.taken() for state in states),
            Port("use_cache_branch", "bool", (1,), "switch"),
        ),
        (Port("logits", "float", (BATCH, LENGTH, vocab), "logits"), *(state.given() for state in states)),
        states,
    )
