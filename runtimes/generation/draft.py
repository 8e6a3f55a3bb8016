"""A draft model: a smaller one of the same vocabulary guesses the next tokens, which the model itself then checks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from sys import maxsize
from typing import TYPE_CHECKING

import numpy as np

from isoform.runtimes.generation.processors import draw, softmax
from isoform.runtimes.generation.speculative import CachedRows, DraftLine, Proposal

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.generation.settings import GenerationConfig
    from isoform.runtimes.session import Decoder

LOOKS_BACK = 10  # tokens before a guess that it is read together with


@dataclass(frozen=True, slots=True)
class DraftModel:
    """An `Assistant`. `decoder` makes a decoder whose rows are those of these prompts, by number.

    `context` is the draft's number of positions, beyond which it guesses nothing, and `vocabulary` the number of tokens
    that the model itself has logits for.
    """

    decoder: Callable[[Sequence[int]], Decoder]
    context: int | None = None
    vocabulary: int | None = None

    def begin(self, lines: Sequence[DraftLine], config: GenerationConfig) -> Draft:
        """See `Assistant.begin`."""
        return Draft(self.decoder([line.prompt for line in lines]), lines, config, self.context, self.vocabulary)


@dataclass(slots=True)
class _Row:
    """A row of the draft: `count` tokens are guessed next, at most."""

    line: DraftLine
    count: int
    fed: list[int] = field(default_factory=list)  # what the cache holds of it
    made: int = 0  # tokens guessed last


class Draft:
    """A `Proposer` over the decoder of a smaller model, which is fed what it lacks of each text and goes on from there.

    Without a mask its rows move together: each is fed the rest of its text, or what it guesses already.
    """

    def __init__(
        self,
        decoder: Decoder,
        lines: Sequence[DraftLine],
        config: GenerationConfig,
        context: int | None,
        vocabulary: int | None,
    ) -> None:
        self._decoder, self._context, self._width = decoder, maxsize if context is None else context, vocabulary
        self._schedule, self._threshold = config.num_assistant_tokens_schedule, config.assistant_confidence_threshold
        self._rows = [_Row(line, config.num_assistant_tokens) for line in lines]
        self._cached = CachedRows.begun(decoder, [()] * len(lines))

    def propose(self, texts: Sequence[Sequence[int]], most: Sequence[int]) -> list[Proposal]:
        """See `Proposer.propose`."""
        room = [self._context - len(text) for text in texts]
        counts = [max(min(row.count, *limits), 0) for row, *limits in zip(self._rows, most, room, strict=True)]
        for row in self._rows:
            row.made = 0
        if not any(counts) or (self._cached.together and min(room) < 1):
            return [Proposal() for _ in texts]
        self._cached.keep([_shared(row.fed, text) for row, text in zip(self._rows, texts, strict=True)])
        if (forget := self._cached.forgotten()) is not None:
            self._decoder.rewind(forget)
        lengths = [len(text) for text in texts]
        if self._cached.together:
            lengths = [min(lengths)] * len(texts)
        else:  # a row that gets no guess is fed nothing but the token that it begins with
            every = zip(lengths, counts, self._cached.held, strict=True)
            lengths = [length if count else max(held, 1) for length, count, held in every]
        fed = [list(text[:length]) for text, length in zip(texts, lengths, strict=True)]
        left = [
            deque(text[length:] if count else ()) for text, length, count in zip(texts, lengths, counts, strict=True)
        ]
        tokens: list[list[int]] = [[] for _ in texts]
        chances: list[list[NDArray[np.float64]]] = [[] for _ in texts]
        going = [count > 0 for count in counts]
        while any(going):
            ids, mask = self._cached.fed(fed, left=True)
            logits = self._decoder.step(ids, mask=mask)
            for n, row in enumerate(self._rows):
                if left[n]:
                    fed[n].append(left[n].popleft())
                elif going[n]:
                    token, sure, chance = self._guess(row.line, fed[n], logits[n])
                    tokens[n].append(token)
                    fed[n].append(token)
                    if chance is not None:
                        chances[n].append(chance)
                    going[n] = len(tokens[n]) < counts[n] and sure
        for row, text, held, made in zip(self._rows, fed, self._cached.held, tokens, strict=True):
            row.fed, row.made = text[:held], len(made)  # the last guess was not fed
        return [Proposal(*one) for one in zip(tokens, chances, strict=True)]

    def _guess(
        self, line: DraftLine, text: Sequence[int], logits: NDArray[np.float32]
    ) -> tuple[int, bool, NDArray[np.float64] | None]:
        """The next token, whether to guess another after it, and the distribution that it was drawn from."""
        scores = logits[: self._width]
        if line.chain:
            ids = np.array(text, np.int64)
            for process in line.chain:
                scores = process(ids, scores)
        chances: NDArray[np.float64] | None = None
        token = int(scores.argmax())
        if line.random is not None:
            chances = np.asarray(softmax(scores.astype(np.float64)), np.float64)
            token = draw(scores, line.random)
        sure = True
        if self._threshold:
            sure = float((softmax(scores) if chances is None else chances)[token]) >= self._threshold
        return token, sure, chances

    def learn(self, accepted: Sequence[int]) -> None:
        """See `Proposer.learn`."""
        if self._schedule == "constant":
            return
        for row, count in zip(self._rows, accepted, strict=True):
            if row.made:
                row.count = row.count + 2 if count == row.made else max(row.count - 1, 1)

    def select(self, rows: Sequence[int]) -> None:
        """See `Proposer.select`."""
        self._rows = [self._rows[n] for n in rows]
        self._cached.select(rows)
        self._decoder.select(np.array(rows, np.int64))


def _shared(fed: Sequence[int], text: Sequence[int]) -> int:
    """How many tokens both begin with, less than all of the text: its last one gives the next logits."""
    most = min(len(fed), len(text) - 1)
    return next((n for n in range(most) if fed[n] != text[n]), most)


@dataclass(frozen=True, slots=True)
class OtherVocabulary:
    """An `Assistant` of another vocabulary: it reads the text as its own tokens, and its guess is read as the model's.

    `encode` and `decode` are the model's, `their_encode` and `their_decode` the assistant's; no special tokens are put
    around a text.
    """

    draft: DraftModel
    encode: Callable[[str], Sequence[int]]
    decode: Callable[[Sequence[int]], str]
    their_encode: Callable[[str], Sequence[int]]
    their_decode: Callable[[Sequence[int]], str]

    def begin(self, lines: Sequence[DraftLine], config: GenerationConfig) -> TranslatedDraft:
        """See `Assistant.begin`; what shapes the model's logits names its tokens, not the assistant's."""
        return TranslatedDraft(self, self.draft.begin([DraftLine(line.prompt) for line in lines], config))


class TranslatedDraft:
    """The `Proposer` of `OtherVocabulary`. It guesses the likeliest text, whose tokens have no probabilities."""

    def __init__(self, words: OtherVocabulary, draft: Draft) -> None:
        self._words, self._draft = words, draft

    def propose(self, texts: Sequence[Sequence[int]], most: Sequence[int]) -> list[Proposal]:
        """See `Proposer.propose`."""
        words = self._words
        theirs = [list(words.their_encode(words.decode(text))) for text in texts]
        counts = [count if ids else 0 for count, ids in zip(most, theirs, strict=True)]
        guesses = self._draft.propose([ids or [0] for ids in theirs], counts)
        found = []
        for text, ids, guess, count in zip(texts, theirs, guesses, most, strict=True):
            begin = ids[-LOOKS_BACK:]
            new = words.their_decode([*begin, *guess.tokens])[len(words.their_decode(begin)) :]
            found.append(Proposal(self._read(text, new)[:count] if new else ()))
        return found

    def _read(self, text: Sequence[int], new: str) -> list[int]:
        """The tokens of what follows a text, as they are behind its last ones."""
        tail = list(text[-LOOKS_BACK:])
        ids = list(self._words.encode(self._words.decode(tail) + new))
        return ids[len(tail) :] if ids[: len(tail)] == tail else list(self._words.encode(new))

    def learn(self, accepted: Sequence[int]) -> None:
        """See `Proposer.learn`."""
        self._draft.learn(accepted)

    def select(self, rows: Sequence[int]) -> None:
        """See `Proposer.select`."""
        self._draft.select(rows)
