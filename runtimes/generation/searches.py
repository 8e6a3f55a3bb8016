"""Searches: how the texts of one prompt are found from the logits, greedily, by sampling or by beams.

A search knows no decoder. It is given the logits of its rows of the batch, and says which tokens to feed next and which
of its rows go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.generation.beams import BeamRules, Beams
from isoform.runtimes.generation.processors import Processor, draw, log_softmax, nothing_but_numbers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.generation.settings import GenerationConfig

Reason = Literal["stop", "length", "time"]
"""Why a row ended: a token or string that ends it, its greatest length, or the time."""

Decode = Callable[[Sequence[int]], str]
"""Token ids to text."""

Stop = Callable[[Sequence[int]], bool]
"""All ids of a row, with its prompt -> whether it ends there."""


@dataclass(slots=True)
class TextRow:
    """One text being generated: its prompt, its new tokens, and why it ended (None while it goes on).

    A beam search fills it in when it ends, with the `score`. `chances` are the log-probabilities of the new tokens
    among those that the rules allowed, where the call keeps them.
    """

    prompt: list[int]
    made: list[int]
    reason: Reason | None = None
    score: float | None = None
    chances: list[float] = field(default_factory=list)


class Search(Protocol):
    """Finds the rows of one prompt."""

    @property
    def done(self) -> bool: ...

    @property
    def tokens(self) -> list[int]:
        """The token to feed next to each of its rows of the batch."""
        ...

    def advance(self, logits: NDArray[np.float32], late: bool) -> list[int] | None:
        """Choose the next tokens from the logits (rows, V); `late`: the time is over.

        Returns which of its rows go on, None when they do as they are.
        """


class TokenSearch:
    """One row, whose next token is the likeliest or, with `random`, drawn."""

    def __init__(
        self,
        row: TextRow,
        config: GenerationConfig,
        chain: Sequence[Processor],
        limit: int,
        *,
        random: np.random.Generator | None = None,
        decode: Decode | None = None,
        stop: Stop | None = None,
        keep_chances: bool = False,
    ) -> None:
        """`stop` says of all ids of the row, with its prompt, whether it ends there."""
        self._row, self._stop = row, stop
        self._chain, self._limit, self._random, self._decode, self._keep = chain, limit, random, decode, keep_chances
        self._ends, self._strings = frozenset(config.eos_token_id or ()), config.stop_strings
        self._looks = bool(chain) or random is not None or keep_chances  # at more than the greatest
        self.done, self.tokens = False, [0]

    def advance(self, logits: NDArray[np.float32], late: bool) -> None:
        """See `Search.advance`."""
        row, scores = self._row, logits[0] if self._looks else logits
        if self._chain:
            so_far = np.array(row.prompt + row.made, np.int64)
            for process in self._chain:
                scores = process(so_far, scores)
        token = int(scores.argmax())
        best = scores.item(token)
        if best != best:  # a NaN comes before all numbers
            nothing_but_numbers(scores)
        if self._random is not None:
            token = self._drawn(scores, self._random)
        if self._keep:
            row.chances.append(float(log_softmax(scores)[token]))
        row.made.append(token)
        self.tokens[0] = token
        stopped = self._strings and self._decode and _stopped(row, self._strings, self._decode)
        if token in self._ends or stopped or (self._stop is not None and self._stop([*row.prompt, *row.made])):
            row.reason = "stop"
        elif len(row.prompt) + len(row.made) >= self._limit:
            row.reason = "length"
        elif late:
            row.reason = "time"
        self.done = row.reason is not None

    def _drawn(self, scores: NDArray[np.float32], random: np.random.Generator) -> int:
        return draw(scores, random)


class BeamSearch:
    """The best rows of one prompt among beams that grow side by side."""

    def __init__(
        self,
        rows: Sequence[TextRow],
        config: GenerationConfig,
        chain: Sequence[Processor],
        limit: int,
        *,
        random: np.random.Generator | None = None,
        decode: Decode | None = None,
        stop: Stop | None = None,
        keep_chances: bool = False,
    ) -> None:
        prompt, strings, ends = rows[0].prompt, config.stop_strings, frozenset(config.eos_token_id or ())

        def ended(made: Sequence[int]) -> bool:
            if stop is not None and stop([*prompt, *made]):
                return True
            return bool(strings and decode and _stopped(TextRow(prompt, list(made)), strings, decode))

        self._rows, self._limit = rows, limit
        self._stops: Callable[[Sequence[int]], bool] = lambda made: made[-1] in ends or ended(made)
        self._beams = Beams(
            prompt,
            BeamRules(
                width=config.num_beams, length_penalty=config.length_penalty, early_stopping=config.early_stopping
            ),
            chain,
            limit - len(prompt),
            ends=ends,
            ended=ended if strings or stop is not None else None,
            random=random,
            keep_chances=keep_chances,
        )

    @property
    def done(self) -> bool:
        return self._beams.done

    @property
    def tokens(self) -> list[int]:
        return self._beams.tokens

    def advance(self, logits: NDArray[np.float32], late: bool) -> list[int]:
        """See `Search.advance`."""
        parents = self._beams.advance(logits, late)
        if self.done:
            for row, beam in zip(self._rows, self._beams.best, strict=False):
                row.made[:], row.chances[:], row.score = beam.made, beam.chances, float(beam.score)
                short = len(row.prompt) + len(row.made) < self._limit
                row.reason = "stop" if self._stops(row.made) else "time" if short else "length"
        return parents


def longest(row: TextRow, config: GenerationConfig, context: int | None) -> int:
    """How long a row may become, prompt included. Raises InputError when that leaves no token to generate."""
    length = len(row.prompt)
    if not length:
        raise InputError("the prompt is empty and the model has no token that begins a text; give it a text")
    if context is not None and length > context:
        raise InputError(
            f"the prompt has {length} tokens, and the model {context} positions; shorten it, or pass truncation=True"
        )
    if config.max_new_tokens is not None:
        most = length + config.max_new_tokens
        name = f"max_new_tokens={config.max_new_tokens}"
    elif config.max_length is not None:
        most, name = config.max_length, f"max_length={config.max_length}"
    else:
        most, name = length + 20, ""
    if most <= length:
        raise InputError(f"the prompt has {length} tokens, so {name} leaves nothing to generate; pass max_new_tokens=")
    # The last token is not fed back: it needs no position.
    return most if context is None else min(most, context + 1)


def _stopped(row: TextRow, strings: Sequence[str], decode: Decode) -> bool:
    """Whether the last token completes one of the strings; one may begin in the prompt, as in transformers."""
    window = max(len(string.encode()) for string in strings) + 2  # every token writes at least one byte
    tail = [*row.prompt[-window:], *row.made][-window:]
    before, text = decode(tail[:-1]).rstrip("\ufffd"), decode(tail)
    return any(text.find(string, max(0, len(before) - len(string) + 1)) >= 0 for string in strings)
