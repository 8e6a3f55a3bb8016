"""The worker process: one model of llama.cpp, served over standard input and output until the input ends.

Started by `process.Process` as `python -m isoform.runtimes.backends.llamacpp.worker`; imports neither NumPy nor torch.
A mistake in a request is answered by name and message; anything else ends the process, and its standard error says why.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from isoform.errors import BackendUnavailable, CheckpointError, IsoformError
from isoform.runtimes.backends.llamacpp import api, frames

HEADER = 8  # bytes of a sequence's state before its caches: a magic number and the sequence
SPARE = 2  # an empty context is used again unless it has more than so many times the rows
BATCH = 512  # tokens in one call of llama_decode, unless the model needs a whole row at once

Blocks = list[bytearray]
Reply = tuple[dict[str, Any], list[Any]]


@dataclass(frozen=True, slots=True)
class ContextSize:
    """The size of a context: `rows` sequences of `slots` tokens each, or of `slots` in all where `shared`.

    `outputs` positions of one call may give logits; with `states` every position gives its last hidden state instead.
    `encoded`: the tokens of one call of the encoder, in a model that has one beside its decoder.
    """

    rows: int
    slots: int
    outputs: int
    shared: bool
    states: bool
    encoded: int = 0

    def fits_in(self, other: ContextSize) -> bool:
        same = (self.shared, self.states) == (other.shared, other.states)
        sizes = ((mine.rows, mine.slots, mine.outputs, mine.encoded) for mine in (self, other))
        return same and all(need <= has for need, has in zip(*sizes, strict=True))


class Worker:
    """The requests, one public method each; arguments are the JSON fields and the byte blocks of a message."""

    def __init__(self) -> None:
        self._api = api.Api()
        self._ffi, self._lib = self._api.ffi, self._api.lib
        self._contexts: dict[str, tuple[Any, ContextSize]] = {}
        self._model: Any = None
        self._vocab: Any = None
        self._threads = 1
        self._strict = False
        self._seen: list[tuple[dict[str, Any], bytes, bytes]] = []  # what `reveal` has met so far
        self._before: dict[int, tuple[Any, bytes]] = {}
        self._given: tuple[Any, bytes] = ((), b"")
        self._part = 0

    def load(self, _: Blocks, *, path: str, vocab_only: bool, gpu: int | None, threads: int, strict: bool) -> Reply:
        """Load the model; `gpu` is the index of the device that takes all layers, None keeps to the CPU."""
        if gpu is not None and not self._lib.llama_supports_gpu_offload():
            raise BackendUnavailable(
                "the installed xllamacpp is built for the CPU only; use device='cpu', or install its CUDA build, "
                f"version {api.XLLAMACPP}, from https://xorbitsai.github.io/xllamacpp/whl/"
            )
        params = self._lib.llama_model_default_params()
        params.vocab_only = vocab_only
        no_devices = self._ffi.new("void *[1]")  # an empty list; without it, large products go to a GPU if there is one
        if gpu is None:
            params.n_gpu_layers, params.devices = 0, no_devices
        else:
            params.split_mode, params.main_gpu = api.SPLIT_NONE, gpu
        self._model = self._lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise CheckpointError(
                f"llama.cpp cannot load {path}: {self._api.reason()}; the file is damaged, incomplete or newer than "
                f"llama.cpp in xllamacpp {api.XLLAMACPP}: write or download it again"
            )
        self._vocab = self._lib.llama_model_get_vocab(self._model)
        self._threads, self._strict = threads, strict
        facts = {"vocab": self._lib.llama_vocab_n_tokens(self._vocab)}
        if not vocab_only:
            facts["width"] = self._lib.llama_model_n_embd_out(self._model)
            facts["window"] = self._lib.llama_model_n_swa(self._model)
            facts["positions"] = self._lib.llama_model_n_ctx_train(self._model)
        return facts, []

    def open(self, _: Blocks, *, name: str, keep: list[int], room: dict[str, Any]) -> Reply:
        """Make the context `name` at least as large as `room`; without sequences to `keep`, it is empty then.

        A new one takes the place of one that is too small, or of an empty one that is far too large.
        """
        need = ContextSize(**room)
        old = self._contexts.get(name)
        if old is not None and need.fits_in(old[1]) and (keep or old[1].rows <= SPARE * need.rows):
            memory = self._lib.llama_get_memory(old[0])
            if memory and not keep:
                self._lib.llama_memory_clear(memory, False)
            return asdict(old[1]), []
        if old is not None and not keep:
            del self._contexts[name]
            self._lib.llama_free(old[0])
        new = self._context(need)
        if old is not None and keep:
            self._move(old, (new, need), keep)
            self._lib.llama_free(old[0])
        self._contexts[name] = new, need
        return asdict(need), []

    def decode(self, blocks: Blocks, *, name: str, changes: Sequence[Sequence[int]] = ()) -> Reply:
        """Make `changes` to sequences, then feed N tokens.

        A change is [sequence, first position to forget], or [source, target, 0], a copy. blocks: the ids, positions and
        sequences of the tokens (int32), and whether each gives an output (int8). Gives one block, float32 of shape
        (outputs, vocabulary or hidden size), in the order of the tokens.
        """
        context, room = self._contexts[name]
        self._change(context, changes)
        ids, positions, sequences = (self._ffi.from_buffer("int32_t[]", block) for block in blocks[:3])
        wanted = self._ffi.from_buffer("int8_t[]", blocks[3])
        names = self._ffi.new("int32_t[]", list(range(room.rows)))
        ones = self._ffi.new("int32_t[]", [1] * len(ids))
        owners = self._ffi.new("int32_t *[]", [names + sequence for sequence in sequences])
        fields = {"n_tokens": len(ids), "token": ids, "pos": positions, "logits": wanted}
        batch = self._ffi.new("llama_batch *", {**fields, "n_seq_id": ones, "seq_id": owners})
        self._api.log.clear()
        # An encoder like T5's has a call of its own; for one like BERT's both calls are the same.
        encodes = room.states and self._lib.llama_model_has_encoder(self._model)
        code = (self._lib.llama_encode if encodes else self._lib.llama_decode)(context, batch[0])
        if code != 0:
            raise IsoformError(f"llama.cpp refuses a batch of {len(ids)} tokens (code {code}): {self._api.reason()}")
        if room.states:
            out, width = self._lib.llama_get_embeddings(context), self._lib.llama_model_n_embd_out(self._model)
        else:
            out, width = self._lib.llama_get_logits(context), self._lib.llama_vocab_n_tokens(self._vocab)
        return {}, [self._ffi.buffer(out, 4 * width * sum(wanted)) if any(wanted) else b""]

    def encode(
        self,
        blocks: Blocks,
        *,
        name: str,
        sizes: list[int],
        readers: list[list[int]],
        start: int,
        changes: Sequence[Sequence[int]],
        afterwards: Sequence[Sequence[int]],
    ) -> Reply:
        """Run the encoder over texts back to back, `sizes` tokens each, between changes as in `decode`.

        blocks: one, the ids (int32). `readers`: the sequences whose decoder steps attend to each text, from now on and
        until the next call; others attend to nothing. All readers of a text must hold the same positions, `start` of
        them, for llama.cpp wants the text's to go on from there; the encoder looks at distances alone. Gives one
        block, the last hidden states, float32 of shape (tokens, hidden size).
        """
        context, _ = self._contexts[name]
        self._change(context, changes)
        owners: list[Any] = []
        counts: list[int] = []
        places: list[int] = []
        for size, sequences in zip(sizes, readers, strict=True):
            names = self._ffi.new("int32_t[]", sequences)
            owners += [names] * size
            counts += [len(sequences)] * size
            places += range(start, start + size)
        total = len(places)
        fields = {
            "n_tokens": total,
            "token": self._ffi.from_buffer("int32_t[]", blocks[0]),
            "pos": (positions := self._ffi.new("int32_t[]", places)),
            "n_seq_id": (numbers := self._ffi.new("int32_t[]", counts)),
            "seq_id": (lists := self._ffi.new("int32_t *[]", owners)),
            "logits": (wanted := self._ffi.new("int8_t[]", [1] * total)),
        }
        batch = self._ffi.new("llama_batch *", fields)
        self._api.log.clear()
        code = self._lib.llama_encode(context, batch[0])
        del positions, numbers, lists, wanted  # alive until here: the batch only points to them
        if code != 0:
            raise IsoformError(f"llama.cpp cannot encode {total} tokens (code {code}): {self._api.reason()}")
        self._change(context, afterwards)
        out, width = self._lib.llama_get_embeddings(context), self._lib.llama_model_n_embd_out(self._model)
        return {}, [self._ffi.buffer(out, 4 * width * total)]

    def _change(self, context: Any, changes: Sequence[Sequence[int]]) -> None:
        memory = self._lib.llama_get_memory(context)
        for sequence, position, *copied in changes:
            if copied:
                self._lib.llama_memory_seq_cp(memory, sequence, position, -1, -1)
            elif not self._lib.llama_memory_seq_rm(memory, sequence, position, -1):
                raise IsoformError(
                    f"llama.cpp cannot forget the tokens of this model from position {position} on; its cache is not "
                    "one of all slots"
                )

    def tokenize(self, blocks: Blocks, *, sizes: list[int], add_special: bool, parse_special: bool) -> Reply:
        """One block of UTF-8 texts back to back, `sizes` bytes each -> one block of int32 ids, `sizes` ids each."""
        counts, ids, start = [], bytearray(), 0
        text = self._ffi.from_buffer("char[]", blocks[0])
        for size in sizes:
            room = size + 16  # a byte makes one token at most; the rest is for special ones
            out = self._ffi.new("int32_t[]", room)
            count = self._lib.llama_tokenize(self._vocab, text + start, size, out, room, add_special, parse_special)
            if count < 0:
                out = self._ffi.new("int32_t[]", -count)
                count = self._lib.llama_tokenize(
                    self._vocab, text + start, size, out, -count, add_special, parse_special
                )
            counts.append(count)
            ids += self._ffi.buffer(out, 4 * count)
            start += size
        return {"sizes": counts}, [ids]

    def detokenize(self, blocks: Blocks, *, sizes: list[int], remove_special: bool, unparse_special: bool) -> Reply:
        """One block of int32 ids back to back, `sizes` ids each -> one block of bytes, `sizes` bytes each."""
        counts, texts, start = [], bytearray(), 0
        ids = self._ffi.from_buffer("int32_t[]", blocks[0])
        for size in sizes:
            room = 16 * size + 16
            out = self._ffi.new("char[]", room)
            count = self._lib.llama_detokenize(
                self._vocab, ids + start, size, out, room, remove_special, unparse_special
            )
            if count < 0:
                out = self._ffi.new("char[]", -count)
                count = self._lib.llama_detokenize(
                    self._vocab, ids + start, size, out, -count, remove_special, unparse_special
                )
            counts.append(count)
            texts += self._ffi.buffer(out, count)
            start += size
        return {"sizes": counts}, [texts]

    def reveal(self, blocks: Blocks, *, parts: list[int], states: bool) -> Reply:
        """Feed N tokens of one row, `parts` of them at a time, and give what is computed next to every weight.

        blocks: ids and positions (int32). The answer has an entry per operation with a weight, and per rotation: the
        part, the operation, the names of its tensor and weight, and shapes of what went in and came out (columns
        first); a block of float32 for each of the two, empty where it is no such array.
        """
        total = sum(parts)
        outputs = max(parts)
        context = self._context(ContextSize(1, max(BATCH, total), outputs, False, states), self._watch())
        seen: list[tuple[dict[str, Any], bytes, bytes]] = []
        try:
            start = 0
            for n, count in enumerate(parts):
                self._seen = seen
                self._part, self._before = n, {}
                ids, positions = (self._ffi.from_buffer("int32_t[]", block)[start : start + count] for block in blocks)
                row = self._ffi.new("int32_t[]", [0])
                fields = {
                    "n_tokens": count,
                    "token": (ids_ := self._ffi.new("int32_t[]", list(ids))),
                    "pos": (positions_ := self._ffi.new("int32_t[]", list(positions))),
                    "n_seq_id": (ones := self._ffi.new("int32_t[]", [1] * count)),
                    "seq_id": (rows := self._ffi.new("int32_t *[]", [row] * count)),
                    "logits": (wanted := self._ffi.new("int8_t[]", [1] * count)),
                }
                batch = self._ffi.new("llama_batch *", fields)
                self._api.log.clear()
                code = self._lib.llama_decode(context, batch[0])
                del ids_, positions_, ones, rows, wanted  # alive until here: the batch only points to them
                if code != 0:
                    raise IsoformError(f"llama.cpp refuses {count} tokens (code {code}): {self._api.reason()}")
                start += count
        finally:
            self._lib.llama_free(context)
        return {"seen": [entry for entry, _, _ in seen]}, [data for _, *both in seen for data in both]

    def _watch(self) -> Any:
        """A callback for the graph's evaluation, which fills `_seen`. It must outlive the context."""
        ffi, lib = self._ffi, self._lib

        def name(tensor: Any) -> str:
            return str(ffi.string(lib.ggml_get_name(tensor)).decode(errors="replace"))

        def data(tensor: Any) -> bytes:
            if not tensor or tensor.type != api.F32 or not lib.ggml_is_contiguous(tensor):
                return b""
            size = lib.ggml_nbytes(tensor)
            out = ffi.new("uint8_t[]", size)
            lib.ggml_backend_tensor_get(tensor, out, 0, size)
            return bytes(ffi.buffer(out, size))

        def callback(tensor: Any, ask: bool, _: Any) -> bool:
            operation = ffi.string(lib.ggml_op_desc(tensor)).decode()
            sources = [source for source in tensor.src if source]
            weight = next((n for n in map(name, sources) if n.endswith((".weight", ".bias"))), "")
            if ask:  # what goes in: afterwards its memory may hold something else
                if operation in ("NORM", "RMS_NORM"):
                    self._before[int(ffi.cast("intptr_t", tensor))] = sources[0].ne, data(sources[0])
                elif weight:
                    given = next((source for source in sources if name(source) != weight), None)
                    key = int(ffi.cast("intptr_t", given)) if given else 0
                    self._given = self._before.get(key) or ((given.ne, data(given)) if given else ((), b""))
                return True
            if weight or operation == "ROPE" or name(tensor).startswith(("l_out", "result_output")):
                shape, content = self._given if weight else ((), b"")
                entry = {
                    "part": self._part,
                    "operation": operation,
                    "name": name(tensor),
                    "weight": weight,
                    "given": list(shape),
                    "made": list(tensor.ne),
                }
                self._seen.append((entry, content, data(tensor)))
            return True

        self._callback = ffi.callback("eval_callback", callback)
        return ffi.cast("void *", self._callback)

    def _context(self, room: ContextSize, watch: Any = None) -> Any:
        params = self._lib.llama_context_default_params()
        if watch is not None:
            params.cb_eval = watch
        params.n_ctx = room.slots if room.shared else room.slots * room.rows
        params.n_seq_max = room.rows
        params.kv_unified = room.shared
        together = room.slots if room.states else max(BATCH, room.encoded)  # encoders see all tokens at once
        params.n_batch = params.n_ubatch = together
        params.n_outputs_max = 0 if room.states else max(room.outputs, room.encoded)
        params.embeddings, params.pooling_type = room.states, api.POOLING_NONE
        params.n_threads = params.n_threads_batch = self._threads
        if self._strict:
            params.type_k = params.type_v = api.F32
            params.flash_attn_type = api.FLASH_ATTENTION_OFF
        self._api.log.clear()
        context = self._lib.llama_init_from_model(self._model, params)
        if not context:
            raise IsoformError(
                f"llama.cpp cannot make a context for {room.rows} rows of {room.slots} tokens: {self._api.reason()}; "
                "use fewer or shorter rows"
            )
        return context

    def _move(self, old: tuple[Any, ContextSize], new: tuple[Any, ContextSize], rows: list[int]) -> None:
        """Copy the keys and values of these rows, one at a time, so that only one is in memory three times.

        llama.cpp leaves out what no later token sees, since it is outside the window of its layer.
        """
        for row in rows:
            size = self._lib.llama_state_seq_get_size(old[0], row)
            state = self._ffi.new("uint8_t[]", size)
            self._lib.llama_state_seq_get_data(old[0], state, size, row)
            if old[1].rows != new[1].rows:
                windows = self._lib.llama_state_seq_get_size_ext(old[0], row, api.WINDOWS_ONLY)
                caches = [size - HEADER] if windows == size else [size - windows, windows - HEADER]
                data = renumbered(bytes(self._ffi.buffer(state, size)), caches, row, old[1].rows, new[1].rows)
                size, state = len(data), self._ffi.from_buffer("uint8_t[]", data)
            if self._lib.llama_state_seq_set_data(new[0], state, size, row) == 0:
                raise IsoformError(f"llama.cpp cannot move row {row} to a longer cache: {self._api.reason()}")


def renumbered(state: bytes, caches: list[int], row: int, old: int, new: int) -> bytes:
    """The state of a row in a context of `old` rows, as a context of `new` rows reads it.

    Behind a header stand `caches` of so many bytes: that of all slots, then that of windows. Each begins with the
    number of rows, uint32. A part for each row follows, uint32 0 for all but this one; its place is not read.
    """
    found, start = state[:HEADER], HEADER
    for size in caches:
        count, before = state[start : start + 4], state[start + 4 : start + 4 + 4 * row]
        end = start + size - 4 * (old - 1 - row)
        if int.from_bytes(count, "little") != old or any(before) or any(state[end : start + size]):
            raise IsoformError(f"llama.cpp's state of row {row} is not laid out as in xllamacpp {api.XLLAMACPP}")
        found += new.to_bytes(4, "little") + state[start + 4 + 4 * row : end] + bytes(4 * (new - 1))
        start += size
    return found


def _end_with(parent: int) -> None:
    """End this process when its parent has, even in the middle of a computation."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> None:
    # Whatever C code prints goes to standard error; the pipe stays clean.
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it ends us by closing the pipe
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    worker: Worker | None = None
    while True:
        try:
            request, blocks = frames.receive(requests)
        except EOFError:
            return
        try:
            worker = worker or Worker()
            reply, out = getattr(worker, request.pop("do"))(blocks, **request)
        except IsoformError as error:
            reply, out = {"error": type(error).__name__, "message": str(error)}, []
        frames.send(replies, reply, out)


if __name__ == "__main__":
    main()
