"""A GGUF model that reads a text and writes another one: an encoder and a decoder over one context of llama.cpp.

llama.cpp keeps what its encoder gave last, and no way leads other states into its decoder. So the states that `run` of
the encoder gives stand for the text that they are of: the decoder finds it by them, and has it encoded anew before a
step where the last call of the encoder was for other rows.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from isoform.errors import InputError
from isoform.runtimes.backends.decoder import chosen, counted
from isoform.runtimes.backends.inputs import checked
from isoform.runtimes.backends.llamacpp.session import GROUP, LlamaCppSession
from isoform.runtimes.backends.llamacpp.worker import BATCH, ContextSize
from isoform.runtimes.backends.parts import PartsSession
from isoform.signature import BATCH as ROWS
from isoform.signature import LENGTH, Port, Signature

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from isoform.runtimes.session import Decoder, Rewinds, Session

Text = tuple[int, ...]
"""The token ids of a text that is read."""

REMEMBERED = 4096
"""Texts whose states are known by sight."""


def open_encoder_decoder(path: Path, signature: Signature, wires: Mapping[str, str], **options: Any) -> PartsSession:
    """The session of a file that holds both parts; `signature` is the decoder's, options as of `LlamaCppSession`."""
    parts = CrossSession(path, signature, **options)
    states, mask = signature.port("encoder_states"), signature.port("encoder_mask")
    sources = {wire.partition(".")[2]: source.partition(".") for wire, source in wires.items()}
    if states is None or mask is None or not {states.name, mask.name} <= sources.keys():
        parts.close()
        raise InputError(f"{path}: the manifest does not say what the decoder reads; export the model again")
    main = next(iter(wires)).partition(".")[0]
    encoder, _, given = sources[states.name]
    slots = (ROWS, LENGTH)
    read = Signature(
        (Port("input_ids", "int64", slots), Port(sources[mask.name][2], "int64", slots)),
        (Port(given, "float", (*slots, states.axes[-1])),),
    )
    sessions: dict[str, Session] = {encoder: EncoderSession(parts, read), main: parts}
    return PartsSession({encoder: read, main: signature}, sessions.__getitem__, wires)


class CrossSession(LlamaCppSession):
    """The decoder, and all that both sides share: the process, the context, and which rows attend to which text."""

    def __init__(self, path: Path, signature: Signature, **options: Any) -> None:
        super().__init__(path, signature, **options)
        self.generation = 0
        """How many contexts there were: a new one holds nothing."""
        self._readers: dict[int, Text] = {}  # sequence -> the text that it attends to in the context
        self._texts: OrderedDict[bytes, Text] = OrderedDict()  # by their states

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """One pass over tokens and encoder states, the past empty or absent -> {"logits": (B, T, V)}."""
        names = {port.name for port in self.signature.given}
        decoder = self.decoder({name: array for name, array in inputs.items() if name in names - {self.tokens}})
        return {self.signature.results[0].name: decoder.step(inputs[self.tokens], last=None)}

    @property
    def tokens(self) -> str:
        return self.names["tokens"]

    def decoder(self, rows: int | Mapping[str, NDArray[Any]]) -> CrossDecoder:  # type: ignore[override]
        """See `Session.decoder`. The encoder states must be those that this session gave."""
        ports = tuple(port for port in self.signature.given if port.name != self.tokens)
        if not isinstance(rows, Mapping):
            names = ", ".join(port.name for port in ports)
            raise InputError(f"each row of this decoder reads {names}; give decoder() these arrays by name")
        held = checked(Signature(ports, ()), rows)
        states, mask = held[self.names["encoder_states"]], held[self.names["encoder_mask"]]
        return CrossDecoder(self, [self._text(row[real != 0]) for row, real in zip(states, mask, strict=True)])

    def remember(self, text: Text, states: NDArray[np.float32]) -> None:
        """Know a text by its states (T, C) from now on."""
        self._texts[_digest(states)] = text
        while len(self._texts) > REMEMBERED:
            self._texts.popitem(last=False)

    def _text(self, states: NDArray[np.float32]) -> Text:
        if (found := self._texts.get(_digest(states))) is None:
            raise InputError(
                "these encoder states are not of this session, and llama.cpp's decoder reads those of its own encoder "
                "only; give what `encode` of this session gave"
            )
        return found

    def make_room(self, rows: int, slots: int, encoded: int) -> ContextSize:
        """The context, with so many rows, slots of all rows together, and tokens of the encoder; `lock` is held.

        Where it was too small, a new one takes its place, which is empty.
        """
        old = self._opened
        if old is None or rows > old.rows or slots > old.slots or encoded > old.encoded:
            sizes = (rows, max(BATCH, slots), max(BATCH, encoded))
            if old is not None:
                sizes = max(rows, old.rows), max(slots, old.slots), max(encoded, old.encoded)
            most, total, together = (1 << (size - 1).bit_length() for size in sizes)
            outputs = self._room(most, total, shared=True).outputs
            need = ContextSize(most, total, outputs, shared=True, states=False, encoded=together)
            opened, _ = self._process.request("open", name="decoder", keep=[], room=asdict(need))
            self._opened = ContextSize(**opened)
            self.generation += 1
            self._readers = {}
        assert self._opened is not None
        return self._opened

    def encode(
        self, readers: Mapping[Text, list[int]], start: int, changes: Sequence[Sequence[int]]
    ) -> dict[Text, NDArray[np.float32]]:
        """Encode texts together, each for these sequences, which hold `start` tokens after the changes; `lock` is held.

        Sequences that are free are for one of the texts as well, so that a row may become two.
        """
        import numpy as np

        assert self._opened is not None
        taken = self.sequences.sizes()
        spare = [row for row in range(self._opened.rows) if row not in taken]
        emptied = [(row, 0) for row in spare]
        changes = [*changes, *emptied]
        shared: dict[Text, list[int]] = {}
        for n, (text, rows) in enumerate(readers.items()):
            own = spare[n :: len(readers)]
            shared[text] = [*rows, *own]
            if rows:  # what attends to a text must hold as many tokens, so these are copies of a row for a moment
                changes += [(rows[0], row, 0) for row in own]
        readers = shared
        ids = np.concatenate([np.array(text, np.int32) for text in readers])
        wrong = ids[(ids < 0) | (ids >= self.vocabulary_size)]
        if wrong.size:
            raise InputError(f"token id {wrong[0]} is outside the vocabulary of {self.vocabulary_size} tokens")
        sizes = [len(text) for text in readers]
        _, (data,) = self._process.request(
            "encode",
            [ids.tobytes()],
            name="decoder",
            sizes=sizes,
            readers=list(readers.values()),
            start=start,
            changes=changes,
            afterwards=emptied,
        )
        self._readers = {sequence: text for text, sequences in readers.items() for sequence in sequences}
        states = np.frombuffer(data, np.float32).reshape(len(ids), -1)
        return dict(zip(readers, np.split(states, np.cumsum(sizes)[:-1]), strict=True))

    def attend(
        self, texts: Mapping[int, Text], start: int, changes: Sequence[Sequence[int]]
    ) -> Sequence[Sequence[int]]:
        """Make each of these sequences attend to its text; see `encode`. Returns the changes that are left to make."""
        if all(self._readers.get(sequence) == text for sequence, text in texts.items()):
            return changes
        readers: dict[Text, list[int]] = {}
        for sequence, text in texts.items():
            readers.setdefault(text, []).append(sequence)
        self.encode(readers, start, changes)
        return ()

    def readers_of(self, text: Text) -> list[int]:
        """The sequences that attend to a text."""
        return [sequence for sequence, other in self._readers.items() if other == text]


class EncoderSession:
    """The encoder of a `CrossSession`: token ids and their mask in, the last hidden states out."""

    def __init__(self, parts: CrossSession, signature: Signature) -> None:
        self.signature = signature
        self.backend: str = parts.backend
        self._parts = parts

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Every input port -> last hidden states (B, T, C); padded slots come out as zeros."""
        import numpy as np

        given = checked(self.signature, inputs)
        ids, mask = (given[port.name] for port in self.signature.inputs)
        real = mask != 0
        if not real.any(1).all():
            raise InputError(f"row {int(real.any(1).argmin())} has no token; a text that is read has at least one")
        texts: list[Text] = [tuple(row[held].tolist()) for row, held in zip(ids, real, strict=True)]
        width = self.signature.outputs[0].axes[-1]
        out = np.zeros((*ids.shape, int(width)), np.float32)
        parts = self._parts
        for group in _together(texts):
            with parts.lock:
                sizes = parts.sequences.sizes()
                parts.make_room(len(sizes) + len(group), sum(sizes.values()), sum(len(texts[n]) for n in group))
                found = parts.encode({texts[n]: [] for n in group}, 0, ())
                for n in group:
                    out[n][real[n]] = found[texts[n]]
                    parts.remember(texts[n], found[texts[n]])
        return {self.signature.outputs[0].name: out}

    def decoder(self, rows: int | Mapping[str, NDArray[Any]]) -> Decoder:
        raise InputError("an encoder keeps no cache and decodes nothing; call run")

    def close(self) -> None:
        self._parts.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class CrossDecoder:
    """A `Decoder` whose rows are sequences of one context, each of which attends to a text. All rows have one length.

    Changes to the sequences wait for the next step. The tokens are kept, to be fed again to a new context.
    """

    rewinds: Rewinds = "together"

    def __init__(self, session: CrossSession, texts: Sequence[Text]) -> None:
        self._session, self._texts = session, list(texts)
        self._rows: list[int] = session.sequences.take(len(self._texts))
        self._leaving: list[int] = []  # what still may be the source of a copy
        self._changes: list[Sequence[int]] = [(row, 0) for row in self._rows]
        weakref.finalize(self, session.sequences.give_back, self._rows, self._leaving)
        self._tokens: list[list[int]] = [[] for _ in self._rows]
        self._generation = -1  # of the context that holds the rows

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def _slots(self) -> int:
        return len(self._tokens[0])

    def step(
        self,
        tokens: NDArray[Any] | Mapping[str, NDArray[Any]],
        *,
        mask: NDArray[Any] | None = None,
        positions: NDArray[Any] | None = None,
        last: int | None = 1,
    ) -> NDArray[np.float32]:
        """See `Decoder.step`."""
        import numpy as np

        session, batch = self._session, len(self._rows)
        ids = np.asarray(tokens[session.tokens] if isinstance(tokens, Mapping) else tokens)
        if ids.ndim != 2 or ids.shape[0] != batch or not ids.shape[1] or ids.dtype.kind not in "iu":
            raise InputError(
                f"{session.tokens} has shape {ids.shape} and dtype {ids.dtype}; this decoder takes whole numbers "
                f"({batch}, T), T at least 1"
            )
        if (mask is not None and not np.asarray(mask).all()) or positions is not None:
            raise InputError("this decoder has no port for a mask or positions: its rows are of one length")
        if last is not None and last < 1:
            raise InputError(f"last={last}: logits of at least one slot, or None for all")
        for row, new in zip(self._tokens, ids.tolist(), strict=True):
            row += new
        shown = ids.shape[1] if last is None else min(last, ids.shape[1])
        out = np.zeros((batch, shown, session.vocabulary_size), np.float32)
        with session.lock:
            sizes = session.sequences.sizes() | dict.fromkeys(self._rows, self._slots)
            room = session.make_room(max(self._rows) + 1, sum(sizes.values()), sum(map(len, set(self._texts))))
            if self._generation != session.generation:  # a new context: all of it goes in again
                ids, self._changes = np.array(self._tokens), [(row, 0) for row in self._rows]
                self._generation = session.generation
            before = self._slots - ids.shape[1]
            changes = session.attend(dict(zip(self._rows, self._texts, strict=True)), before, self._changes)
            held = np.ones(ids.shape, bool)
            wanted = np.arange(ids.shape[1]) >= ids.shape[1] - shown
            places = np.broadcast_to(np.arange(before, self._slots), ids.shape)
            session.feed("decoder", room, ids, places, held, held & wanted, out, self._rows, changes)
            session.sequences.note(self._rows, [self._slots] * batch)
            session.sequences.give_back(self._leaving)
            self._changes = []
        return out[:, 0] if last == 1 else out

    def select(self, rows: NDArray[np.int64]) -> None:
        """See `Decoder.select`."""
        order = chosen(rows, len(self._rows)).tolist()
        new: list[int] = []
        for n in order:
            row = self._rows[n]
            if row in new:
                (target,) = self._session.sequences.take(1, self._session.readers_of(self._texts[n]))
                self._changes += [(target, 0), (row, target, 0)]
                row = target
            new.append(row)
        self._leaving += [row for row in self._rows if row not in new]
        self._rows[:] = new
        self._tokens = [list(self._tokens[n]) for n in order]
        self._texts = [self._texts[n] for n in order]

    def join(self, other: Decoder) -> None:
        """See `Decoder.join`."""
        if other is self or not isinstance(other, CrossDecoder) or other._session is not self._session:
            raise InputError("only the rows of another decoder of the same session can join")
        if other._slots != self._slots:
            raise InputError(
                f"rows of {other._slots} tokens cannot join rows of {self._slots}: this model takes no padding"
            )
        if other._generation != self._generation:
            self._generation = -1
        for mine, theirs in ((self._rows, other._rows), (self._leaving, other._leaving)):
            mine += theirs
            theirs.clear()
        self._changes += other._changes
        self._tokens += other._tokens
        self._texts += other._texts

    def rewind(self, counts: ArrayLike) -> None:
        """See `Decoder.rewind`."""
        forgotten = counted(counts, len(self._rows))
        if len(set(forgotten.tolist())) > 1:
            raise InputError("all rows of this decoder forget equally many tokens: this model takes no padding")
        count = int(forgotten[0])
        if count > self._slots:
            raise InputError(f"the rows have {self._slots} tokens and cannot forget {count}")
        if count:
            self._tokens = [row[: len(row) - count] for row in self._tokens]
            self._changes += [(row, self._slots) for row in self._rows]


def _digest(states: NDArray[np.float32]) -> bytes:
    import numpy as np

    return sha256(np.ascontiguousarray(states, np.float32).tobytes()).digest()


def _together(texts: Sequence[Text]) -> Iterable[list[int]]:
    """Neighbouring texts that are encoded in one call: of `GROUP` tokens in all, unless one alone is longer."""
    group: list[int] = []
    total = 0
    for n, text in enumerate(texts):
        if group and total + len(text) > GROUP:
            yield group
            group, total = [], 0
        group.append(n)
        total += len(text)
    if group:
        yield group
