"""Speculative decoding: several tokens of a row in one step, of which those go on that the model itself would choose.

A proposer guesses the next tokens of every row, the model reads all of them in one pass, and a search accepts them one
by one until it chooses another (Leviathan et al. 2023, https://arxiv.org/abs/2211.17192). Greedy text is that of plain
decoding. A drawn token is accepted with the probability min(1, p/q), and replaced by one drawn from what p has more
than q otherwise, so that it has the model's own distribution p whatever the guess's q was.

One pass of several tokens adds up numbers in another order than several passes of one do, as a batch does: logits
differ by rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.generation.feed import Feed, pad_left, pad_right
from isoform.runtimes.generation.processors import Processor, draw, softmax
from isoform.runtimes.generation.searches import TextRow, TokenSearch
from isoform.runtimes.session import rewinds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.generation.settings import GenerationConfig
    from isoform.runtimes.session import Decoder

LOOKS_BACK = 16  # tokens before a match that are compared, to find the best of several


@dataclass(frozen=True, slots=True)
class Proposal:
    """The tokens that a row may go on with, and the distributions (V,) that they were drawn from; none if guessed."""

    tokens: Sequence[int] = ()
    chances: Sequence[NDArray[np.float64]] = ()


class Proposer(Protocol):
    """Guesses how rows go on."""

    def propose(self, texts: Sequence[Sequence[int]], most: Sequence[int]) -> list[Proposal]:
        """A proposal for every row, given all ids of its text; `most` tokens by row, 0 for none."""
        ...

    def learn(self, accepted: Sequence[int]) -> None:
        """How many tokens of each row's proposal were accepted."""
        ...

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order."""
        ...


class PromptLookup:
    """A `Proposer`: what followed the last tokens where the text had them before (prompt lookup decoding).

    What an encoder read counts as before the text: a summary quotes it.
    """

    def __init__(self, count: int, longest: int, sources: Sequence[Sequence[int]] | None = None) -> None:
        """`count` tokens at most; as many as `longest` last tokens are sought, then fewer, down to one.

        `sources`: the ids that an encoder read, for each row.
        """
        self._count, self._longest, self._sources = count, longest, sources

    def propose(self, texts: Sequence[Sequence[int]], most: Sequence[int]) -> list[Proposal]:
        """See `Proposer.propose`."""
        before: Sequence[Sequence[int]] = self._sources or [()] * len(texts)
        return [
            Proposal(found_before([*source, *text], min(self._count, room), min(self._longest, len(text))))
            for source, text, room in zip(before, texts, most, strict=True)
        ]

    def learn(self, accepted: Sequence[int]) -> None:
        """Nothing."""

    def select(self, rows: Sequence[int]) -> None:
        """See `Proposer.select`."""
        if self._sources is not None:
            self._sources = [self._sources[n] for n in rows]


def found_before(ids: Sequence[int], count: int, longest: int) -> list[int]:
    """The `count` tokens after an earlier occurrence of the last ones, none where there is no such.

    Of several occurrences, the one that the most tokens before it agree with, and of those the last. One near the end
    goes on as if its own continuation had followed.
    """
    if count < 1:
        return []
    text = np.asarray(ids, np.int64)
    for size in range(min(longest, len(text) - 1), 0, -1):
        windows = np.lib.stride_tricks.sliding_window_view(text[:-1], size)
        after = np.flatnonzero((windows == text[-size:]).all(1)) + size  # where the continuations begin
        if not after.size:
            continue
        for back in range(size + 1, min(LOOKS_BACK, len(text))):
            near = after[(after >= back) & (text[after - back] == text[-back])]
            if not near.size:
                break
            after = near
        found, start = list(ids[after[-1] :]), int(after[-1])
        period = len(text) - start
        return [found[n % period] for n in range(count)]
    return []


class Assistant(Protocol):
    """What guesses tokens beside the model: makes a proposer for the rows of a call."""

    def begin(self, lines: Sequence[DraftLine], config: GenerationConfig) -> Proposer:
        """A proposer for these rows. Raises InputError for what does not fit."""
        ...


@dataclass(frozen=True, slots=True)
class DraftLine:
    """A row that tokens are guessed for."""

    prompt: int  # its number
    chain: Sequence[Processor] = ()  # what shapes the logits
    random: np.random.Generator | None = None  # of a text that is sampled


class SpeculativeSearch(TokenSearch):
    """A `TokenSearch` that checks a proposal against the logits after each of its tokens."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.random = self._random
        self._guess: tuple[int, NDArray[np.float64] | None] | None = None

    def verify(self, proposal: Proposal, logits: NDArray[np.float32], late: bool) -> int:
        """Take tokens while the proposal holds, and one more; returns how many of it were accepted.

        `logits` (T, V) are those after the row's last token and after each of the proposal's.
        """
        for n, token in enumerate(proposal.tokens):
            self._guess = token, proposal.chances[n] if proposal.chances else None
            self.advance(logits[n : n + 1], late)
            self._guess = None
            if self.tokens[0] != token:
                return n
            if self.done:
                return n + 1
        self.advance(logits[-1:], late)
        return len(proposal.tokens)

    def _drawn(self, scores: NDArray[np.float32], random: np.random.Generator) -> int:
        if self._guess is None:
            return draw(scores, random)
        token, chances = self._guess
        wanted = softmax(scores.astype(np.float64))
        if token < len(wanted) and random.random() * (1 if chances is None else chances[token]) < wanted[token]:
            return token
        rest = wanted.copy()
        if chances is None:
            rest[token : token + 1] = 0
        else:
            rest[: len(chances)] -= chances[: len(rest)]
        rest = np.cumsum(np.maximum(rest, 0))
        if not rest[-1] > 0:  # both are the same up to rounding
            return draw(scores, random)
        return int(np.searchsorted(rest, random.random() * rest[-1], side="right"))


@dataclass(slots=True, eq=False)
class CachedRows:
    """A decoder's rows, and how many tokens of each text it holds: feeds it what it lacks, and forgets what is wrong.

    Where rows forget equally many only, all hold as many as the one that is behind, and shorter feeds are filled up
    with padding that is forgotten afterwards.
    """

    together: bool
    held: list[int]
    slots: list[int]  # what the decoder holds, with what is wrong
    _token: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 1), np.int64))

    @classmethod
    def begun(cls, decoder: Decoder, prompts: Sequence[Sequence[int]]) -> CachedRows:
        """The rows of a decoder that will be fed these prompts first. Raises InputError where it cannot rewind."""
        how = rewinds(decoder)
        if how == "never":
            raise InputError(
                "the decoder of this model cannot forget tokens, which guessing tokens needs (its states recur, "
                "keep a window, or are computed anew for long texts); leave out prompt_lookup_num_tokens and "
                "assistant_model"
            )
        lengths = [len(prompt) for prompt in prompts]
        return cls(how == "together", lengths, list(lengths))

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these."""
        self.held, self.slots = [self.held[n] for n in rows], [self.slots[n] for n in rows]

    def keep(self, lengths: Sequence[int]) -> None:
        """Of the texts, so many tokens are right."""
        self.held = [min(lengths)] * len(lengths) if self.together else list(lengths)

    def forgotten(self) -> NDArray[np.int64] | None:
        """How many tokens each row has to forget before it is fed, None for none; noted as done."""
        counts = np.subtract(self.slots, self.held)
        self.slots = list(self.held)
        return counts if counts.any() else None

    def fed(
        self, texts: Sequence[Sequence[int]], *, left: bool = False
    ) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        """ids and mask (B, T) of what the rows lack of these texts, at the `left` or right padded; noted as held."""
        pad = pad_left if left and not self.together else pad_right
        ids, mask = pad([text[held:] for text, held in zip(texts, self.held, strict=True)])
        new = [ids.shape[1]] * len(ids) if self.together else mask.sum(1).tolist()
        self.slots = [slots + count for slots, count in zip(self.slots, new, strict=True)]
        self.held = [len(text) for text in texts]
        if not self.together and not mask.all():
            return ids, mask
        if ids.shape == self._token.shape:  # decoders are fastest with single tokens in one array
            self._token[:] = ids
            return self._token, None
        if ids.shape[1] == 1:
            self._token = ids
        return ids, None


@dataclass(slots=True)
class _Line:
    """A row of the batch: its search and text, and how long it may become."""

    search: SpeculativeSearch
    row: TextRow
    limit: int
    proposal: Proposal = field(default_factory=Proposal)

    @property
    def text(self) -> list[int]:
        return [*self.row.prompt, *self.row.made]


class SpeculativeScheduler:
    """`loop.Scheduler` for searches that get several tokens in a step; a row leaves the batch when it ends."""

    def __init__(
        self,
        searches: Sequence[SpeculativeSearch],
        rows: Sequence[TextRow],
        limits: Sequence[int],
        prompts: Sequence[Sequence[int]],
        proposer: Proposer,
        decoder: Decoder,
        config: GenerationConfig,
    ) -> None:
        """Each search with its row and the row's greatest length. Several may share one of the `prompts`."""
        self._lines = [_Line(*one) for one in zip(searches, rows, limits, strict=True)]
        self._proposer, self._prompts = proposer, prompts
        self._cached = CachedRows.begun(decoder, prompts)
        shared = len(searches) // len(prompts)
        self._rows = [n // shared for n in range(len(searches))]  # the row of the batch that each reads
        self._begun = False
        self._deadline = None if config.max_time is None else monotonic() + config.max_time

    def schedule(self) -> Feed | None:
        """See `loop.Scheduler.schedule`."""
        if not self._begun:
            self._begun = True
            ids, mask = pad_left(self._prompts)
            return Feed(None, ids, None if mask.all() else mask)
        going = [n for n, line in enumerate(self._lines) if not line.search.done]
        if not going:
            return None
        rows = self._moved(going)
        texts = [line.text for line in self._lines]
        # The last token of a text is not fed: it needs no place.
        most = [line.limit - 1 - len(text) for line, text in zip(self._lines, texts, strict=True)]
        for line, proposal in zip(self._lines, self._proposer.propose(texts, most), strict=True):
            line.proposal = proposal
        forget = self._cached.forgotten()
        self._behind = [len(text) - held for text, held in zip(texts, self._cached.held, strict=True)]
        ids, padding = self._cached.fed(
            [[*text, *line.proposal.tokens] for text, line in zip(texts, self._lines, strict=True)]
        )
        return Feed(rows, ids, padding, forget, None if ids.shape[1] > 1 else 1)

    def _moved(self, going: Sequence[int]) -> NDArray[np.int64] | None:
        """Let go of the rows that have ended -> the rows of the batch that go on, None when all do as they are."""
        rows, count = [self._rows[n] for n in going], len(self._cached.held)
        if len(going) < len(self._lines):
            self._proposer.select(going)
        self._lines = [self._lines[n] for n in going]
        self._rows = list(range(len(going)))
        if rows == list(range(count)):
            return None
        self._cached.select(rows)
        return np.array(rows, np.int64)

    def update(self, logits: NDArray[np.float32]) -> None:
        """Give each search the logits (B, V) or (B, T, V) of its row."""
        late = self._deadline is not None and monotonic() > self._deadline
        logits = logits[:, None] if logits.ndim == 2 else logits
        if not self._lines[0].row.made:  # those after the prompts
            for line, row in zip(self._lines, self._rows, strict=True):
                line.search.verify(line.proposal, logits[row], late)
            return
        accepted = []
        for row, (line, behind) in enumerate(zip(self._lines, self._behind, strict=True)):
            mine = logits[row, behind - 1 : behind + len(line.proposal.tokens)]
            accepted.append(line.search.verify(line.proposal, mine, late))
        self._proposer.learn(accepted)
        self._cached.keep([len(line.row.prompt) + len(line.row.made) - 1 for line in self._lines])
