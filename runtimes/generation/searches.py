"""Searches: how the texts of one prompt are found from the logits, greedily, by sampling, by beams or by contrast.

A search knows no decoder. It is given the logits of its rows of the batch, and says which tokens to feed next and which
of its rows go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.generation.beam_groups import BeamGroups
from isoform.runtimes.generation.beams import Beam, BeamRules, Beams
from isoform.runtimes.generation.constrained_beams import ConstrainedBeams
from isoform.runtimes.generation.contrastive import Candidates
from isoform.runtimes.generation.processors import Processor, draw, log_softmax, nothing_but_numbers, some_token

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

    A beam search fills it in when it ends, with the `score`. Where the call keeps them, `chances` are the
    log-probabilities of the new tokens among those that the rules allowed, and `terms` those that make up the score of
    a beam.
    """

    prompt: list[int]
    made: list[int]
    reason: Reason | None = None
    score: float | None = None
    chances: list[float] = field(default_factory=list)
    terms: list[float] = field(default_factory=list)


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
        some_token(best)
        if self._random is not None:
            token = self._drawn(scores, self._random)
        if self._keep:
            row.chances.append(float(log_softmax(scores)[token]))
        self.tokens[0] = token
        self.done = self._take(token, late)

    def _take(self, token: int, late: bool) -> bool:
        """Append a token to the row -> whether it ends there."""
        row = self._row
        row.made.append(token)
        stopped = self._strings and self._decode and _stopped(row, self._strings, self._decode)
        if token in self._ends or stopped or (self._stop is not None and self._stop([*row.prompt, *row.made])):
            row.reason = "stop"
        elif len(row.prompt) + len(row.made) >= self._limit:
            row.reason = "length"
        elif late:
            row.reason = "time"
        return row.reason is not None

    def _drawn(self, scores: NDArray[np.float32], random: np.random.Generator) -> int:
        return draw(scores, random)


class ContrastiveSearch(TokenSearch):
    """One row, whose next token is chosen among candidates that the model has read; see `Candidates`."""

    def __init__(self, row: TextRow, config: GenerationConfig, chain: Sequence[Processor], limit: int, **options: Any):
        super().__init__(row, config, chain, limit, **options)
        self._candidates = Candidates(chain, config.penalty_alpha or 0.0, config.top_k or 1)
        self._seen: NDArray[np.float32] | None = None
        self._begun = False

    def see(self, hidden: NDArray[np.float32]) -> None:
        """Take the hidden states of its rows for the next `advance`, (rows, T, C); those of a prompt end at its end."""
        self._seen = hidden

    def advance(self, logits: NDArray[np.float32], late: bool) -> list[int]:  # type: ignore[override]
        """See `Search.advance`."""
        assert self._seen is not None
        row, best = self._row, 0
        if self._begun:
            best, chance = self._candidates.choose(self._seen[:, -1])
            if self._keep:
                row.chances.append(chance)
            self.done = self._take(self._candidates.tokens[best], late)
        if not self.done:
            ids = [*row.prompt, *row.made]
            if self._begun:
                self._candidates.go_on(ids, logits[best])
            else:
                self._candidates.begin(ids, logits[0], self._seen[0, -len(ids) :])
            self.tokens = self._candidates.tokens
        self._begun, self._seen = True, None
        return [best] * len(self.tokens)


class _Beams(Protocol):
    done: bool

    @property
    def best(self) -> list[Beam]: ...

    @property
    def tokens(self) -> list[int]: ...

    def advance(self, logits: NDArray[np.float32], late: bool = False) -> list[int]: ...


class BeamSearch:
    """The best rows of one prompt among beams that grow side by side, in groups, or with words that they must hold."""

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
        prompt, strings, ends = rows[0].prompt, config.stop_strings, config.eos_token_id or ()

        def ended(made: Sequence[int]) -> bool:
            if stop is not None and stop([*prompt, *made]):
                return True
            return bool(strings and decode and _stopped(TextRow(prompt, list(made)), strings, decode))

        self._rows, self._limit = rows, limit
        self._stops: Callable[[Sequence[int]], bool] = lambda made: made[-1] in ends or ended(made)
        groups = config.num_beam_groups if config.mode == "diverse beams" else 1
        rules = BeamRules(
            width=config.num_beams // groups,
            length_penalty=config.length_penalty,
            early_stopping=config.early_stopping,
        )
        most = limit - len(prompt)
        options: dict[str, Any] = {"keep_chances": keep_chances}
        options["ended"] = ended if strings or stop is not None else None
        if config.words:
            options |= {"ends": ends, "wanted": len(rows)}
            self._beams: _Beams = ConstrainedBeams(prompt, rules, config.words, chain, most, **options)
        elif groups > 1:
            padding = config.pad_token_id if config.pad_token_id is not None else (*ends, 0)[0]
            self._beams = BeamGroups(prompt, rules, groups, chain, most, ends=ends, padding=padding, **options)
        else:
            self._beams = Beams(prompt, rules, chain, most, ends=frozenset(ends), random=random, **options)

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
                row.made[:], row.chances[:], row.terms[:] = beam.made, beam.chances, beam.terms
                row.score = float(beam.score)
                short = len(row.prompt) + len(row.made) < self._limit
                row.reason = "stop" if self._stops(row.made) else "time" if short else "length"
        return parents


def longest(row: TextRow, config: GenerationConfig, context: int | None, *, feeds_last: bool = False) -> int:
    """How long a row may become, prompt included. Raises InputError when that leaves no token to generate.

    `feeds_last`: the last token is fed back as well, so that it needs a position.
    """
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
    room = most if context is None else context + (0 if feeds_last else 1)
    if room <= length:
        raise InputError(
            f"the prompt has {length} tokens, all that the model has positions for, and contrastive search feeds the "
            "last token as well; shorten it, or pass penalty_alpha=None"
        )
    return min(most, room)


def _stopped(row: TextRow, strings: Sequence[str], decode: Decode) -> bool:
    """Whether the last token completes one of the strings; one may begin in the prompt, as in transformers."""
    window = max(len(string.encode()) for string in strings) + 2  # every token writes at least one byte
    tail = [*row.prompt[-window:], *row.made][-window:]
    before, text = decode(tail[:-1]).rstrip("\ufffd"), decode(tail)
    return any(text.find(string, max(0, len(before) - len(string) + 1)) >= 0 for string in strings)
