"""A GGUF model as a `Session`: rows of a padded batch become llama.cpp sequences without their padded slots."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from isoform.errors import BackendUnavailable, CheckpointError, InputError
from isoform.runtimes.backends.llamacpp.api import MAX_SEQUENCES
from isoform.runtimes.backends.llamacpp.process import Process
from isoform.runtimes.backends.llamacpp.vocabulary import Vocabulary
from isoform.runtimes.backends.llamacpp.worker import BATCH, Room
from isoform.signature import Signature

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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
        outputs = [port.name for port in signature.results]
        if outputs != (["logits"] if signature.states else ["last_hidden_state"]):
            raise BackendUnavailable(
                "llama.cpp gives the logits of decoders and the last hidden state of encoders, not "
                f"{', '.join(outputs)}; use the onnxruntime or torch backend for this model"
            )
        count = threads if threads is not None else _cpus()
        if count < 1:
            raise InputError(f"threads={threads}: at least one is needed")
        self._process = Process(path, gpu=_gpu(device), threads=count, strict=strict)
        try:
            self._check(path)
        except BaseException:
            self.close()
            raise
        self.vocabulary = Vocabulary(path, process=self._process)
        self._latest = 0  # the number of decoders made so far; only the last one may step

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Every input port, the past empty or absent -> {"logits": (B, T, V)} or {"last_hidden_state": (B, T, C)}.

        Padded slots come out as zeros. Each row is computed as if it were alone, at positions counted from its first
        token where the model takes no `position_ids`.
        """
        import numpy as np

        ids = self._ids(inputs)
        mask = _array(inputs, "attention_mask", ids.shape) != 0
        if "position_ids" in inputs:
            positions = _array(inputs, "position_ids", ids.shape)
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
            self._process.request("open", name="run", keep=False, room=asdict(room))
            held = mask[group]
            self._feed("run", room, ids[group], positions[group], held, held, out[group])
        return {"last_hidden_state" if states else "logits": out}

    def decoder(self, batch: int) -> LlamaCppDecoder:
        """Start decoding `batch` rows. There is one cache: a decoder made before this one ends here."""
        if not self.signature.states:
            raise InputError("this model is an encoder and decodes nothing; call run")
        if not 1 <= batch <= MAX_SEQUENCES:
            raise InputError(f"a batch of {batch} rows: llama.cpp decodes 1 to {MAX_SEQUENCES} together; split it")
        self._latest += 1
        return LlamaCppDecoder(self, batch, self._latest)

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
        """`input_ids`, after a look at every other port."""
        import numpy as np

        past = [state.input for state in self.signature.states]
        for name in past:
            if name in inputs and np.size(inputs[name]):
                raise InputError(f"{name} is not empty, and llama.cpp keeps its cache to itself; use decoder()")
        names = [port.name for port in self.signature.given]
        missing, unknown = [n for n in names if n not in inputs], sorted(set(inputs) - {*names, *past})
        if missing or unknown:
            wrong = f"{', '.join(missing)} missing" if missing else f"{', '.join(unknown)} unknown"
            raise InputError(f"inputs: {wrong}; this model takes {', '.join(names)}")
        ids = _array(inputs, "input_ids", None)
        if "token_type_ids" in inputs and np.any(_array(inputs, "token_type_ids", ids.shape)):
            raise InputError(
                "token_type_ids holds other values than 0, and llama.cpp has only the first token type; "
                "use the onnxruntime or torch backend for pairs of texts"
            )
        return ids

    def _room(self, rows: int, slots: int, *, shared: bool, states: bool = False) -> Room:
        """Sizes in powers of two, so that growing inputs make new contexts rarely."""
        outputs = max(rows, min(BATCH, LOGITS // self._process.facts["vocab"]))
        return Room(rows, max(BATCH, 1 << (slots - 1).bit_length()), outputs, shared, states)

    def _feed(
        self,
        name: str,
        room: Room,
        ids: NDArray[Any],
        positions: NDArray[Any],
        held: NDArray[np.bool_],
        wanted: NDArray[np.bool_],
        out: NDArray[np.float32],
    ) -> None:
        """Decode the slots that are `held` by a token and write the outputs of those `wanted` into `out`.

        Shapes: (B, T) each, out (B, W, width) for the last W slots.
        """
        import numpy as np

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
                f"position_ids go from {places[jumps[0]]} to {places[jumps[0] + 1]} in row {rows[jumps[0]]}; "
                "llama.cpp takes positions that go up by one from token to token"
            )
        for part in _parts(gives, room.slots if room.states else BATCH, len(gives) if room.states else room.outputs):
            blocks = [x[part].astype(np.int32).tobytes() for x in (tokens, places, rows)]
            give = gives[part]
            _, (data,) = self._process.request("decode", [*blocks, give.tobytes()], name=name)
            out[rows[part][give], slots[part][give] - hidden] = np.frombuffer(data, np.float32).reshape(
                -1, out.shape[2]
            )


class LlamaCppDecoder:
    """A `Decoder` whose keys and values live in llama.cpp, B rows of 512 tokens at first.

    When a row outgrows that, they are copied into a cache of twice the size. Padded slots take no room.
    """

    def __init__(self, session: LlamaCppSession, batch: int, number: int) -> None:
        import numpy as np

        self._session, self._batch, self._number = session, batch, number
        self._mask = np.zeros((batch, 0), np.bool_)
        self._next = np.full(batch, -1)  # the position that a row's next token must have; -1: any
        self._room: Room | None = None

    def step(
        self,
        input_ids: NDArray[Any],
        attention_mask: NDArray[Any] | None = None,
        position_ids: NDArray[Any] | None = None,
        *,
        all_logits: bool = False,
    ) -> NDArray[np.float32]:
        """See `Decoder.step`; logits of padded slots are zeros. After an error the decoder is of no further use."""
        import numpy as np

        from isoform.runtimes.backends.decoder import extended, following

        session, past = self._session, self._mask.shape[1]
        if self._number != session._latest:
            raise InputError("a newer decoder of this session has taken over the cache; use that one")
        ids = _array({"input_ids": input_ids}, "input_ids", None)
        length = ids.shape[1]
        if ids.shape[0] != self._batch or length == 0:
            raise InputError(f"input_ids has shape {ids.shape}; this decoder takes ({self._batch}, T), T at least 1")
        inputs = {
            "attention_mask": extended(self._mask, length) if attention_mask is None else attention_mask,
            "position_ids": following(np.maximum(self._next, 0) - 1, length) if position_ids is None else position_ids,
        }
        mask = _array(inputs, "attention_mask", (self._batch, past + length)) != 0
        positions = _array(inputs, "position_ids", ids.shape)
        if not np.array_equal(mask[:, :past], self._mask):
            raise InputError(
                f"attention_mask differs in its first {past} columns from the step before; only append to it"
            )
        held = mask[:, past:]
        first = np.take_along_axis(positions, held.argmax(1)[:, None], 1)[:, 0]
        broken = np.flatnonzero(held.any(1) & (self._next >= 0) & (first != self._next))
        if broken.size:
            row = broken[0]
            raise InputError(
                f"position_ids of row {row} go on at {first[row]}, but its next position is {self._next[row]}"
            )
        room = session._room(self._batch, int(mask.sum(1).max()), shared=False)
        if room != self._room:
            session._process.request("open", name="decoder", keep=self._room is not None, room=asdict(room))
            self._room = room
        shown = length if all_logits else 1  # slots whose logits are asked for, at the end
        wanted = held.copy()
        wanted[:, : length - shown] = False
        out = np.zeros((self._batch, shown, session._process.facts["vocab"]), np.float32)
        session._feed("decoder", room, ids, positions, held, wanted, out)
        self._mask = mask
        last = np.where(held, positions, -1).max(1)
        self._next = np.where(held.any(1), last + 1, self._next)
        return out if all_logits else out[:, 0]


def _array(inputs: Mapping[str, NDArray[Any]], name: str, shape: tuple[int, ...] | None) -> NDArray[Any]:
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


def _cpus() -> int:
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if limit.isdecimal() and limit != "0":
        return int(limit)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpu(device: str) -> int | None:
    kind, _, index = device.partition(":")
    if device == "cpu":
        return None
    if kind == "cuda" and (index.isdecimal() or device == "cuda"):
        return int(index or 0)
    raise InputError(f"device {device!r} is none of cpu, cuda, cuda:N")
