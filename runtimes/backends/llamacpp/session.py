"""A GGUF model as a `Session`: rows of a padded batch become llama.cpp sequences without their padded slots.

The decoders of a session share one context; each holds some of its sequences.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from isoform.errors import BackendUnavailable, CheckpointError, InputError
from isoform.runtimes.backends.decoder import chosen, counted
from isoform.runtimes.backends.llamacpp.api import MAX_SEQUENCES
from isoform.runtimes.backends.llamacpp.process import Process
from isoform.runtimes.backends.llamacpp.vocabulary import Vocabulary
from isoform.runtimes.backends.llamacpp.worker import BATCH, ContextSize
from isoform.runtimes.devices import cpus, parse_device
from isoform.signature import Signature

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from isoform.runtimes.session import Decoder, Rewinds

GROUP = 128  # tokens of short rows that one call of `run` feeds together: attention goes over all of them
ROWS = 64  # and rows, at most
LOGITS = 2**25  # floats of logits that one call of llama_decode may give: 128 MiB


class LlamaCppSession:
    """A decoder (the signature has states) that gives logits, or an encoder that gives its last hidden state.

    `strict` computes in float32 throughout (float32 cache, no flash attention), for comparison with a reference;
    otherwise llama.cpp's own settings hold (float16 cache, flash attention where it can).
    `threads` defaults to OMP_NUM_THREADS, or else to the CPUs this process may use.
    `device` is "cpu", "cuda" or "cuda:N".
    """

    backend: str = "llamacpp"

    def __init__(
        self,
        path: Path,
        signature: Signature,
        *,
        threads: int | None = None,
        strict: bool = False,
        device: str = "cpu",
    ) -> None:
        self.signature = signature
        if [port.role for port in signature.results] != ["logits" if signature.states else "states"]:
            raise BackendUnavailable(
                "llama.cpp gives the logits of a model with a cache and the last hidden states of one without, not "
                f"{', '.join(port.name for port in signature.results)}; use the onnxruntime or torch backend for this "
                "model"
            )
        self.names = {port.role: port.name for port in signature.given}
        count = threads if threads is not None else cpus()
        if count < 1:
            raise InputError(f"threads={threads}: at least one is needed")
        self._process = Process(path, gpu=parse_device(device), threads=count, strict=strict)
        try:
            self._check(path)
        except BaseException:
            self.close()
            raise
        self.vocabulary = Vocabulary(path, process=self._process)
        self.sequences, self.lock = Sequences(), threading.Lock()
        self._opened: ContextSize | None = None  # the context of the decoders

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Every input port, the past empty or absent -> {"logits": (B, T, V)} or {"last_hidden_state": (B, T, C)}.

        Padded slots come out as zeros. Each row is computed as if it were alone, at positions counted from its first
        token where the model takes no `position_ids`.
        """
        import numpy as np

        ids = self._ids(inputs)
        mask = _array(inputs, self.names["mask"], ids.shape) != 0
        if "positions" in self.names:
            positions = _array(inputs, self.names["positions"], ids.shape)
        else:
            positions = np.cumsum(mask, 1) - 1
        lengths = mask.sum(1)
        longest = int(lengths.max(initial=0))
        states = not self.signature.states
        limit = self._process.facts["positions"]
        if states and longest > limit:
            raise InputError(f"a row of {longest} tokens exceeds the {limit} positions of this model; truncate it")
        room = self._room(ROWS, longest, shared=True, states=states)
        width = self._process.facts["width" if states else "vocab"]
        out = np.zeros((*ids.shape, width), np.float32)
        for group in _groups(lengths.tolist(), GROUP):
            held = mask[group]
            with self.lock:
                self._process.request("open", name="run", keep=[], room=asdict(room))
                self.feed("run", room, ids[group], positions[group], held, held, out[group], range(len(held)))
        return {self.signature.results[0].name: out}

    def decoder(self, rows: int | Mapping[str, NDArray[Any]]) -> LlamaCppDecoder:
        """See `Session.decoder`. All decoders of a session share one context, and step in turn."""
        if not self.signature.states:
            raise InputError("this model keeps no cache and decodes nothing; call run")
        if isinstance(rows, Mapping):
            raise InputError(f"this decoder reads no {', '.join(rows)}; give decoder() the number of rows")
        return LlamaCppDecoder(self, rows)

    @property
    def vocabulary_size(self) -> int:
        return self._process.facts["vocab"]

    @property
    def window(self) -> int:
        """The last tokens that some layers see; 0 where all layers see all."""
        return self._process.facts["window"]

    def room_for(self, rows: Sequence[int], slots: int) -> ContextSize:
        """The decoders' context, large enough for `slots` tokens in these rows and for what others hold.

        `lock` is held. One that is only for these rows has no more; sizes are powers of two otherwise.
        """
        sizes = self.sequences.sizes()
        filled = [row for row, count in sizes.items() if count]
        most, others = max(rows) + 1, sizes.keys() - set(rows)
        if others:
            most = min(1 << max(*others, most - 1).bit_length(), MAX_SEQUENCES)
        need = self._room(most, max(slots, *sizes.values()), shared=False)
        if self._opened is None or not need.fits_in(self._opened) or not filled:
            opened, _ = self._process.request("open", name="decoder", keep=filled, room=asdict(need))
            if filled and self.window:
                self.sequences.moved.update({row: sizes[row] for row in filled if sizes[row] >= self.window})
            self._opened = ContextSize(**opened)
        return self._opened

    def close(self) -> None:
        self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, path: Path) -> None:
        """The file must be of the signature's size; a file of another model would otherwise only give odd numbers."""
        found = self._process.facts["vocab" if self.signature.states else "width"]
        want = self.signature.outputs[0].axes[-1]
        if isinstance(want, int) and found != want:
            name = self.signature.outputs[0].name
            raise CheckpointError(f"{path} gives {name} of size {found}, its manifest says {want}; export it again")

    def _ids(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
        """The tokens, after a look at every other port."""
        import numpy as np

        past = [state.input for state in self.signature.states]
        for name in past:
            if name in inputs and np.size(inputs[name]):
                raise InputError(f"{name} is not empty, and llama.cpp keeps its cache to itself; use decoder()")
        names = list(self.names.values())
        missing, unknown = [n for n in names if n not in inputs], sorted(set(inputs) - {*names, *past})
        if missing or unknown:
            wrong = f"{', '.join(missing)} missing" if missing else f"{', '.join(unknown)} unknown"
            raise InputError(f"inputs: {wrong}; this model takes {', '.join(names)}")
        ids = _array(inputs, self.names["tokens"], None)
        types = self.names.get("token_types")
        if types is not None and np.any(_array(inputs, types, ids.shape)):
            raise InputError(
                f"{types} holds other values than 0, and llama.cpp has only the first token type; "
                "use the onnxruntime or torch backend for pairs of texts"
            )
        return ids

    def _room(self, rows: int, slots: int, *, shared: bool, states: bool = False) -> ContextSize:
        """Sizes in powers of two, so that growing inputs make new contexts rarely."""
        outputs = max(rows, min(BATCH, LOGITS // self._process.facts["vocab"]))
        return ContextSize(rows, max(BATCH, 1 << (slots - 1).bit_length()), outputs, shared, states)

    def feed(
        self,
        name: str,
        room: ContextSize,
        ids: NDArray[Any],
        positions: NDArray[Any],
        held: NDArray[np.bool_],
        wanted: NDArray[np.bool_],
        out: NDArray[np.float32],
        sequences: Sequence[int],
        changes: Sequence[Sequence[int]] = (),
    ) -> None:
        """Decode the slots that are `held` by a token and write the outputs of those `wanted` into `out`.

        Shapes: (B, T) each, out (B, W, width) for the last W slots. `sequences` are those of the rows, to which the
        `changes` are made before. `lock` is held.
        """
        import numpy as np

        owners = np.asarray(sequences)

        rows, slots = np.nonzero(held)
        hidden = held.shape[1] - out.shape[1]
        tokens, places, gives = ids[rows, slots], positions[rows, slots], wanted[rows, slots]
        wrong = np.flatnonzero((tokens < 0) | (tokens >= self._process.facts["vocab"]))
        if wrong.size:
            raise InputError(
                f"token id {tokens[wrong[0]]} is outside the vocabulary of {self._process.facts['vocab']} tokens"
            )
        jumps = np.flatnonzero((rows[1:] == rows[:-1]) & (places[1:] != places[:-1] + 1))
        if jumps.size:
            raise InputError(
                f"the positions go from {places[jumps[0]]} to {places[jumps[0] + 1]} in row {rows[jumps[0]]}; "
                "llama.cpp takes positions that go up by one from token to token"
            )
        for part in _parts(gives, room.slots if room.states else BATCH, len(gives) if room.states else room.outputs):
            blocks = [x[part].astype(np.int32).tobytes() for x in (tokens, places, owners[rows])]
            give = gives[part]
            _, (data,) = self._process.request("decode", [*blocks, give.tobytes()], name=name, changes=[*changes])
            changes = ()
            out[rows[part][give], slots[part][give] - hidden] = np.frombuffer(data, np.float32).reshape(
                -1, out.shape[2]
            )


class LlamaCppDecoder:
    """A `Decoder` whose rows are sequences of the session's context. Padded slots take no room there.

    Changes to the sequences wait for the next step: only then it is known how large the context must be.
    """

    rewinds: Rewinds = "rows"

    def __init__(self, session: LlamaCppSession, batch: int) -> None:
        import numpy as np

        self._session = session
        self._rows: list[int] = session.sequences.take(batch)
        self._leaving: list[int] = []  # what still may be the source of a copy
        self._changes: list[Sequence[int]] = [(row, 0) for row in self._rows]
        weakref.finalize(self, session.sequences.give_back, self._rows, self._leaving)
        self._counts = np.zeros(batch, np.int64)  # tokens of each row
        self._tokens: list[list[int]] = [[] for _ in self._rows]  # kept only for a model with a window
        self._next = np.full(batch, -1)  # the position that a row's next token must have; -1: any

    def __len__(self) -> int:
        return len(self._rows)

    def step(
        self,
        tokens: NDArray[Any] | Mapping[str, NDArray[Any]],
        *,
        mask: NDArray[Any] | None = None,
        positions: NDArray[Any] | None = None,
        last: int | None = 1,
    ) -> NDArray[np.float32]:
        """See `Decoder.step`; logits of padded slots are zeros."""
        import numpy as np

        session, batch = self._session, len(self._rows)
        name = session.names["tokens"]
        ids = _array(tokens if isinstance(tokens, Mapping) else {name: tokens}, name, None)
        length = ids.shape[1]
        if ids.shape[0] != batch or length == 0:
            raise InputError(f"{name} has shape {ids.shape}; this decoder takes ({batch}, T), T at least 1")
        if last is not None and last < 1:
            raise InputError(f"last={last}: logits of at least one slot, or None for all")
        given = {"the mask": mask, "the positions": positions}
        held = np.ones(ids.shape, bool) if mask is None else _array(given, "the mask", ids.shape) != 0
        if positions is None:
            places = np.maximum(np.maximum(self._next, 0)[:, None] + held.cumsum(1) - 1, 0)
        else:
            places = _array(given, "the positions", ids.shape)
        first = np.take_along_axis(places, held.argmax(1)[:, None], 1)[:, 0]
        broken = np.flatnonzero(held.any(1) & (self._next >= 0) & (first != self._next))
        if broken.size:
            row = broken[0]
            raise InputError(f"the positions of row {row} go on at {first[row]}, but its next one is {self._next[row]}")
        shown = length if last is None else min(last, length)  # slots whose logits are asked for, at the end
        wanted = held.copy()
        wanted[:, : length - shown] = False
        out = np.zeros((batch, shown, session.vocabulary_size), np.float32)
        counts = self._counts + held.sum(1)
        with session.lock:
            room = session.room_for(self._rows, int(counts.max()))
            if held.any():
                session.sequences.change(self._changes)
                changes = self._again(room) if session.window else self._changes
                session.feed("decoder", room, ids, places, held, wanted, out, self._rows, changes)
                session.sequences.note(self._rows, counts.tolist())
                session.sequences.give_back(self._leaving)
                self._changes = []
        if session.window:
            for row, new, real in zip(self._tokens, ids, held, strict=True):
                row += new[real].tolist()
        self._counts = counts
        ends = np.where(held, places, -1).max(1)
        self._next = np.where(held.any(1), ends + 1, self._next)
        return out[:, 0] if last == 1 else out

    def _again(self, room: ContextSize) -> Sequence[Sequence[int]]:
        """Feed rows anew that forget tokens after they were moved, when layers with a window lost what these need.

        Returns the changes that are still to be made.
        """
        import numpy as np

        lost = [n for n, row in enumerate(self._rows) if self._session.sequences.moved.get(row, 0) > self._counts[n]]
        if not lost:
            return self._changes
        rows, counts = [self._rows[n] for n in lost], self._counts[lost]
        emptied = [(row, 0) for row in rows]
        self._session.sequences.change(emptied)
        changes = [*self._changes, *emptied]
        if not counts.any():
            return changes
        held = np.arange(counts.max()) < counts[:, None]
        ids = np.zeros(held.shape, np.int64)
        ids[held] = np.concatenate([self._tokens[n] for n in lost if self._tokens[n]])
        places = (self._next[lost] - counts)[:, None] + np.arange(held.shape[1])
        nothing = np.zeros((*held.shape, self._session.vocabulary_size), np.float32)
        self._session.feed("decoder", room, ids, places, held, np.zeros_like(held), nothing, rows, changes)
        return ()

    def select(self, rows: NDArray[np.int64]) -> None:
        """See `Decoder.select`."""
        order = chosen(rows, len(self._rows)).tolist()
        new: list[int] = []
        for n in order:
            row = self._rows[n]
            if row in new:
                (target,) = self._session.sequences.take(1)
                self._changes += [(target, 0), (row, target, 0)]
                row = target
            new.append(row)
        self._leaving += [row for row in self._rows if row not in new]
        self._rows[:] = new
        self._tokens = [list(self._tokens[n]) for n in order]
        self._counts, self._next = self._counts[order], self._next[order]

    def join(self, other: Decoder) -> None:
        """See `Decoder.join`."""
        import numpy as np

        if other is self or not isinstance(other, LlamaCppDecoder) or other._session is not self._session:
            raise InputError("only the rows of another decoder of the same session can join")
        for mine, theirs in ((self._rows, other._rows), (self._leaving, other._leaving)):
            mine += theirs
            theirs.clear()
        self._changes += other._changes
        self._tokens += other._tokens
        self._counts = np.concatenate((self._counts, other._counts))
        self._next = np.concatenate((self._next, other._next))

    def rewind(self, counts: ArrayLike) -> None:
        """See `Decoder.rewind`."""
        import numpy as np

        forgotten = counted(counts, len(self._rows))
        wrong = np.flatnonzero(forgotten > self._counts)
        if wrong.size:
            row = wrong[0]
            raise InputError(f"row {row} has {self._counts[row]} tokens and cannot forget {forgotten[row]}")
        self._counts = self._counts - forgotten
        if self._session.window:
            self._tokens = [row[:count] for row, count in zip(self._tokens, self._counts.tolist(), strict=True)]
        self._next = np.where(self._counts > 0, self._next - forgotten, -1)
        self._changes += [
            (row, max(int(position), 0))
            for row, position, count in zip(self._rows, self._next, forgotten, strict=True)
            if count
        ]


class Sequences:
    """Which sequences of a context belong to a decoder; any thread may take and give back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: dict[int, int] = {}  # how many tokens each holds in the context
        self.moved: dict[int, int] = {}  # of a model with a window: the tokens it had when it went to another context
        self._returned: deque[Sequence[int]] = deque()  # a finalizer may run anywhere, and so takes no lock

    def take(self, count: int, preferred: Collection[int] = ()) -> list[int]:
        """The first `count` that are free, `preferred` ones before others. Raises InputError when there are no more."""
        with self._lock:
            self._collect()
            free = [row for row in range(MAX_SEQUENCES) if row not in self._taken]
            free = sorted(free, key=lambda row: row not in preferred)[:count]
            if not 1 <= count <= MAX_SEQUENCES or len(free) < count:
                raise InputError(
                    f"a batch of {count} rows, while {len(self._taken)} are being decoded: llama.cpp decodes 1 to "
                    f"{MAX_SEQUENCES} together; split it"
                )
            self._taken.update(dict.fromkeys(free, 0))
            return free

    def give_back(self, *lists: list[int]) -> None:
        """Free the sequences of these lists, which become empty."""
        for rows in lists:
            if rows:
                self._returned.append(tuple(rows))
                rows.clear()

    def note(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """These hold so many tokens now."""
        with self._lock:
            self._taken.update(zip(rows, tokens, strict=True))

    def change(self, changes: Sequence[Sequence[int]]) -> None:
        """Note that sequences are emptied and copied; see `Worker.decode`."""
        for sequence, position, *copied in changes:
            if copied and sequence in self.moved:
                self.moved[position] = self.moved[sequence]
            elif not position:
                self.moved.pop(sequence, None)

    def sizes(self) -> dict[int, int]:
        """The tokens of each that is taken."""
        with self._lock:
            self._collect()
            return dict(self._taken)

    def _collect(self) -> None:
        while self._returned:
            for row in self._returned.popleft():
                del self._taken[row]


def _array(inputs: Mapping[str, Any], name: str, shape: tuple[int, ...] | None) -> NDArray[Any]:
    """An integer input of this shape, or of any (B, T)."""
    import numpy as np

    array = np.asarray(inputs[name])
    if array.dtype.kind not in "iub":
        raise InputError(f"{name} has dtype {array.dtype}; it holds integers")
    if array.shape != shape if shape is not None else array.ndim != 2:
        raise InputError(f"{name} has shape {array.shape}, not {shape or '(batch, length)'}")
    return array


def _groups(lengths: list[int], tokens: int) -> Iterator[slice]:
    """Neighbouring rows that go together: at most `ROWS`, of `tokens` in all unless one row alone is longer."""
    start = total = 0
    for row, length in enumerate(lengths):
        if row > start and (total + length > tokens or row - start == ROWS):
            yield slice(start, row)
            start, total = row, 0
        total += length
    if lengths:
        yield slice(start, len(lengths))


def _parts(gives: NDArray[np.bool_], tokens: int, outputs: int) -> Iterator[slice]:
    """Cut N tokens so that no part has more than this many tokens and outputs."""
    import numpy as np

    given, start = np.cumsum(gives), 0
    while start < len(gives):
        before = given[start - 1] if start else 0
        end = min(start + tokens, int(np.searchsorted(given, before + outputs, "right")))
        yield slice(start, end)
        start = end
