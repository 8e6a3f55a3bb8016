"""The `Decoder` of all graph backends: it checks steps, counts slots, and cuts long prompts into pieces.

Rows differ in length by their mask: a row that is shorter has padding, on the left after a `join` and at the end after
a `rewind`. Such holes are packed away once they exceed a share of the slots. Prompts of a batch go in by groups of
about one length, each without the padding that the longest of all would need.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.backends.inputs import checked
from isoform.signature import Axis, Port, Signature, State

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from isoform.runtimes.session import Decoder, Rewinds

LOGITS = 2**26  # floats of logits that one pass may give when only the last slot's are asked for: 256 MiB
PLAIN = 64  # tokens of a step that nothing else goes with and that needs no cutting into pieces
HOLES = 1 / 4  # share of the slots, beyond those of the longest row, above which they are packed away
TOGETHER = 512  # slots of prompts in one pass of a CPU: more of them fall out of its caches
WASTE = 48  # slots of padding that cost as much as a pass of their own


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """The slots that a row of a new cache takes from a row of a decoder, in ascending order."""

    decoder: Any
    row: int
    slots: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class FilledSlots:
    """The states of a decoder's rows: arrays (B, heads, S, D) by the state's input port, and what their slots hold.

    `mask` and `positions` are (B, S). The arrays may be views of the decoder's memory: use them before it steps again.
    """

    states: Mapping[str, NDArray[Any]]
    mask: NDArray[np.int64]
    positions: NDArray[np.int64]


class GraphDecoder(ABC):
    """A `Decoder` over a graph: subclasses run one pass and keep the states."""

    def __init__(self, signature: Signature, rows: int | Mapping[str, NDArray[Any]]) -> None:
        """`rows`: see `Session.decoder`."""
        if not signature.states:
            raise InputError("this model keeps no cache and decodes nothing; call run")
        entry = signature.port("tokens") or signature.port("embeddings")
        if entry is None:
            raise InputError("this model has states, and neither tokens nor embeddings to step with; call run")
        self.signature, self.states = signature, signature.states
        self._entry, self._masks, self._counts = entry, signature.port("mask"), signature.port("positions")
        self._length = entry.axes[1]  # the axis of the new slots
        self._total: Axis | None = None if self._masks is None else self._masks.axes[1]  # and of all slots
        stepped = [port for port in signature.given if self._length in port.axes or port is self._masks]
        self._ports = Signature(tuple(stepped), signature.results, sizes=signature.sizes)
        self._held, batch = self._given_once([p for p in signature.given if p not in stepped], rows)
        self._owner = np.arange(batch)  # by row, its row of what is held: rows beside each other may share one
        self._mask = np.zeros((batch, 0), np.int64)  # of the slots so far
        self._places = np.zeros((batch, 0), np.int64)  # the position of each slot
        self._at = np.full(batch, -1)  # the position of each row's last token
        self.hands_over = False  # whether `filled` and `take` are offered
        self._in_groups = False  # whether prompts of several lengths go in by groups
        self._aligns_left = False  # whether rows begin at one slot, and end where they do; else they end at one
        self._slots = 0  # how many there are; those that the arrays do not know yet hold tokens
        self._deep: list[NDArray[np.float32]] | None = None  # the hidden states of each pass, where they are kept
        self._bare = len(self._ports.inputs) == 1 and entry.role == "tokens"  # nothing else goes with a token

    @staticmethod
    def _given_once(ports: Sequence[Port], rows: int | Mapping[str, NDArray[Any]]) -> tuple[dict[str, Any], int]:
        """What the model reads in every step alike, by port name, and the number of rows."""
        names = ", ".join(port.name for port in ports)
        if not isinstance(rows, Mapping):
            if ports:
                raise InputError(f"each row of this decoder reads {names}; give decoder() these arrays by name")
            batch = rows
        elif not ports:
            raise InputError(f"this decoder reads no {', '.join(rows)}; give decoder() the number of rows")
        else:
            held = checked(Signature(tuple(ports), ()), rows)
            batch = len(held[ports[0].name])
        if batch < 1:
            raise InputError(f"a batch of {batch} rows; at least one is needed")
        return held if ports else {}, batch

    def __len__(self) -> int:
        return len(self._mask)

    @property
    def slots(self) -> int:
        """How many slots each row has so far, holes included."""
        return self._slots

    @property
    def rewinds(self) -> Rewinds:
        """See `Decoder.rewind`: by row, equally many of all rows, or not at all."""
        if self.signature.kept("replace", "window"):
            return "never"
        return "together" if self._masks is None else "rows"

    def step(
        self,
        tokens: NDArray[Any] | Mapping[str, NDArray[Any]],
        *,
        mask: NDArray[Any] | None = None,
        positions: NDArray[Any] | None = None,
        last: int | None = 1,
    ) -> NDArray[np.float32]:
        """See `Decoder.step`."""
        if self._bare and mask is None and positions is None and last == 1 and self._takes(tokens):
            logits = self._pass({self._entry.name: tokens}, self._slots, tokens.shape[1], last=1, needed=True)
            self._slots += tokens.shape[1]
            return logits
        self._settle()
        entry, (batch, past) = self._entry, self._mask.shape
        given = dict(tokens) if isinstance(tokens, Mapping) else {entry.name: tokens}
        first = np.asarray(given.get(entry.name, ()))
        if first.ndim != len(entry.axes) or len(first) != batch or not first.shape[1]:
            raise InputError(f"{entry.name} has shape {first.shape}; this decoder takes ({batch}, T), T at least 1")
        length = first.shape[1]
        if last is not None and last < 1:
            raise InputError(f"last={last}: logits of at least one slot, or None for all")
        new = self._new_mask(mask, length)
        whole = self._behind(self._mask, new)
        places = np.maximum(self._at[:, None] + new.cumsum(1), 0) if positions is None else np.asarray(positions)
        for port in self._ports.inputs:
            if port is self._masks:
                given[port.name] = whole
            elif port is self._counts:
                given[port.name] = _broadcast(places, port, (batch, length))
            elif port.role == "token_types":
                given.setdefault(port.name, np.zeros((batch, length), np.int64))
        arrays = checked(self._ports, given)
        if not past and positions is None and last == 1 and (groups := self._groups(new)):
            return self._by_groups(groups, arrays, new)
        if positions is not None:
            places = _flat(places, (batch, length))
        self._at = np.maximum(self._at, np.where(new, places, -1).max(1))
        self._mask, self._places = whole, self._behind(self._places, places)
        self._slots = past + length
        logits = self._in_pieces(arrays, past, length, last)
        if mask is not None:
            self._tidy()
        return logits

    def keep_hidden_states(self) -> None:
        """Keep the hidden states of the last layer for `hidden_states`; before the first step.

        Raises InputError where the model gives none.
        """
        raise InputError(
            "contrastive search (penalty_alpha) compares hidden states, and this form of the model does not give them; "
            "use torch, onnxruntime or openvino, or pass penalty_alpha=None"
        )

    def _go_deep(self) -> None:
        """Collect hidden states from now on, those of a prompt in one order."""
        if self._slots:
            raise InputError("this decoder has begun; ask for its hidden states before the first step")
        self._deep, self._in_groups = [], False

    def hidden_states(self) -> NDArray[np.float32]:
        """Those of the slots of the last step, (B, T, C); once."""
        if not self._deep:
            raise InputError("no hidden states were kept; call keep_hidden_states before the step")
        passes, self._deep = self._deep, []
        return passes[0] if len(passes) == 1 else np.concatenate(passes, 1)

    def _takes(self, tokens: Any) -> TypeGuard[NDArray[np.int64]]:
        """Whether these are tokens (B, T) as a pass takes them."""
        fits = (
            type(tokens) is np.ndarray and tokens.dtype == np.int64 and tokens.ndim == 2 and tokens.flags.c_contiguous
        )
        return fits and len(tokens) == len(self._mask) and 0 < tokens.size <= PLAIN

    def _settle(self) -> None:
        """Note the slots that were made since the arrays were."""
        made = self._slots - self._mask.shape[1]
        if made:
            new, places = np.ones((len(self._mask), made), np.int64), self._at[:, None] + np.arange(1, made + 1)
            self._mask, self._places = self._behind(self._mask, new), self._behind(self._places, places)
            self._at = self._at + made

    def _behind(self, old: NDArray[np.int64], new: NDArray[np.int64]) -> NDArray[np.int64]:
        """The mask or the positions of all slots: of the old ones, and of the new ones behind them."""
        return np.concatenate((old, new), 1)

    def _new_mask(self, mask: NDArray[Any] | None, length: int) -> NDArray[np.int64]:
        """The mask (B, T) of the new slots, int64."""
        shape = len(self._mask), length
        if mask is None:
            return np.ones(shape, np.int64)
        array = np.asarray(mask)
        if array.dtype.kind not in "iub":
            raise InputError(f"the mask has dtype {array.dtype}; it holds integers")
        if array.shape != shape:
            raise InputError(f"the mask has shape {array.shape}, not {shape}: it is that of the new slots alone")
        new = (array != 0).astype(np.int64)
        if self._masks is None and not new.all():
            raise InputError("this model has no port for a mask, so its rows take no padding; group them by length")
        if self.signature.kept("window") and (np.diff(new, axis=1) < 0).any() | (bool(self.slots) and not new.all()):
            raise InputError("a state of this model keeps a window of slots, which takes padding before a prompt only")
        return new

    def _in_pieces(
        self, arrays: dict[str, NDArray[Any]], past: int, length: int, last: int | None
    ) -> NDArray[np.float32]:
        piece = length if last is None else max(self._piece(past + length), last)
        if length <= piece:
            return self._pass(arrays, past, length, last=last, needed=True)
        start = 0
        while start < length:
            end = min(start + piece, length)
            if last is not None and 0 < length - end < last:
                end = length - last  # the logits that are asked for come from one pass
            logits = self._pass(
                self._cut(arrays, start, end, past + end), past + start, end - start, last=last, needed=end == length
            )
            start = end
        return logits

    def _groups(self, mask: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """The rows of each group in which prompts with this mask go in; none where they do so all at once."""
        if not self._in_groups or len(mask) == 1 or self._held or not mask[:, -1].all():
            return []
        groups = grouped(mask.sum(1))
        return groups if len(groups) > 1 else []

    def _by_groups(
        self, groups: Sequence[NDArray[np.int64]], arrays: Mapping[str, NDArray[Any]], mask: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Take the prompts of each group to a decoder of its own, and their states from there."""
        lengths = mask.sum(1)
        plan: dict[int, Kept] = {}
        logits = np.zeros((len(mask), 0), np.float32)
        for rows in groups:
            longest = int(lengths[rows].max())
            part = self._begun(len(rows), longest)
            new = (np.arange(longest) >= longest - lengths[rows, None]).astype(np.int64)
            feeds = {}
            for port in self._ports.inputs:
                if port is not self._masks and port is not self._counts:
                    array = arrays[port.name]
                    feed = feeds[port.name] = np.zeros((*new.shape, *array.shape[2:]), array.dtype)
                    feed[new != 0] = array[rows][mask[rows] != 0]
            made = part.step(feeds, mask=None if new.all() else new)
            if not plan:
                logits = np.empty((len(mask), made.shape[1]), np.float32)
            logits[rows] = made
            plan |= {row: Kept(part, n, np.flatnonzero(part._mask[n])) for n, row in enumerate(rows.tolist())}
        kept, slots = [plan[row] for row in range(len(mask))], int(lengths.max())
        self._rebuild(kept, slots)
        self._arranged(kept, slots)
        return logits

    def filled(self) -> FilledSlots:
        """The states so far, for `take` of another decoder. Raises InputError for what is no cache of all slots."""
        self._settle()
        self._need_append("handed over")
        return FilledSlots(self._slots_of_states(), self._mask, self._places)

    def take(self, given: FilledSlots) -> None:
        """Go on from the states of a decoder of as many rows, of this session or of another form of the same model.

        Raises InputError when this decoder has begun, or the states are not those of its ports.
        """
        self._need_append("taken")
        if self.slots:
            raise InputError(f"this decoder has {self.slots} slots already; take states with a new one")
        if len(given.mask) != len(self):
            raise InputError(f"the states are of {len(given.mask)} rows, and this decoder has {len(self)}")
        if self._masks is None and not given.mask.all():
            raise InputError(
                "this model has no port for a mask, so its rows take no padding; hand over rows of one length"
            )
        slots = given.mask.shape[1]
        for state in self.states:
            array, shape = given.states.get(state.input), state.shape(len(self), slots)
            if array is None or array.shape != shape:
                found = "missing" if array is None else f"of shape {array.shape}"
                raise InputError(
                    f"the state {state.input} is {found}, and this model keeps {shape}; only a form of the same model "
                    "can hand its cache over"
                )
        rows = [np.flatnonzero(row) for row in given.mask]
        longest = max(map(len, rows))
        self._load(given.states, rows, longest)
        self._slots = longest
        self._mask, self._places = np.zeros((2, len(rows), longest), np.int64)
        for n, kept in enumerate(rows):
            begin = 0 if self._aligns_left else longest - len(kept)
            self._mask[n, begin : begin + len(kept)] = 1
            self._places[n, begin : begin + len(kept)] = given.positions[n, kept]
        self._at = np.where(self._mask, self._places, -1).max(1, initial=-1)

    def _need_append(self, what: str) -> None:
        for state in self.states:
            if state.kind != "append":
                raise InputError(f"{state.input} is no cache of all slots ({state.kind}), so that it cannot be {what}")
        if self._held:
            raise InputError(f"rows that read {', '.join(self._held)} in every step cannot be {what}")

    def _cut(self, arrays: Mapping[str, NDArray[Any]], start: int, end: int, total: int) -> dict[str, NDArray[Any]]:
        """The new slots from `start` to `end`, with the mask of `total` slots."""
        found = {}
        for port in self._ports.inputs:
            along = [
                slice(start, end) if axis == self._length else slice(total) if axis == self._total else slice(None)
                for axis in port.axes
            ]
            found[port.name] = np.ascontiguousarray(arrays[port.name][tuple(along)])
        return found

    def select(self, rows: NDArray[np.int64]) -> None:
        """See `Decoder.select`."""
        self._settle()
        order = chosen(rows, len(self))
        if np.array_equal(order, np.arange(len(self))):
            return
        held, owner = self._shared(order)
        if held is not None:
            self._held = {name: array[held] for name, array in self._held.items()}
        self._reorder(order, held, self.slots)
        self._owner = owner
        self._mask, self._places, self._at = self._mask[order], self._places[order], self._at[order]
        self._tidy()

    def _shared(self, order: NDArray[np.int64]) -> tuple[NDArray[np.int64] | None, NDArray[np.int64]]:
        """Which rows of what is held go on (None: all as they are), and the one that each row reads.

        Rows beside each other may share one, if the same number share each.
        """
        if not self._held:
            return None, np.arange(len(order))
        owners = self._owner[order]
        shared = owners[np.flatnonzero(np.diff(owners, prepend=-1))]
        count, left = divmod(len(order), len(shared))
        if left or not self.slots or (np.repeat(shared, count) != owners).any():
            shared, count = owners, 1
        stays = np.array_equal(shared, np.arange(len(next(iter(self._held.values())))))
        return None if stays else shared, np.repeat(np.arange(len(shared)), count)

    def join(self, other: Decoder) -> None:
        """See `Decoder.join`."""
        if other is self or not isinstance(other, type(self)) or other.signature != self.signature:
            raise InputError("only the rows of another decoder of the same session can join")
        for decoder in (self, other):
            decoder._settle()
        if self._masks is None and other.slots != self.slots:
            raise InputError(
                f"rows of {other.slots} slots cannot join rows of {self.slots}: this model has no port for a mask; "
                "group them by length"
            )
        if self.signature.kept("once") and bool(other.slots) != bool(self.slots):
            raise InputError("rows that have not begun cannot join rows that have: step with their first tokens alone")
        both = (self, other)
        held = {
            port.name: self._stacked(port.name, [d._held[port.name][d._owner] for d in both])
            for port in self.signature.given
            if port.name in self._held
        }
        plan = [Kept(d, n, np.flatnonzero(row)) for d in both for n, row in enumerate(d._mask)]
        slots = max(len(kept.slots) for kept in plan)
        self._held = held
        self._rebuild(plan, slots)
        self._owner = np.arange(len(plan))
        self._arranged(plan, slots)

    def _stacked(self, name: str, parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """The rows of both, of one size if a mask does not tell where the shorter ones end."""
        sizes = [part.shape[1:] for part in parts]
        if len(set(sizes)) > 1 and not self.signature.takes("encoder_mask"):
            raise InputError(f"{name} of sizes {sizes[0]} and {sizes[1]} cannot be joined; group rows by their size")
        whole = np.max(sizes, 0)
        edges = [[(0, 0), *((0, most - size) for most, size in zip(whole, s, strict=True))] for s in sizes]
        return np.concatenate([np.pad(part, edge) for part, edge in zip(parts, edges, strict=True)])

    def rewind(self, counts: ArrayLike) -> None:
        """See `Decoder.rewind`."""
        self._settle()
        forgotten, real = counted(counts, len(self)), self._mask.sum(1)
        wrong = np.flatnonzero(forgotten > real)
        if wrong.size:
            row = wrong[0]
            raise InputError(f"row {row} has {real[row]} tokens and cannot forget {forgotten[row]}")
        if not forgotten.any():
            return
        if fixed := self.signature.kept("replace", "window"):
            raise InputError(f"{fixed[0].input} is no cache of all slots, so that it cannot be rewound")
        if self._masks is None and len(set(forgotten.tolist())) > 1:
            raise InputError(
                f"rows cannot forget {forgotten.tolist()} tokens: this model has no port for a mask, so that all "
                "forget equally many; group rows by length"
            )
        behind = self._mask[:, ::-1].cumsum(1)[:, ::-1]  # the number of each token, from its row's end
        mask = self._mask * (behind > forgotten[:, None])
        slots = int(np.flatnonzero(mask.any(0)).max(initial=-1)) + 1
        if slots < self.slots:
            self._truncate(slots)
        self._mask, self._places, self._slots = mask[:, :slots], self._places[:, :slots], slots
        self._at = np.where(self._mask, self._places, -1).max(1, initial=-1)
        if not slots:
            self._unshare()
        self._tidy()

    def _unshare(self) -> None:
        """Give each row what it reads for itself: a first step computes from it by row."""
        rows = np.arange(len(self))
        if self._held and not np.array_equal(self._owner, rows):
            self._held = {name: array[self._owner] for name, array in self._held.items()}
            self._reorder(rows, self._owner, 0)
            self._owner = rows

    def _tidy(self) -> None:
        """Pack the slots if too many of them are holes."""
        if self._masks is None:
            return
        longest = int(self._mask.sum(1).max())
        holes = self.slots - longest
        if holes > self.slots * HOLES or (holes and self.signature.kept("window")):
            plan = [Kept(self, n, np.flatnonzero(row)) for n, row in enumerate(self._mask)]
            self._rebuild(plan, longest)
            self._arranged(plan, longest)

    def _arranged(self, plan: Sequence[Kept], slots: int) -> None:
        """Note the slots of a plan, which are where `_rebuild` has put them."""
        mask, places = np.zeros((2, len(plan), slots), np.int64)
        for n, kept in enumerate(plan):
            begin = 0 if self._aligns_left else slots - len(kept.slots)
            mask[n, begin : begin + len(kept.slots)] = 1
            places[n, begin : begin + len(kept.slots)] = kept.decoder._places[kept.row, kept.slots]
        self._at = np.array([kept.decoder._at[kept.row] for kept in plan])
        self._mask, self._places, self._slots = mask, places, slots

    def _piece(self, total: int) -> int:
        """The new slots that one pass may take for the logits of the last; `total` is with the past and all of them."""
        vocabulary = self._ports.outputs[0].axes[-1]
        return max(LOGITS // (len(self._mask) * vocabulary), 1) if isinstance(vocabulary, int) else 512

    def _begun(self, rows: int, slots: int) -> GraphDecoder:
        """A new decoder of so many rows of this session, with room for `slots`; for prompts that go in by groups."""
        raise NotImplementedError

    def _slots_of_states(self) -> dict[str, NDArray[Any]]:
        """The states (B, heads, S, D) by input port, as they are."""
        raise InputError(f"{type(self).__name__} keeps its states to itself")

    def _load(self, states: Mapping[str, NDArray[Any]], rows: Sequence[NDArray[np.int64]], slots: int) -> None:
        """Take these slots of each row, which go to one end of `slots` slots."""
        raise InputError(f"{type(self).__name__} takes no states of another decoder")

    @abstractmethod
    def _pass(
        self, feeds: dict[str, NDArray[Any]], past: int, length: int, *, last: int | None, needed: bool
    ) -> NDArray[np.float32]:
        """One pass over `length` slots after `past`; extends the states.

        `feeds` has the ports of a step. Returns logits as `Decoder.step` does; anything when they are not `needed`.
        """

    @abstractmethod
    def _reorder(self, rows: NDArray[np.int64], held: NDArray[np.int64] | None, slots: int) -> None:
        """Make the states, of `slots` slots, those of these rows.

        What is computed once for the rows of `_held`, which have been chosen, becomes that of `held` unless it stays.
        """

    @abstractmethod
    def _truncate(self, slots: int) -> None:
        """Keep only the first `slots` slots of every state that grows."""

    @abstractmethod
    def _rebuild(self, plan: Sequence[Kept], slots: int) -> None:
        """Make the states those of a plan, each row at one end of `slots` slots; `_held` is that of the plan."""


def assembled(
    state: State, plan: Sequence[Kept], slots: int, sources: Mapping[int, Any], make: Callable[[tuple[int, ...]], Any]
) -> Any:
    """A state of a plan, out of those of its decoders, by their `id`; `make` gives zeros of a shape."""
    axis, one = state.slots, next(iter(sources.values()))
    shape = [len(plan), *one.shape[1:]]
    if axis is None or state.kind == "replace":
        size = None
    elif state.kind == "once":  # by the rows of what is held; a shorter one is padded at the end, as that is
        size = shape[axis] = max(source.shape[axis] for source in sources.values())
    else:
        most = max(source.shape[axis] for source in sources.values()) if state.kind == "window" else slots
        size = shape[axis] = min(slots, most)
    made = make(tuple(shape))
    for n, kept in enumerate(plan):
        source = sources[id(kept.decoder)]
        if size is None or axis is None:
            made[n] = source[kept.row]
            continue
        before = (slice(None),) * (axis - 1)
        if state.kind == "once":
            row = source[int(kept.decoder._owner[kept.row])]
            made[(n, *before, slice(row.shape[axis - 1]))] = row
            continue
        row, chosen_ = source[kept.row], kept.slots
        if state.kind == "window":  # it has the last slots only
            chosen_ = chosen_ - (kept.decoder.slots - source.shape[axis])
            chosen_ = chosen_[chosen_ >= 0][-size:]
        if chosen_.size:
            put(made[n], axis - 1, size, row, chosen_)
    return made


def put(made: Any, axis: int, size: int, row: Any, slots: NDArray[np.int64]) -> None:
    """Copy these slots of one row to the right end of `size` slots of another; both have them on `axis`."""
    before, begin = (slice(None),) * axis, slice(size - len(slots), size)
    if slots[-1] - slots[0] + 1 == len(slots):
        made[(*before, begin)] = row[(*before, slice(int(slots[0]), int(slots[-1]) + 1))]
    else:
        made[(*before, begin)] = row[(*before, slots)]


def grouped(lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The rows of these lengths by groups, the longest first, that go in with little padding and few passes."""
    groups: list[list[int]] = []
    longest = waste = 0
    for row in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[row])
        waste += longest - length
        if not groups or waste > WASTE or (len(groups[-1]) + 1) * longest > TOGETHER:
            groups.append([])
            longest, waste = length, 0
        groups[-1].append(row)
    return [np.array(sorted(group)) for group in groups]


def fitting(slots: int, capacity: int) -> int:
    """The first of `capacity`, twice it, four times it, ... that has so many slots."""
    while capacity < slots:
        capacity *= 2
    return capacity


def chosen(rows: Any, count: int) -> NDArray[np.int64]:
    """Numbers of rows, int64 (B',). Raises InputError for one that is none of `count`, and for no rows."""
    order = np.asarray(rows)
    if order.ndim != 1 or not order.size or order.dtype.kind not in "iu" or order.min() < 0 or order.max() >= count:
        raise InputError(f"rows to go on with are {order.tolist()}; this decoder has rows 0 to {count - 1}")
    return order.astype(np.int64)


def counted(counts: ArrayLike, rows: int) -> NDArray[np.int64]:
    """How many tokens each row forgets, int64 (B,). Raises InputError for what is no such number."""
    array = np.asarray(counts)
    if array.dtype.kind not in "iu" or array.shape not in ((), (rows,)) or (array.size and array.min() < 0):
        raise InputError(f"rows forget {array.tolist()} tokens: a whole number, or one for each of the {rows} rows")
    return np.broadcast_to(array, (rows,)).astype(np.int64)


def _broadcast(places: NDArray[Any], port: Port, shape: tuple[int, int]) -> NDArray[Any]:
    """Positions (B, T) in the shape of their port, which may have one for each of several axes."""
    if places.shape != shape or len(port.axes) == 2:
        return places
    return np.broadcast_to(places, (*(axis for axis in port.axes[:-2] if isinstance(axis, int)), *shape))


def _flat(places: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.int64]:
    """The greatest position of each slot, (B, T)."""
    if places.shape[-2:] != shape:
        raise InputError(f"the positions have shape {places.shape}, not {shape}")
    flat: NDArray[np.int64] = places.reshape(-1, *shape).max(0).astype(np.int64)
    return flat
