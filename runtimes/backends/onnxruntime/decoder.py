"""Decoding in ONNX Runtime: one cache that every pass extends, and as little Python as there can be between two."""

from __future__ import annotations

from collections.abc import Mapping
from sys import getrefcount, maxsize
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from isoform.runtimes.backends.decoder import SteppingDecoder, extended, following
from isoform.runtimes.backends.onnxruntime.library import IN_PLACE, MASK_END, START, errors, failed
from isoform.signature import TOTAL, Signature

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCORES = 2**22  # slots times slots that one pass may attend to: a layer holds as many floats for every head
FIRST_CAPACITY = 256  # slots of a new cache; it doubles when it is full


class Graph(Protocol):
    """What a decoder needs of the session that it belongs to."""

    signature: Signature
    types: dict[str, str]  # NumPy's, by port
    device: tuple[str, int]
    cache: str | None  # how it grows: IN_PLACE, GROWS or unknown
    trims: bool  # whether START is an input
    follows: bool  # whether MASK_END is one, too

    @property
    def native(self) -> Any: ...

    @property
    def extends_rows_alone(self) -> bool: ...

    def value(self, array: NDArray[Any]) -> Any: ...


class OnnxRuntimeDecoder(SteppingDecoder):
    """The cache stays on the device.

    Where the graph says that it appends in place, past and present are one buffer with room to spare; elsewhere what
    it gives as present goes in again as past, a copy of the whole cache per pass.
    """

    def __init__(self, session: Graph, batch: int) -> None:
        super().__init__(session.signature, batch)
        self._session = session
        self._in_place = session.cache == IN_PLACE
        self._capacity = FIRST_CAPACITY if self._in_place else 0
        self._plain = session.types.get(session.signature.outputs[0].name) == "float32"
        inputs = {port.name: session.types[port.name] for port in self._ports.inputs}
        usual = inputs == dict.fromkeys(("input_ids", "attention_mask", "position_ids"), "int64")
        alike = usual and self._plain and session.follows and session.device[0] == "cpu"
        self._follows = self._in_place and alike  # whether the steps of single tokens read and fill the same arrays
        self._token: NDArray[np.int64] | None = None  # where the last step's tokens were, if they can be followed
        self._followed: Followed | None = None
        self._keep(self._room(batch))

    def step(
        self,
        input_ids: NDArray[Any],
        attention_mask: NDArray[Any] | None = None,
        position_ids: NDArray[Any] | None = None,
        *,
        all_logits: bool = False,
    ) -> NDArray[np.float32]:
        """See `Decoder.step`.

        A pass over the weights leaves nothing of Python in the processor's caches, so that a line between two passes
        takes as long as ten do elsewhere: there are few where tokens come in the array of the step before.
        """
        if attention_mask is None and position_ids is None and not all_logits:
            if input_ids is self._token:
                followed = self._followed or self._follow(input_ids)
                if followed.past < self._capacity:
                    return followed.step()
            self._token = input_ids if self._follows and is_token(input_ids) else None
        self._leave()
        return super().step(input_ids, attention_mask, position_ids, all_logits=all_logits)

    def select(self, rows: NDArray[np.int64]) -> None:
        """See `Decoder.select`."""
        self._leave()
        super().select(rows)

    def _follow(self, token: NDArray[np.int64]) -> Followed:
        self._followed = Followed(self._bound, token, self._mask, self._at, self._capacity)
        return self._followed

    def _leave(self) -> None:
        if self._followed is not None:
            self._mask, self._at, self._followed = self._followed.mask, self._followed.at, None

    def _piece(self, total: int) -> int:
        if self._session.trims:
            return max(SCORES // (len(self._mask) * total), 1)
        return super()._piece(total)

    def _room(self, batch: int) -> dict[str, NDArray[Any]]:
        """Zeros with the capacity's slots for every state."""
        types = self._session.types
        return {s.input: np.zeros(s.shape(batch, self._capacity), types[s.input]) for s in self.states}

    def _keep(self, room: Mapping[str, NDArray[Any]]) -> None:
        """Take these arrays as the cache; on the CPU it is in them, and elsewhere copied from them."""
        self._on_cpu = room if self._session.device[0] == "cpu" else {}
        past = {name: self._session.value(array) for name, array in room.items()}
        self._bound = Bound(self._session, past, self._in_place)

    def _reorder(self, rows: NDArray[np.int64], past: int) -> None:
        if not self._in_place:
            self._bound.reorder({name: value.numpy()[rows] for name, value in self._bound.past.items()})
            return
        room = self._room(len(rows))
        for name, value in self._bound.past.items():
            room[name][:, :, :past] = value.numpy()[rows, :, :past]
        self._keep(room)

    def _grow(self, batch: int, past: int, needed: int) -> None:
        while self._capacity < needed:
            self._capacity *= 2
        room = self._room(batch)
        for name, value in self._bound.past.items():
            room[name][:, :, :past] = value.numpy()[:, :, :past]
        self._keep(room)

    def _pass(
        self, feeds: dict[str, NDArray[Any]], past: int, length: int, *, all_logits: bool, needed: bool
    ) -> NDArray[np.float32]:
        batch = len(feeds["input_ids"])
        if self._in_place and past + length > self._capacity:
            self._grow(batch, past, past + length)
        if batch == 1 or length == 1 or not (past and self._session.extends_rows_alone):
            logits = self._bound.run(feeds, all_logits)
        elif self._in_place and self._on_cpu:
            logits = np.concatenate([self._row(feeds, n, all_logits) for n in range(batch)])
        else:
            slots = [self._bound.run(self._slot(feeds, past, n), True) for n in range(length)]
            logits = np.concatenate(slots, 1) if all_logits else slots[-1][:, -1]
        return logits if self._plain else logits.astype(np.float32)

    def _row(self, feeds: dict[str, NDArray[Any]], n: int, all_logits: bool) -> NDArray[Any]:
        """All new slots of row `n` alone: logits (1, T, V), or (1, V) of the last."""
        past = {name: self._session.value(array[n : n + 1]) for name, array in self._on_cpu.items()}
        row = {name: array[n : n + 1] for name, array in feeds.items()}
        return Bound(self._session, past, self._in_place).run(row, all_logits)

    def _slot(self, feeds: dict[str, NDArray[Any]], past: int, n: int) -> dict[str, NDArray[Any]]:
        """New slot `n` alone, of all rows."""
        axes = {port.name: port.axes for port in self._ports.inputs}
        return {
            name: array[:, : past + n + 1] if TOTAL in axes[name] else array[:, n : n + 1]
            for name, array in feeds.items()
        }


class Followed:
    """Steps of one token per row, whose arrays stay where they are and are bound once."""

    def __init__(
        self, bound: Bound, token: NDArray[np.int64], mask: NDArray[np.int64], at: NDArray[np.int64], capacity: int
    ) -> None:
        self.past = self._start = mask.shape[1]
        self._bound, self._first = bound, at.tolist()
        self._mask, self._end = extended(mask, capacity - self.past), np.array([self.past])
        self._positions = following(at, 1)
        feeds = {"input_ids": token, "attention_mask": self._mask, "position_ids": self._positions}
        bound.bind(feeds, all_logits=False, end=self._end)

    @property
    def mask(self) -> NDArray[np.int64]:
        """Of the slots so far, (B, P)."""
        return self._mask[:, : self.past]

    @property
    def at(self) -> NDArray[np.int64]:
        """The positions of the last tokens, (B,)."""
        return np.array(self._first) + self.past - self._start

    def step(self) -> NDArray[np.float32]:
        """Logits (B, V) after the tokens that are in their array now."""
        self.past += 1
        self._end[0] = self.past
        made = self.past - self._start
        for row, first in enumerate(self._first):  # what NumPy does to whole arrays takes longer than so few numbers
            self._positions[row, 0] = first + made
        return self._bound.go(all_logits=False)


class Bound:
    """A session bound to a cache, which every run extends."""

    def __init__(self, session: Graph, past: dict[str, Any], in_place: bool) -> None:
        self.past = past
        self._session, self._in_place = session, in_place
        self._presents = [state.output for state in session.signature.states]
        self._starts = np.array([-1]), np.array([0])  # by whether all logits are asked for
        self._whole = np.array([maxsize])
        self._held: dict[str, NDArray[Any]] = {}  # what is bound, by input: ONNX Runtime does not hold it
        self._rooms: list[Room] = []
        self._room: Room | None = None  # which of them is bound
        self._binding = session.native.io_binding()
        self._bind_cache()

    def reorder(self, past: Mapping[str, NDArray[Any]]) -> None:
        """Go on with this cache."""
        self._own = past
        self.past = {name: self._session.value(array) for name, array in past.items()}
        self._bind_cache()

    def run(self, feeds: Mapping[str, NDArray[Any]], all_logits: bool) -> NDArray[Any]:
        """Logits (B, T, V), or (B, V) of the last slot."""
        self.bind(feeds, all_logits)
        return self.go(all_logits)

    def bind(self, feeds: Mapping[str, NDArray[Any]], all_logits: bool, end: NDArray[np.int64] | None = None) -> None:
        """Make the next runs read these arrays; of the mask, the columns before `end`."""
        session, (batch, length) = self._session, feeds["input_ids"].shape
        given = {name: np.ascontiguousarray(array, session.types[name]) for name, array in feeds.items()}
        if session.trims:
            given[START] = self._starts[all_logits]
        if session.follows:
            given[MASK_END] = self._whole if end is None else end
        for name, array in given.items():
            if self._held.get(name) is not array or session.device[0] != "cpu":  # there it is copied now
                self._binding.bind_cpu_input(name, array)
                self._held[name] = array
        self._bind_room(batch, length if all_logits or not session.trims else None)

    def go(self, all_logits: bool) -> NDArray[Any]:
        """Run what is bound."""
        room = self._room
        if room is not None and not room.is_free():
            room = self._bind_room(*room.shape)
        try:
            self._session.native.run_with_iobinding(self._binding)
        except errors() as error:
            raise failed(error) from None
        if room is not None and room.shape[1] is None and self._in_place:
            return room.array
        *presents, made = self._binding.get_outputs()  # in the order in which they were bound first
        if not self._in_place:
            self.past = dict(zip(self.past, presents, strict=True))
            self._bind_cache()
        logits: NDArray[Any] = made.numpy() if room is None else room.array
        return logits if all_logits or logits.ndim == 2 else logits[:, -1]

    def _bind_cache(self) -> None:
        for (name, value), present in zip(self.past.items(), self._presents, strict=True):
            self._binding.bind_ortvalue_input(name, value)
            if self._in_place:
                self._binding.bind_ortvalue_output(present, value)
            else:
                self._binding.bind_output(present, *self._session.device)

    def _bind_room(self, batch: int, slots: int | None) -> Room | None:
        """Where the logits will be: a room that is free, None when only the run makes it."""
        logits, session = self._session.signature.outputs[0], self._session
        kind, width = session.types.get(logits.name), logits.axes[-1]
        if session.device[0] != "cpu" or kind is None or not isinstance(width, int):
            self._binding.bind_output(logits.name, "cpu")
            self._room = None
            return None
        for room in self._rooms:
            if room.shape == (batch, slots) and room.is_free():
                break
        else:
            room = Room(session, batch, slots, width, kind)
            self._rooms = [*self._rooms[-1:], room]
        if room is not self._room:
            self._binding.bind_ortvalue_output(logits.name, room.value)
            self._room = room
        return room


class Room:
    """An array for logits, used again once nobody else holds it: fresh memory costs more than what is done with it.

    (B, slots, V), or (B, V) without `slots`: the last one's.
    """

    def __init__(self, session: Graph, batch: int, slots: int | None, width: int, kind: str) -> None:
        self.shape = batch, slots
        self.array: NDArray[Any] = np.empty((batch, width) if slots is None else (batch, slots, width), kind)
        self._whole = self.array.reshape(batch, slots or 1, width)
        self.value = session.value(self._whole)
        self._own = getrefcount(self.array)

    def is_free(self) -> bool:
        return getrefcount(self.array) == self._own


def is_token(ids: Any) -> bool:
    """Whether these are tokens (B, 1) that ONNX Runtime can read where they are."""
    return type(ids) is np.ndarray and ids.dtype == np.int64 and ids.shape[1:] == (1,) and ids.flags.c_contiguous
