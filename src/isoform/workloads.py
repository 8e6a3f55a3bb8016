"""What candidates are timed on: small typical requests of a task, the same ones for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from isoform.validators.cases.prose import TEXT
from isoform.validators.cases.requests import OF_PIPELINE, request_of

if TYPE_CHECKING:
    from isoform.runtimes.pipelines.base import Pipeline
    from isoform.runtimes.session import Decoder

SHORT = ("prefill 128", "decode", "batch 1", "batch 8", "30 s")
"""The workloads that a choice needs; the others are for a table."""
STEPS = 16
"""Tokens of a round that decodes."""
SPOKEN = 64
"""Tokens that a model writes for half a minute of sound."""
RATE = 16000

Timed = tuple[float, float]
"""Items and seconds."""


@dataclass(frozen=True, slots=True)
class Workload:
    """`run` does it once, with what `begin` made, which is not timed: how many items of `unit` in how many seconds."""

    unit: str
    run: Callable[[Any], Timed]
    begin: Callable[[], Any] = lambda: None


def workloads_of(pipe: Pipeline) -> dict[str, Workload]:
    """The workloads of a pipeline's task by name."""
    if pipe.task == "text-generation":
        return _decoding(pipe)
    if pipe.task == "automatic-speech-recognition":
        return {"30 s": Workload("s", lambda _: (30.0, _seconds(lambda: _transcribe(pipe))))}
    item, parameters = _item(pipe)
    unit = "pictures" if type(pipe).sees else "recordings" if type(pipe).hears else "texts"
    unit = "pages" if pipe.reads_pages else unit
    sizes = (1, 8) if type(pipe).sees or type(pipe).hears else (1, 8, 32)
    return {f"batch {size}": Workload(unit, _batch(pipe, item, parameters, size)) for size in sizes}


def _seconds(work: Callable[[], Any]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


# ------------------------------------------------------------------ one pass for each input
def _batch(
    pipe: Pipeline, item: Callable[[int], Any], parameters: Mapping[str, Any], size: int
) -> Callable[[Any], Timed]:
    items = [item(n) for n in range(size)]
    given = items[0] if size == 1 else items
    return lambda _: (float(size), _seconds(lambda: pipe(given, batch_size=size, **parameters)))


def _item(pipe: Pipeline) -> tuple[Callable[[int], Any], Mapping[str, Any]]:
    """What gives the Nth input of a task, and the parameters of a call."""
    from isoform.runtimes.pipelines import WRITING, known

    task = known(pipe.task)
    if not pipe.reads_pages and task in ("feature-extraction", "text-classification", "token-classification"):
        return lambda n: SENTENCES[n % len(SENTENCES)], {}
    if task in WRITING:
        return lambda n: SENTENCES[n % len(SENTENCES)], {"max_new_tokens": STEPS, "min_new_tokens": STEPS}
    if task in OF_PIPELINE:
        return lambda n: OF_PIPELINE[task](pipe), {}
    make, parameters = request_of(pipe, task)
    return lambda n: make(), parameters


def _sentences() -> list[str]:
    """Pieces of our own text, of 20 to 40 words each."""
    words = TEXT.split()
    found: list[str] = []
    start = 0
    while start < len(words):
        end = start + 20 + (7 * len(found)) % 21
        found.append(" ".join(words[start:end]))
        start = end
    return found


SENTENCES = _sentences()


# ------------------------------------------------------------------ speech
def _transcribe(pipe: Pipeline) -> None:
    import numpy as np

    times = np.arange(30 * RATE, dtype=np.float32) / RATE
    sound = 0.1 * np.sin(2 * np.pi * 220 * times) * (np.sin(2 * np.pi * 3 * times) > 0)
    limit: dict[str, Any] = {"generate_kwargs": {"max_new_tokens": SPOKEN, "min_new_tokens": SPOKEN}}
    pipe({"raw": sound.astype(np.float32), "sampling_rate": RATE}, **(limit if pipe.session.signature.states else {}))


# ------------------------------------------------------------------ token by token
def _decoding(pipe: Pipeline) -> dict[str, Workload]:
    """Reading a prompt, and decoding one row and several; shorter where the model has fewer positions."""
    room = pipe.context or 1 << 20
    prompt = max(1, min(128, room - STEPS))
    found = {
        "prefill 128": Workload("tokens", _prefill, lambda: _row(pipe, prompt)),
        "decode": Workload("tokens", _decode, lambda: _begun(pipe, 1, prompt)),
        "batch 8": Workload("tokens", _decode, lambda: _begun(pipe, 8, min(16, prompt))),
        "batch 32": Workload("tokens", _decode, lambda: _begun(pipe, 32, min(16, prompt))),
    }
    if room > 1024:
        found["prefill 1024"] = Workload("tokens", _prefill, lambda: _row(pipe, 1024))
    return found


def _prompt(pipe: Pipeline, rows: int, length: int) -> Any:
    """Token ids (rows, length) of our own text; each row starts at another word."""
    import numpy as np

    ids = np.asarray(pipe.text_tokenizer.encode([TEXT], add_special_tokens=False)[0].ids, np.int64)
    ids = ids[ids < (pipe.vocabulary or ids.max() + 1)]
    return np.stack([np.resize(np.roll(ids, -17 * row), length) for row in range(rows)])


Row = tuple["Decoder", Any]
"""A decoder, and the tokens (rows, T) that it is fed next."""


def _row(pipe: Pipeline, length: int) -> Row:
    return pipe.session.decoder(1), _prompt(pipe, 1, length)


def _begun(pipe: Pipeline, rows: int, length: int) -> Row:
    """Rows whose prompts were read, and their next tokens."""
    import numpy as np

    decoder = pipe.session.decoder(rows)
    return decoder, decoder.step(_prompt(pipe, rows, length)).argmax(-1).astype(np.int64)[:, None]


def _prefill(row: Row) -> Timed:
    decoder, tokens = row
    return float(tokens.size), _seconds(lambda: decoder.step(tokens))


def _decode(row: Row) -> Timed:
    """Tokens of all rows, greedily, as the loop of generation feeds them."""
    decoder, tokens = row

    def steps() -> None:
        for _ in range(STEPS):
            tokens[:, 0] = decoder.step(tokens).argmax(-1)

    return float(len(tokens) * STEPS), _seconds(steps)
