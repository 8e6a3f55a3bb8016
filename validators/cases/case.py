"""One case of a check: rows of tokens, pictures, sound or encoder states, and how they are batched.

The truth about a row is what the reference gives for that row alone, unpadded and in one pass. Every case (a batch, a
padding, a cache filled in several steps) must give each of its rows that same result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from isoform.errors import InputError
from isoform.signature import (
    BATCH,
    DOCUMENT,
    ENCODER_LENGTH,
    LENGTH,
    PICTURES,
    SENTENCES,
    TOTAL,
    Port,
    Signature,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SHORT, LONG, STEPS = 7, 24, 8  # tokens; the last that many of a long row are decoded with a cache
ENCODER_STATES = "encoder_states"
"""The key of a row's encoder states among its arrays; they go into the port of that role."""


SLICED = ("tokens", "embeddings", "token_types", "positions")
"""Roles of inputs that have an entry per new slot."""
EMBEDDED = 251
"""Different embeddings that token ids are given where a graph takes embeddings; a prime, so that few ids share one."""


@dataclass(frozen=True, eq=False)
class Row:
    """One input alone: tokens int64 (T,), their types (T,) or (T, kinds), and by port the arrays that are no tokens.

    `media` arrays are by port and without the batch axis: pixel_values (C, H, W), input_values (samples,); encoder
    states (S, C) have the key `ENCODER_STATES`. A row without tokens is
    as long as the last axis of its first array. `asked` spares a long row the logits of its beginning.
    """

    tokens: NDArray[np.int64]
    types: NDArray[np.int64]
    media: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    asked: int = 0  # of the first output only so many last positions are looked at; 0: all of them

    def __len__(self) -> int:
        if self.media and not len(self.tokens):
            return int(next(iter(self.media.values())).shape[-1])
        return len(self.tokens)

    def types_for(self, port: Port) -> NDArray[np.int64]:
        """The types as a port takes them; of a row without a table, all of a token's types are the same."""
        return self.types if len(port.axes) == self.types.ndim + 1 else self.types[:, None].repeat(port.axes[2], 1)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Case:
    """Rows together in a batch, shorter ones padded on one side: tokens by other tokens, sound by zeros.

    `group` names what is tried ("left padding"), `detail` the particulars (lengths, sizes). `chunks`: instead of one
    pass the cache is filled by these numbers of slots, one step each; the first chunk is padded, the others are not.
    `order`: after the first chunk the decoder goes on with these of its rows. `optional`: a session may refuse the
    case, as not every backend has every input. `natural`: the rows are real text, a picture or speech.
    """

    group: str
    rows: tuple[Row, ...]
    side: Literal["left", "right"] = "right"
    chunks: tuple[int, ...] = ()
    last_only: bool = False  # with chunks: ask for the logits of each step's last slot, as generation does
    optional: bool = False
    order: tuple[int, ...] = ()
    detail: str = ""
    natural: bool = False
    mask: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        import numpy as np

        width, tail = max(map(len, self.rows)), sum(self.chunks[1:])
        mask = np.ones((len(self.rows), width), np.int64)
        for line, row in zip(mask, self.rows, strict=True):
            missing = width - len(row)
            line[slice(0, missing) if self.side == "left" else slice(width - tail - missing, width - tail)] = 0
        object.__setattr__(self, "mask", mask)

    @property
    def name(self) -> str:
        """The group and the particulars; no other case of the model has it."""
        return f"{self.group}, {self.detail}" if self.detail else self.group

    def inputs(self, signature: Signature) -> dict[str, NDArray[Any]]:
        """Every input port for one pass over all slots. Padded slots hold tokens too: nobody may look at them."""
        return {port.name: self._port(signature, port) for port in signature.inputs}

    def _port(self, signature: Signature, port: Port) -> NDArray[Any]:
        import numpy as np

        if port.name in self.rows[0].media:
            return self._stacked([row.media[port.name] for row in self.rows])
        match port.role:
            case "tokens":
                return self._padded([row.tokens for row in self.rows])
            case "boxes" if port.axes[1:] == (LENGTH, 4):
                return boxed(self._padded([row.tokens for row in self.rows]))
            case "pixels" if may_be_left_out(signature, port):
                return np.zeros((0, *map(int, port.axes[1:])), np.float32)
            case "embeddings":
                return embedded(self._padded([row.tokens for row in self.rows]), port)
            case "token_types":
                return self._padded([row.types_for(port) for row in self.rows])
            case "mask":
                return self.mask
            case "positions":
                return np.maximum(self.mask.cumsum(1) - 1, 0)
            case "encoder_states" | "encoder_mask":
                return self.encoder_inputs(signature)[port.name]
            case "switch":
                return np.zeros(1, bool)
            case "state":
                state = next(state for state in signature.states if state.input == port.name)
                return np.zeros(state.shape(len(self.rows)), np.float32)
        raise InputError(f"the validators do not know what to feed into the port {port.name!r} {port.axes}")

    def encoder_inputs(self, signature: Signature) -> dict[str, NDArray[Any]]:
        """The encoder states of the rows, shorter ones padded on the case's side, and the mask of them, by port."""
        import numpy as np

        lengths = [len(row.media[ENCODER_STATES]) for row in self.rows]
        states = np.zeros((len(lengths), max(lengths), self.rows[0].media[ENCODER_STATES].shape[-1]), np.float32)
        mask = np.zeros(states.shape[:2], np.int64)
        for line, real, row, length in zip(states, mask, self.rows, lengths, strict=True):
            slots = slice(max(lengths) - length, None) if self.side == "left" else slice(0, length)
            line[slots], real[slots] = row.media[ENCODER_STATES], 1
        ports = ((signature.port("encoder_states"), states), (signature.port("encoder_mask"), mask))
        return {port.name: array for port, array in ports if port is not None}

    def _padded(self, rows: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
        import numpy as np

        out = np.stack([np.resize(row[::-1], (self.mask.shape[1], *row.shape[1:])) for row in rows])
        for line, mask, row in zip(out, self.mask, rows, strict=True):
            line[mask == 1] = row
        return out

    def _stacked(self, rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
        import numpy as np

        if not rows[0].ndim:
            return np.stack(rows)
        out = np.zeros((len(rows), *rows[0].shape[:-1], max(row.shape[-1] for row in rows)), rows[0].dtype)
        for line, row in zip(out, rows, strict=True):
            missing = line.shape[-1] - row.shape[-1]
            line[..., missing if self.side == "left" else 0 :][..., : row.shape[-1]] = row
        return out

    def steps(self, signature: Signature) -> Iterator[tuple[slice, dict[str, NDArray[Any]]]]:
        """The slots of each chunk, and its inputs but for states and encoder states, by port."""
        inputs = self.inputs(signature)
        sliced = [port.name for port in signature.given if port.role in SLICED]
        mask = signature.port("mask")
        start = 0
        for chunk in self.chunks:
            slots = slice(start, start + chunk)
            feed = {name: inputs[name][:, slots] for name in sliced}
            yield slots, feed if mask is None else {**feed, mask.name: self.mask[:, : slots.stop]}
            start = slots.stop


def embedded(ids: NDArray[np.int64], port: Port) -> NDArray[np.float32]:
    """Embeddings for token ids, made up but the same for the same id: (B, T) -> (B, T, C)."""
    import numpy as np

    width = port.axes[-1]
    if not isinstance(width, int):
        raise InputError(f"the port {port.name} has no fixed number of channels; export the model again")
    table = np.random.default_rng(width).standard_normal((EMBEDDED, width)).astype(np.float32)
    return np.asarray(table[ids % EMBEDDED], np.float32)


def boxed(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Boxes for token ids, in thousandths of a page, made up but the same for the same id: (B, T) -> (B, T, 4)."""
    import numpy as np

    corners = np.random.default_rng(4).integers(0, 1001, (EMBEDDED, 2, 2))
    table = np.sort(corners, 1).reshape(EMBEDDED, 4)  # left and top, then right and bottom
    return np.asarray(table[ids % EMBEDDED], np.int64)


def may_be_left_out(signature: Signature, port: Port) -> bool:
    """Whether the first axis of an input may be 0."""
    return any(size.axis == port.axes[0] and size.optional for size in signature.sizes)


def real(port: Port, output: NDArray[Any], case: Case, row: int, want: tuple[int, ...]) -> NDArray[Any]:
    """The values of an output, without its batch axis, that stand for the tokens of one row of a case.

    Of padded sound or encoder states, the first frames, as many as `want` has, the shape for the row alone. Where a
    second axis is the batch as well (logits of every picture for every text), its own entry.
    """
    import numpy as np

    mask = case.mask[row]
    padded = not mask.all()
    cut = longest_states([case.rows[row]]) < longest_states(case.rows)
    for axis, name in enumerate(port.axes[1:]):
        if name in (LENGTH, TOTAL):
            output = output.compress(mask[-output.shape[axis] :] != 0, axis) if output.shape[axis] else output
        elif name == DOCUMENT:  # behind the tokens, which may be padded, everything counts
            kept = np.ones(output.shape[axis], bool)
            kept[: len(mask)] = mask
            output = output.compress(kept, axis)
        elif name in (BATCH, PICTURES, SENTENCES):
            output = output[(slice(None),) * axis + (slice(row, row + 1),)]
        elif isinstance(name, str) and cut and name == ENCODER_LENGTH and case.side == "left":
            output = output[(slice(None),) * axis + (slice(output.shape[axis] - want[axis], None),)]
        elif isinstance(name, str) and (padded or (cut and name == ENCODER_LENGTH)):
            output = output[(slice(None),) * axis + (slice(want[axis]),)]
    return output


def longest_states(rows: Sequence[Row]) -> int:
    """The largest number of encoder states of a row; 0 where there are none."""
    return max(len(row.media[ENCODER_STATES]) if ENCODER_STATES in row.media else 0 for row in rows)
