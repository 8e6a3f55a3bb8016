"""The cases of a model whose inputs are tokens: random ids, and real text by the checkpoint's own tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from isoform.validators.cases.case import LONG, SHORT, STEPS, Case, Row
from isoform.validators.cases.lengths import as_alone
from isoform.validators.cases.tables import real_tables, table_types, type_sizes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from isoform.reference.model import Model

SMALL_WINDOW = 64  # a longer window is outgrown by one row of its own, where that costs no more than `AFFORDABLE`
AFFORDABLE = 10**11  # tokens times parameters of the layers: a model of 100M with a window of 512, in 10 s in float64

FAR, SMALLEST = 5, 20
"""A row is far beyond a window of an encoder when it is so many times longer, and than a window of so many tokens."""

SIDES: tuple[Literal["left", "right"], ...] = ("left", "right")

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "In 1969 a guidance computer with 4 KiB of memory helped three people to the Moon and back; naïve but true.",
    "print(f'{x:>8.3f}')  # 数値を表示する 🙂",
)
"""Real text: prose, numbers and punctuation, code with another script and an emoji."""


def token_cases(model: Model, seed: int = 0) -> list[Case]:
    """The cases of a model whose inputs are tokens, the same for the same seed."""
    import numpy as np

    vocabulary = model.config.vocabulary or 1
    limit = positions(model)
    longest = min(_window(model) + 9, limit)
    random = np.random.default_rng(seed)
    needed = model.task.facts(model.config).get("needs_token")
    sizes = type_sizes(model)

    def row(length: int, types: int = 1) -> Row:
        length = max(1, min(length, limit))
        ids = random.integers(0, vocabulary, length)
        kinds = table_types(random, sizes, length) if sizes else random.integers(0, types, length)
        if needed is not None and length > 3:  # the token whose state a head reads: the last of several
            ids[[length // 3, 2 * length // 3]] = needed
        return Row(ids, kinds)

    one, short, long = row(1), row(SHORT), row(longest)
    mixed = (short, one, long)
    cases = [
        Case("one row", (one,), detail="length 1"),
        Case("one row", (short,), detail=f"length {len(short)}"),
        Case("one row", (long,), detail=f"length {len(long)}"),
        Case("batch of 3", (short, row(SHORT), row(SHORT)), detail=f"length {len(short)}"),
    ]
    cases += [Case(f"{side} padding", mixed, side, detail=_lengths(mixed)) for side in SIDES]
    if model.signature.takes("token_types") and not sizes:
        kinds = model.weights["type_embed.weight"].shape[0] if "type_embed.weight" in model.weights else 2
        typed = tuple(row(len(r), min(2, kinds)) for r in mixed)
        cases.append(Case("token types", typed, "left", optional=True, detail=_lengths(typed)))
    texts, tables = text_rows(model, vocabulary, limit), real_tables(model) if sizes else ()
    for group, rows in (("text", texts), ("table", tables)):
        if rows:
            found = ((side, f"{side} padding, {_lengths(rows)}") for side in SIDES)
            cases += [Case(group, rows, side, detail=detail, natural=True) for side, detail in found]
    if model.signature.states:
        cases += _cached(long, row)
        cases += _outgrowing(model, row(_long_window(model) + STEPS + 1))
    elif windows := _windows(model):
        cases += _far_beyond(model, short, row(FAR * max(SMALLEST, *windows) + 1))
    return as_alone(model, cases)


def _far_beyond(model: Model, short: Row, long: Row) -> Iterator[Case]:
    """A row that many windows lie side by side in, alone and beside a short one: some forms compute it in blocks."""
    from math import prod

    if len(long) * sum(prod(weight.shape) for name, weight in model.weights.items() if "layers." in name) <= AFFORDABLE:
        yield Case("past the window", (long,), detail=f"1 row of {len(long)}")
        yield Case("past the window", (short, long), "left", detail=f"left padding, {_lengths((short, long))}")


def _outgrowing(model: Model, row: Row) -> Iterator[Case]:
    """One row that is longer than a long window, if the model has one and the row is not too dear."""
    from math import prod

    window, total = _long_window(model), len(row)
    outside = ("embed.", "position_embed.", "head.")
    inside = sum(prod(weight.shape) for name, weight in model.weights.items() if not name.startswith(outside))
    if window and total == window + STEPS + 1 and total * inside <= AFFORDABLE:
        chunks = (total - STEPS, 1, 1, STEPS - 2)
        detail = f"of {window}, 1 row, chunks {_join(chunks)}"
        long = replace(row, asked=STEPS + 1)
        yield Case("past the window", (long,), chunks=chunks, last_only=True, detail=detail)


def _cached(long: Row, row: Any) -> Iterator[Case]:
    """A prompt, single tokens and a chunk through the cache; the prompt in two chunks as well."""
    total = len(long)
    tail = (1, 1, 1, 1, STEPS - 4) if total > 2 * STEPS else (1,) * (total // 2)
    prompt = total - sum(tail)
    if prompt < 1:
        return
    first = min(SHORT, prompt)
    chunks = (*((first, prompt - first) if prompt > first else (first,)), *tail)
    yield Case("cached decoding", (long,), chunks=chunks, detail=f"1 row, chunks {_join(chunks)}")
    padded = (prompt, *tail)
    rows = (long, row(total - min(3, prompt - 1)), row(total - prompt + 1))
    for side in SIDES:
        detail = f"{side} padding, {_lengths(rows)}, chunks {_join(padded)}"
        yield Case("cached decoding", rows, side, padded, last_only=side == "left", detail=detail)


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
    return model.config.context or 2**31


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
