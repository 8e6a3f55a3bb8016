"""What a model is asked in a check: rows of tokens, pictures or sound, and how they are put together.

The truth about a row is what the reference says about that row alone, unpadded and in one pass. Every case (a batch,
a padding, a cache filled in parts) must give each of its rows that same result. Cases are made from the signature; what
stands for a real picture or sound goes through the checkpoint's own processor (`media`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from isoform.errors import InputError
from isoform.signature import BATCH, LENGTH, MEMORY, PAST, PAST_MEMORY, PICTURES, SENTENCES, TOTAL, Port, Signature

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from isoform.reference.model import Model

SHORT, LONG, STEPS = 7, 24, 8  # tokens; the last that many of a long row are decoded with a cache
SMALL_WINDOW = 64  # a longer window is outgrown by one row of its own, where that costs no more than `AFFORDABLE`
AFFORDABLE = 10**11  # tokens times parameters of the layers: a model of 100M with a window of 512, in 10 s in float64

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "In 1969 a guidance computer with 4 KiB of memory helped three people to the Moon and back; naïve but true.",
    "print(f'{x:>8.3f}')  # 数値を表示する 🙂",
)
"""Real text: prose, numbers and punctuation, code with another script and an emoji."""


@dataclass(frozen=True, eq=False)
class Row:
    """One input alone: tokens and their types, int64 (T,), and by port name the float32 arrays that are no tokens.

    `media` arrays are without the batch axis: pixel_values (C, H, W), input_values (samples,). A row without tokens is
    as long as the last axis of its first array. `asked` spares a long row the logits of its beginning.
    """

    tokens: NDArray[np.int64]
    types: NDArray[np.int64]
    media: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    asked: int = 0  # of the first output only so many last positions are looked at; 0: all of them

    def __len__(self) -> int:
        if self.media and not len(self.tokens):
            return int(next(iter(self.media.values())).shape[-1])
        return len(self.tokens)


@dataclass(frozen=True, eq=False)
class Case:
    """Rows together in a batch, shorter ones padded on one side: tokens by other tokens, sound by zeros.

    `parts`: instead of one pass the cache is filled by these numbers of slots, one step each; the first part is
    padded, what follows is not. `order`: after the first part the decoder goes on with these of its rows. `optional`: a
    session may refuse it, as not every backend has every input.
    """

    name: str
    rows: tuple[Row, ...]
    side: Literal["left", "right"] = "right"
    parts: tuple[int, ...] = ()
    last_only: bool = False  # with parts: ask for the logits of each step's last slot, as generation does
    optional: bool = False
    order: tuple[int, ...] = ()
    mask: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        import numpy as np

        width, tail = max(map(len, self.rows)), sum(self.parts[1:])
        mask = np.ones((len(self.rows), width), np.int64)
        for line, row in zip(mask, self.rows, strict=True):
            missing = width - len(row)
            line[slice(0, missing) if self.side == "left" else slice(width - tail - missing, width - tail)] = 0
        object.__setattr__(self, "mask", mask)

    def inputs(self, signature: Signature) -> dict[str, NDArray[Any]]:
        """Every input port for one pass over all slots. Padded slots hold tokens too: nobody may look at them."""
        return {port.name: self._port(port) for port in signature.inputs}

    def _port(self, port: Port) -> NDArray[Any]:
        import numpy as np

        from isoform.validators.cases.encoder_states import fed

        if (memory := fed(port, self.rows)) is not None:
            return memory
        if port.name in self.rows[0].media:
            return self._stacked([row.media[port.name] for row in self.rows])
        if port.name == "attention_mask":
            return self.mask
        if port.name == "position_ids":
            return np.maximum(self.mask.cumsum(1) - 1, 0)
        if port.name == "input_ids":
            return self._padded([row.tokens for row in self.rows])
        if port.name == "token_type_ids":
            return self._padded([row.types for row in self.rows])
        if PAST in port.axes or PAST_MEMORY in port.axes:
            sizes: dict[str | int, int] = {BATCH: len(self.rows), PAST: 0, PAST_MEMORY: 0}
            return np.zeros([sizes[a] if isinstance(a, str) else a for a in port.axes], np.float32)
        raise InputError(f"the validators do not know what to feed into the port {port.name!r} {port.axes}")

    def _padded(self, rows: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
        import numpy as np

        out = np.stack([np.resize(row[::-1], self.mask.shape[1]) for row in rows])
        for line, mask, row in zip(out, self.mask, rows, strict=True):
            line[mask == 1] = row
        return out

    def _stacked(self, rows: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        import numpy as np

        out = np.zeros((len(rows), *rows[0].shape[:-1], max(row.shape[-1] for row in rows)), np.float32)
        for line, row in zip(out, rows, strict=True):
            missing = line.shape[-1] - row.shape[-1]
            line[..., missing if self.side == "left" else 0 :][..., : row.shape[-1]] = row
        return out

    def steps(self, signature: Signature) -> Iterator[tuple[slice, dict[str, NDArray[Any]]]]:
        """The slots of each part, and its inputs but for the past."""
        whole = {name: array for name, array in self.inputs(signature).items() if array.shape == self.mask.shape}
        start = 0
        for part in self.parts:
            slots = slice(start, start + part)
            feed = {name: array[:, slots] for name, array in whole.items()}
            yield slots, {**feed, "attention_mask": self.mask[:, : slots.stop]}
            start = slots.stop


def real(port: Port, output: NDArray[Any], case: Case, row: int, want: tuple[int, ...]) -> NDArray[Any]:
    """The values of an output, without its batch axis, that stand for the tokens of one row of a case.

    Of a padded sound or memory, its first frames, as many as in `want`, the shape for the row alone. Where a second
    axis is the batch as well (logits of every picture for every text), its own entry.
    """
    from isoform.validators.cases.encoder_states import longest_memory

    mask = case.mask[row]
    padded = not mask.all()
    cut = longest_memory([case.rows[row]]) < longest_memory(case.rows)
    for axis, name in enumerate(port.axes[1:]):
        if name in (LENGTH, TOTAL):
            output = output.compress(mask[-output.shape[axis] :] != 0, axis) if output.shape[axis] else output
        elif name in (BATCH, PICTURES, SENTENCES):
            output = output[(slice(None),) * axis + (slice(row, row + 1),)]
        elif isinstance(name, str) and (padded or (cut and name == MEMORY)):
            output = output[(slice(None),) * axis + (slice(want[axis]),)]
    return output


def cases_of(model: Model, seed: int = 0) -> list[Case]:
    """The cases of a model of one part, or of one part of a model, the same for the same seed."""
    from isoform.validators.cases.encoder_states import memory_cases, reads_memory
    from isoform.validators.cases.media import media_cases

    if reads_memory(model.signature):
        return memory_cases(model, seed)

    floats = [port for port in model.signature.inputs if port.dtype == "float" and PAST not in port.axes]
    return media_cases(model, seed) if floats else token_cases(model, seed)


def token_cases(model: Model, seed: int = 0) -> list[Case]:
    """The cases of a model whose inputs are tokens, the same for the same seed."""
    import numpy as np

    ports = {port.name for port in model.signature.inputs}
    vocabulary = model.weights["embed.weight"].shape[0]
    limit = positions(model)
    longest = min(_window(model) + 9, limit)
    random = np.random.default_rng(seed)

    def row(length: int, types: int = 1) -> Row:
        length = max(1, min(length, limit))
        return Row(random.integers(0, vocabulary, length), random.integers(0, types, length))

    one, short, long = row(1), row(SHORT), row(longest)
    mixed = (short, one, long)
    cases = [
        Case("one row, length 1", (one,)),
        Case(f"one row, length {len(short)}", (short,)),
        Case(f"one row, length {len(long)}", (long,)),
        Case(f"batch of 3, length {len(short)}", (short, row(SHORT), row(SHORT))),
    ]
    cases += [Case(f"{side} padding, {_lengths(mixed)}", mixed, side) for side in ("left", "right")]
    if "token_type_ids" in ports:
        kinds = model.weights["type_embed.weight"].shape[0] if "type_embed.weight" in model.weights else 2
        typed = tuple(row(len(r), min(2, kinds)) for r in mixed)
        cases.append(Case(f"token types, {_lengths(typed)}", typed, "left", optional=True))
    texts = text_rows(model, vocabulary, limit)
    if texts:
        cases += [Case(f"text, {side} padding, {_lengths(texts)}", texts, side) for side in ("left", "right")]
    if model.signature.states:
        cases += _cached(long, row)
        cases += _outgrowing(model, row(_long_window(model) + STEPS + 1))
    return cases


def _outgrowing(model: Model, row: Row) -> Iterator[Case]:
    """One row that is longer than a long window, if the model has one and the row is not too dear."""
    from math import prod

    window, total = _long_window(model), len(row)
    outside = ("embed.", "position_embed.", "head.")
    inside = sum(prod(weight.shape) for name, weight in model.weights.items() if not name.startswith(outside))
    if window and total == window + STEPS + 1 and total * inside <= AFFORDABLE:
        parts = (total - STEPS, 1, 1, STEPS - 2)
        name = f"past the window of {window}, 1 row, parts {_join(parts)}"
        yield Case(name, (replace(row, asked=STEPS + 1),), parts=parts, last_only=True)


def _cached(long: Row, row: Any) -> Iterator[Case]:
    """A prompt, single tokens and a chunk through the cache; the prompt in two parts as well."""
    total = len(long)
    tail = (1, 1, 1, 1, STEPS - 4) if total > 2 * STEPS else (1,) * (total // 2)
    prompt = total - sum(tail)
    if prompt < 1:
        return
    first = min(SHORT, prompt)
    parts = (first, prompt - first) if prompt > first else (first,)
    yield Case(f"cached decoding, 1 row, parts {_join((*parts, *tail))}", (long,), parts=(*parts, *tail))
    rows = (long, row(total - min(3, prompt - 1)), row(total - prompt + 1))
    for side in ("left", "right"):
        yield Case(
            f"cached decoding, {side} padding, {_lengths(rows)}, parts {_join((prompt, *tail))}",
            rows,
            side,
            (prompt, *tail),
            last_only=side == "left",
        )


def _lengths(rows: Sequence[Row]) -> str:
    return f"rows of {_join([len(row) for row in rows])}"


def _join(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))


def _window(model: Model) -> int:
    """The largest attention window of the model, or LONG - 9 when there is none or none that a check can outgrow."""
    return max((window for window in _windows(model) if window < SMALL_WINDOW), default=LONG - 9)


def _long_window(model: Model) -> int:
    """The smallest attention window that is not small, or 0."""
    return min((window for window in _windows(model) if window >= SMALL_WINDOW), default=0)


def _windows(model: Model) -> list[int]:
    kinds = getattr(model.skeleton(), "kinds", ())
    return [kind.window for kind in kinds if kind.window is not None]


def positions(model: Model) -> int:
    """How many positions the model has: its table of learned ones, or what config.json says."""
    if "position_embed.weight" in model.weights:
        return int(model.weights["position_embed.weight"].shape[0])
    return int(getattr(model.config, "max_position_embeddings", 2**31))


def tokenizer(model: Model) -> Tokenizer | None:
    """The checkpoint's own tokenizer, or None when it has none that is a tokenizer.json."""
    text = model.checkpoint.read_text("tokenizer.json")
    if text is None:
        return None
    from tokenizers import Tokenizer

    found = Tokenizer.from_str(text)
    found.no_padding()
    found.no_truncation()
    return found


def text_rows(model: Model, vocabulary: int, limit: int) -> tuple[Row, ...]:
    """TEXTS as the checkpoint's tokenizer reads them; none when it has none, or ids that the model has no row for."""
    import numpy as np

    reader = tokenizer(model)
    if reader is None:
        return ()
    found = [np.array(reader.encode(line).ids[: min(limit, 2 * LONG)], np.int64) for line in TEXTS]
    if any(not ids.size or ids.max() >= vocabulary for ids in found):
        return ()
    return tuple(Row(ids, np.zeros_like(ids)) for ids in found)
