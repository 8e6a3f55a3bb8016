"""Decoding in ONNX Runtime: one cache that every pass extends, and as little Python as there can be between two."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from sys import getrefcount, maxsize
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from isoform.runtimes.backends.decoder import GraphDecoder, Kept, assembled, fitting, put
from isoform.runtimes.backends.onnxruntime.library import IN_PLACE, MASK_END, ROW_GAPS, START, errors, failed
from isoform.signature import Signature

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCORES = 2**22  # slots times slots that one pass may attend to: a layer holds as many floats for every head
PIECE = 256  # slots of one prompt in a pass: attention computes all pairs of them, of which half count
FIRST_CAPACITY = 256  # slots of a new cache; it doubles when it is full


class DecodingGraph(Protocol):
    """What a decoder needs of the session that it belongs to."""

    signature: Signature
    types: dict[str, str]  # NumPy's, by port
    device: tuple[str, int]
    cache: str | None  # how it grows: IN_PLACE, GROWS or unknown
    trims: bool  # whether START is an input
    follows: bool  # whether MASK_END is one
    ragged: bool  # whether ROW_GAPS is one
    hidden: str | None  # the output of the hidden states, where there is one

    @property
    def native(self) -> Any: ...

    @property
    def extends_rows_alone(self) -> bool: ...

    def value(self, array: NDArray[Any]) -> Any: ...

    def deep(self) -> DecodingGraph: ...


class OnnxRuntimeDecoder(GraphDecoder):
    """The states stay on the device.

    Where the graph says that it appends in place, past and present are one buffer with room to spare; elsewhere what
    it gives as present goes in again as past, a copy of the whole cache per pass.
    """

    def __init__(
        self, session: DecodingGraph, rows: int | Mapping[str, NDArray[Any]], *, capacity: int | None = None
    ) -> None:
        """`capacity`: the slots that there is room for at first, where the cache grows in place."""
        super().__init__(session.signature, rows)
        self._use(session, capacity)

    def _use(self, session: DecodingGraph, capacity: int | None) -> None:
        """Decode with this graph, from the beginning."""
        self._session = session
        masked = self._masks is not None
        self._in_place = session.cache == IN_PLACE and masked
        self._capacity = (capacity or FIRST_CAPACITY) if self._in_place else 0
        self.hands_over = True
        self._in_groups = session.device[0] == "cpu"  # a GPU is fastest with all rows together
        self._aligns_left = self._in_place and session.ragged
        self._gaps: NDArray[np.int32] | None = None  # by how many slots rows end before the longest, if some do
        # Grouped-query attention extends a cache by several slots for a batch of one only; it may be in a branch.
        self._rows_alone = session.extends_rows_alone or not masked
        self._plain = session.types.get(session.signature.results[0].name) == "float32"
        ports = {port.role: (session.types[port.name], len(port.axes)) for port in self._ports.inputs}
        usual = ports == dict.fromkeys(("tokens", "mask", "positions"), ("int64", 2))
        alike = usual and self._plain and session.trims and session.follows and session.device[0] == "cpu"
        self._follows = self._in_place and alike  # whether the steps of single tokens read and fill the same arrays
        self._token: NDArray[np.int64] | None = None  # where the last step's tokens were, if they can be followed
        self._followed: Followed | None = None
        self._keep(self._room(len(self)))

    def step(
        self,
        tokens: NDArray[Any] | Mapping[str, NDArray[Any]],
        *,
        mask: NDArray[Any] | None = None,
        positions: NDArray[Any] | None = None,
        last: int | None = 1,
    ) -> NDArray[np.float32]:
        """See `Decoder.step`.

        A pass over the weights leaves nothing of Python in the processor's caches, so that a line between two passes
        takes as long as ten do elsewhere: there are few where tokens come in the array of the step before.
        """
        if mask is None and positions is None and last == 1:
            if tokens is self._token:
                followed = self._followed or self._follow(self._token)
                if followed.past < self._capacity:
                    return followed.step()
            self._token = tokens if self._follows and is_token(tokens) else None  # type: ignore[assignment]
        self._leave()
        return super().step(tokens, mask=mask, positions=positions, last=last)

    def keep_hidden_states(self) -> None:
        """See `GraphDecoder.keep_hidden_states`."""
        deep = self._session.deep()
        self._go_deep()
        self._use(deep, None)
        self._in_groups = self._follows = False

    def _follow(self, token: NDArray[np.int64]) -> Followed:
        given = self._bound, self._ports, token, self._mask, self._at, self._capacity
        gaps = self._find_gaps()
        self._followed = Followed(*given) if gaps is None else RaggedFollowed(*given, gaps)
        return self._followed

    def _find_gaps(self) -> NDArray[np.int32] | None:
        """By how many slots each row ends before the longest one; None where all end at one slot."""
        if not self._aligns_left or len(self) == 1 or not self._mask.shape[1] or self._mask[:, -1].all():
            return None
        gaps = np.where(self._mask.any(1), self._mask[:, ::-1].argmax(1), self._mask.shape[1])
        return gaps.astype(np.int32)

    def _behind(self, old: NDArray[np.int64], new: NDArray[np.int64]) -> NDArray[np.int64]:
        self._gaps = self._find_gaps()
        if self._gaps is None:
            return super()._behind(old, new)
        (batch, past), length = old.shape, new.shape[1]
        whole = np.zeros((batch, past + length), np.int64)
        whole[:, :past] = old
        ends = past - self._gaps.astype(np.int64)
        whole[np.arange(batch)[:, None], ends[:, None] + np.arange(length)] = new
        return whole

    def _tidy(self) -> None:
        if self._aligns_left and self.slots:
            slots = int(np.flatnonzero(self._mask.any(0)).max(initial=-1)) + 1
            self._mask, self._places, self._slots = self._mask[:, :slots], self._places[:, :slots], slots
        super()._tidy()

    @property
    def slots(self) -> int:
        """See `GraphDecoder.slots`."""
        return self._slots if self._followed is None else self._followed.past

    def _leave(self) -> None:
        if self._followed is not None:
            self._slots, self._followed = self._followed.past, None

    def _settle(self) -> None:
        self._leave()
        super()._settle()

    def _piece(self, total: int) -> int:
        if self._session.trims and self._masks is not None:
            most = max(SCORES // (len(self._mask) * total), 1)
            return min(most, PIECE) if self._in_place and len(self._mask) == 1 else most
        return super()._piece(total)

    def _room(self, batch: int) -> dict[str, NDArray[Any]]:
        """Zeros with the capacity's slots for every state."""
        types = self._session.types
        return {s.input: np.zeros(s.shape(batch, self._capacity), types[s.input]) for s in self.states}

    def _keep(self, room: Mapping[str, NDArray[Any]]) -> None:
        """Take these arrays as the states; on the CPU they are in them, and elsewhere copied from them."""
        self._on_cpu = room if self._session.device[0] == "cpu" and self._in_place else {}
        past = {name: self._session.value(array) for name, array in room.items()}
        self._bound = Bound(self._session, self._ports, past, self._in_place, self._held)
        if not self._in_place:
            self._bound.own(room)

    def _begun(self, rows: int, slots: int) -> OnnxRuntimeDecoder:
        return type(self)(self._session, rows, capacity=slots)

    def _slots_of_states(self) -> dict[str, NDArray[Any]]:
        return {name: value.numpy()[:, :, : self.slots] for name, value in self._bound.past.items()}

    def _load(self, states: Mapping[str, NDArray[Any]], rows: Sequence[NDArray[np.int64]], slots: int) -> None:
        self._capacity = fitting(slots + 1, FIRST_CAPACITY) if self._in_place else slots
        room = self._room(len(rows))
        for name, array in room.items():
            for n, kept in enumerate(rows):
                if kept.size:
                    put(array[n], 1, len(kept) if self._aligns_left else slots, states[name][n], kept)
        self._capacity = self._capacity if self._in_place else 0
        self._keep(room)

    def _reorder(self, rows: NDArray[np.int64], held: NDArray[np.int64] | None, slots: int) -> None:
        past = self._bound.past
        if self._on_cpu and self._moves(rows, slots):
            return
        if self._in_place:
            self._capacity = fitting(slots + 1, FIRST_CAPACITY)
            room = self._room(len(rows))
            for name, value in past.items():
                room[name][:, :, :slots] = value.numpy()[rows, :, :slots]
            self._keep(room)
            return
        orders = {s.input: held if s.kind == "once" else rows for s in self.states}
        self._bound.replace({name: past[name].numpy()[n] for name, n in orders.items() if n is not None})
        if held is not None:
            self._bound.hold(self._held)

    def _moves(self, rows: NDArray[np.int64], slots: int) -> bool:
        """Make the states those of these rows where they lie, copying only rows that move; whether that is worth it."""
        owners = {name: array if array.base is None else array.base for name, array in self._on_cpu.items()}
        room = len(next(iter(owners.values())))
        if not room / 2 <= len(rows) <= room or self._capacity > fitting(slots + 1, FIRST_CAPACITY):
            return False  # a room of the size that is needed now is smaller, or there is no room
        moved = np.flatnonzero(rows != np.arange(len(rows)))
        before, parents = len(next(iter(self._on_cpu.values()))), rows[moved]
        for owner in owners.values():
            owner[moved, :, :slots] = owner[parents, :, :slots]
        if len(rows) != before:
            self._keep({name: owner[: len(rows)] for name, owner in owners.items()})
        return True

    def _truncate(self, slots: int) -> None:
        if not self._in_place:
            grown = [state for state in self.states if state.kind == "append"]
            values = {s.input: self._bound.past[s.input].numpy() for s in grown}
            self._bound.replace({name: np.ascontiguousarray(array[:, :, :slots]) for name, array in values.items()})

    def _rebuild(self, plan: Sequence[Kept], slots: int) -> None:
        types = self._session.types
        if not self._in_place:
            self._keep(
                {
                    state.input: assembled(
                        state,
                        plan,
                        slots,
                        {id(kept.decoder): kept.decoder._bound.past[state.input].numpy() for kept in plan},
                        partial(np.zeros, dtype=types[state.input]),
                    )
                    for state in self.states
                }
            )
            return
        sources = {id(kept.decoder): kept.decoder._bound.past for kept in plan}
        self._capacity = fitting(slots + 1, FIRST_CAPACITY)
        room = self._room(len(plan))
        for name, array in room.items():
            whole = {source: values[name].numpy() for source, values in sources.items()}
            for n, kept in enumerate(plan):
                if kept.slots.size:
                    end = len(kept.slots) if self._aligns_left else slots
                    put(array[n], 1, end, whole[id(kept.decoder)][kept.row], kept.slots)
        self._keep(room)

    def _grow(self, batch: int, past: int, needed: int) -> None:
        self._capacity = fitting(needed, self._capacity)
        room = self._room(batch)
        for name, value in self._bound.past.items():
            room[name][:, :, :past] = value.numpy()[:, :, :past]
        self._keep(room)

    def _pass(
        self, feeds: dict[str, NDArray[Any]], past: int, length: int, *, last: int | None, needed: bool
    ) -> NDArray[np.float32]:
        batch = len(self)
        if self._in_place and past + length > self._capacity:
            self._grow(batch, past, past + length)
        hidden: list[NDArray[Any]] = []
        together = 1  # the axis along which parts of the pass are put together
        if batch == 1 or length == 1 or not (past and self._rows_alone):
            logits = self._bound.run(self._ended(feeds, past + length), last, self._gaps, hidden)
        elif self._in_place and self._on_cpu:
            feeds, together = self._ended(feeds, past + length), 0
            logits = np.concatenate([self._row(feeds, n, past + length, last, hidden) for n in range(batch)])
        else:
            cuts = (self._cut(feeds, n, n + 1, past + n + 1) for n in range(length))
            slots = [self._bound.run(cut, None, None, hidden) for cut in cuts]
            logits = slots[-1][:, -1] if last == 1 else np.concatenate(slots if last is None else slots[-last:], 1)
        if self._deep is not None:
            self._deep.append(np.concatenate(hidden, together).astype(np.float32, copy=False))
        return logits if self._plain else logits.astype(np.float32)

    def _ended(self, feeds: dict[str, NDArray[Any]], total: int) -> dict[str, NDArray[Any]]:
        """With a mask in which each row ends where it does after this pass, the longest with `total` slots."""
        if self._gaps is None or self._masks is None:
            return feeds
        mask = feeds[self._masks.name]
        return {**feeds, self._masks.name: mask * (np.arange(mask.shape[1]) < total - self._gaps[:, None])}

    def _row(
        self, feeds: dict[str, NDArray[Any]], n: int, total: int, last: int | None, hidden: list[NDArray[Any]]
    ) -> NDArray[Any]:
        """All new slots of row `n` alone: logits (1, T, V), or (1, V) of the last."""
        past = {name: self._session.value(array[n : n + 1]) for name, array in self._on_cpu.items()}
        rows = {port.name: len(port.axes) - 2 for port in self._ports.inputs if port is self._counts}
        row = {name: array[(slice(None),) * rows.get(name, 0) + (slice(n, n + 1),)] for name, array in feeds.items()}
        if self._gaps is not None and self._masks is not None:
            row[self._masks.name] = row[self._masks.name][:, : total - int(self._gaps[n])]
        return Bound(self._session, self._ports, past, self._in_place, {}).run(row, last, None, hidden)


class Followed:
    """Steps of one token per row, whose arrays stay where they are and are bound once."""

    def __init__(
        self,
        bound: Bound,
        ports: Signature,
        token: NDArray[np.int64],
        mask: NDArray[np.int64],
        at: NDArray[np.int64],
        capacity: int,
    ) -> None:
        self.past = self._start = mask.shape[1]
        self._bound, self._first = bound, at.tolist()
        self._mask, self._end = np.ones((len(mask), capacity), np.int64), np.array([self.past])
        self._mask[:, : self.past] = mask
        self._positions = at[:, None] + 1
        arrays: dict[Any, NDArray[np.int64]] = {"tokens": token, "mask": self._mask, "positions": self._positions}
        feeds = {port.name: arrays[port.role] for port in ports.inputs}
        bound.bind(feeds, last=1, end=self._end, gaps=self._find_gaps())

    def _find_gaps(self) -> NDArray[np.int32] | None:
        return None

    def step(self) -> NDArray[np.float32]:
        """Logits (B, V) after the tokens that are in their array now."""
        self.past += 1
        self._end[0] = self.past
        made = self.past - self._start
        for row, first in enumerate(self._first):  # what NumPy does to whole arrays takes longer than so few numbers
            self._positions[row, 0] = first + made
        return self._bound.go(1)


class RaggedFollowed(Followed):
    """The same for rows that end at slots of their own."""

    def __init__(
        self,
        bound: Bound,
        ports: Signature,
        token: NDArray[np.int64],
        mask: NDArray[np.int64],
        at: NDArray[np.int64],
        capacity: int,
        gaps: NDArray[np.int32],
    ) -> None:
        self._gaps = gaps
        super().__init__(bound, ports, token, mask, at, capacity)
        self._mask[:, self.past :] = 0
        self._ends = (self.past - gaps).tolist()

    def _find_gaps(self) -> NDArray[np.int32] | None:
        return self._gaps

    def step(self) -> NDArray[np.float32]:
        """See `Followed.step`."""
        made = self.past - self._start
        for row, end in enumerate(self._ends):
            self._mask[row, end + made] = 1
        return super().step()


class Bound:
    """A session bound to states, which every run extends, and to what it reads in every run (`held`)."""

    def __init__(
        self,
        session: DecodingGraph,
        ports: Signature,
        past: dict[str, Any],
        in_place: bool,
        held: Mapping[str, NDArray[Any]],
    ) -> None:
        signature = session.signature
        self.past = past
        self._session, self._in_place = session, in_place
        self._entry, self._logits = ports.inputs[0], signature.results[0]
        switch = signature.port("switch")
        self._switch = None if switch is None else switch.name
        self._filled: bool | None = None  # what it says
        self._once = {state.input for state in signature.kept("once")}
        self._states = [(state.input, state.output) for state in signature.states]
        self._growing = next(name for name, _ in self._states if name not in self._once)
        self._whole = np.array([maxsize])
        self._arrays: dict[str, NDArray[Any]] = {}  # what is bound, by input: ONNX Runtime does not hold it
        self._gaps = _NO_GAPS
        self._rooms: list[LogitsBuffer] = []
        self._room: LogitsBuffer | None = None  # which of them is bound
        self._taken: list[str] = []  # the states that the next run gives
        self._own: Mapping[str, NDArray[Any]] = {}  # states whose memory is ours
        self._binding = session.native.io_binding()
        self._deep = int(session.hidden is not None)  # how many outputs come before the states
        self._hidden: list[NDArray[Any]] = []  # the hidden states of the last run, if there are any
        self._bind_hidden()
        self.hold(held)
        self._bind_states(past)

    def hold(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Read these arrays in every run."""
        self._fixed = {n: np.ascontiguousarray(array, self._session.types[n]) for n, array in arrays.items()}
        self._values = {name: self._session.value(array) for name, array in self._fixed.items()}
        for name, value in self._values.items():
            self._binding.bind_ortvalue_input(name, value)

    def own(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Hold the memory of these states until a run has given new ones."""
        self._own = arrays

    def replace(self, past: Mapping[str, NDArray[Any]]) -> None:
        """Go on with these arrays as those states."""
        self._own = {**self._own, **past}
        self.past = {**self.past, **{name: self._session.value(array) for name, array in past.items()}}
        self._bind_states(past)

    def run(
        self,
        feeds: Mapping[str, NDArray[Any]],
        last: int | None,
        gaps: NDArray[np.int32] | None,
        hidden: list[NDArray[Any]],
    ) -> NDArray[Any]:
        """The logits of the last slots, see `Decoder.step`; where the graph gives hidden states, they are appended."""
        self.bind(feeds, last, gaps=gaps)
        self._bind_hidden()  # into memory of its own: the last run's has its shape
        logits = self.go(last)
        hidden += self._hidden
        return logits

    def bind(
        self,
        feeds: Mapping[str, NDArray[Any]],
        last: int | None,
        end: NDArray[np.int64] | None = None,
        gaps: NDArray[np.int32] | None = None,
    ) -> None:
        """Make the next runs read these arrays; of the mask, the columns before `end`. `gaps`: see `ROW_GAPS`."""
        session, (batch, length) = self._session, feeds[self._entry.name].shape[:2]
        given = {name: np.ascontiguousarray(array, session.types[name]) for name, array in feeds.items()}
        count = length if last is None else min(last, length)  # of the slots that get logits
        if session.trims:
            given[START] = _LAST if last == 1 else _ALL if count == length else np.array([-count])
        if session.follows:
            given[MASK_END] = self._whole if end is None else end
        if gaps is not None or self._gaps is not _NO_GAPS:  # until then, the graph has no gaps by itself
            self._gaps = np.zeros(1, np.int32) if gaps is None else gaps
            self._gaps_value = session.value(self._gaps)
            self._binding.bind_ortvalue_input(ROW_GAPS, self._gaps_value)
        for name, array in given.items():
            if self._arrays.get(name) is not array or session.device[0] != "cpu":  # there it is copied now
                self._binding.bind_cpu_input(name, array)
                self._arrays[name] = array
        self._bind_room(batch, None if session.trims and last == 1 else count if session.trims else length)

    def go(self, last: int | None) -> NDArray[Any]:
        """Run what is bound."""
        room = self._room
        if room is not None and not room.is_free():
            room = self._bind_room(*room.shape)
        try:
            self._session.native.run_with_iobinding(self._binding)
        except errors() as error:
            raise failed(error) from None
        if self._deep:
            self._hidden = [self._binding.get_outputs()[0].numpy()]
        if room is not None and room.shape[1] is None and self._in_place:
            return room.array
        *presents, made = self._binding.get_outputs()[self._deep :]  # in the order in which they were bound first
        logits: NDArray[Any] = made.numpy() if room is None else room.array
        if not self._in_place:
            self.past.update(zip(self._taken, presents, strict=True))
            if self._own:
                self._own = {name: array for name, array in self._own.items() if name not in self._taken}
            self._bind_states(self._taken)
        if logits.ndim == 2 or last is None or (last > 1 and logits.shape[1] <= last):
            return logits
        return logits[:, -1] if last == 1 else logits[:, -last:]

    def _bind_hidden(self) -> None:
        if self._session.hidden is not None:
            self._binding.bind_output(self._session.hidden, "cpu")

    def _bind_states(self, new: Collection[str]) -> None:
        """Bind `new` states as inputs, and as outputs what a run changes: the first one also what is computed once."""
        empty = bool(self._once) and 0 in self.past[self._growing].shape()
        changed = [name for name, _ in self._states if empty or name not in self._once]
        if self._once and changed != self._taken:
            self._binding.clear_binding_outputs()
            self._room = None
            self._bind_hidden()
        self._taken = changed
        for name, present in self._states:
            if name in new:
                self._binding.bind_ortvalue_input(name, self.past[name])
            if self._in_place:
                self._binding.bind_ortvalue_output(present, self.past[name])
            elif name in changed:
                self._binding.bind_output(present, *self._session.device)
        if self._switch is not None and self._filled != (not empty):
            self._filled = not empty
            self._binding.bind_cpu_input(self._switch, _SWITCHES[self._filled])

    def _bind_room(self, batch: int, slots: int | None) -> LogitsBuffer | None:
        """Where the logits will be: a room that is free, None when only the run makes it."""
        logits, session = self._logits, self._session
        kind, width = session.types.get(logits.name), logits.axes[-1]
        if session.device[0] != "cpu" or kind is None or not isinstance(width, int):
            self._binding.bind_output(logits.name, "cpu")
            self._room = None
            return None
        for room in self._rooms:
            if room.shape == (batch, slots) and room.is_free():
                break
        else:
            room = LogitsBuffer(session, batch, slots, width, kind)
            self._rooms = [*self._rooms[-1:], room]
        if room is not self._room:
            self._binding.bind_ortvalue_output(logits.name, room.value)
            self._room = room
        return room


_NO_GAPS = np.zeros(1, np.int32)
_SWITCHES = np.array([False]), np.array([True])
_LAST, _ALL = np.array([-1]), np.array([0])  # which slot is the first that gets logits


class LogitsBuffer:
    """An array for logits, used again once nobody else holds it: fresh memory costs more than what is done with it.

    (B, slots, V), or (B, V) without `slots`: the last one's.
    """

    def __init__(self, session: DecodingGraph, batch: int, slots: int | None, width: int, kind: str) -> None:
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
