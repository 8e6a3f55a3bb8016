"""Constrained beam search: the best texts among those that hold given words (arXiv:1704.07138, 1804.06609).

The ids are those of transformers' `_constrained_beam_search` (until 4.56) for the row alone. Beside the likeliest
tokens, each beam is offered those that lead on with its words, and the beams that go on are spread over the stages of
that progress.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.generation.beam_groups import continuations, ended_with, grown, need_beams
from isoform.runtimes.generation.beams import WORST, Beam, BeamRules, log_sums, processed
from isoform.runtimes.generation.best_texts import BestTexts, best_first
from isoform.runtimes.generation.processors import Processor
from isoform.runtimes.generation.settings import Words
from isoform.runtimes.generation.word_progress import Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PER_BANK = 100  # what a stage of the progress counts beside log-probabilities


class ConstrainedBeams:
    """The beams of one prompt; see `Beams` for what is fed and for the parameters.

    `wanted`: how many texts. Where fewer of them hold all words when the length is reached, the best others are taken.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        rules: BeamRules,
        words: Sequence[Words],
        chain: Sequence[Processor],
        limit: int,
        *,
        wanted: int = 1,
        ends: Sequence[int] = (),
        ended: Callable[[Sequence[int]], bool] | None = None,
        keep_chances: bool = False,
    ) -> None:
        self._prompt, self._width, self._begun = list(prompt), rules.width, Progress.of(words, prompt)
        self._chain, self._limit, self._wanted = chain, limit, wanted
        self._ends, self._ended, self._keep = tuple(ends), ended, keep_chances
        if (needed := self._begun.left) > limit:
            raise InputError(
                f"the words of force_words_ids or constraints have {needed} tokens, and the text may have {limit} new "
                "ones; pass a larger max_new_tokens"
            )
        self._running = [Beam((), (), WORST if n else np.float32(0)) for n in range(rules.width)]
        self._kept = BestTexts(rules, limit)
        self._length = 0
        self.done = False
        self.best: list[Beam] = []

    @property
    def tokens(self) -> list[int]:
        """The last token of every running beam: what the model is fed next."""
        return [beam.made[-1] for beam in self._running]

    def advance(self, logits: NDArray[np.float32], late: bool = False) -> list[int]:
        """Choose the next tokens -> for each running beam, the row of `logits` that it goes on from."""
        self._length += 1
        rows = [min(n, len(logits) - 1) for n in range(self._width)]
        scores = np.stack(
            [
                processed(logits[row], [*self._prompt, *beam.made], self._chain)
                for row, beam in zip(rows, self._running, strict=True)
            ]
        )
        found = continuations(self._running, scores, max(2, 1 + len(self._ends)) * self._width, self._keep)
        chosen: list[tuple[int, Beam]] = []
        for rank, (parent, beam) in enumerate(found):
            if beam.made[-1] in self._ends:
                if rank < self._width and self._progress(self._running[parent]).is_complete:
                    self._kept.add(ended_with(beam, self._ends[0]), self._length)
                continue
            chosen.append((parent, beam))
            if len(chosen) == self._width:
                break
        need_beams([beam for _, beam in chosen], self._width)
        spread = self._spread(chosen, scores)
        self._running = [beam for _, beam in spread]
        final = self._kept.are_final(float(found[0][1].score), self._length)
        stopped = self._ended is not None and all(self._ended(beam.made) for beam in self._running)
        self.done = final or self._length >= self._limit or late or stopped
        if self.done:
            self._finish(closed=final)
        return [rows[parent] for parent, _ in spread]

    def _progress(self, beam: Beam) -> Progress:
        return self._begun.after(beam.made)

    def _spread(self, chosen: list[tuple[int, Beam]], scores: NDArray[np.float32]) -> list[tuple[int, Beam]]:
        """The beams that go on, of those that are likeliest and those whose words lead on."""
        states = [self._progress(beam) for _, beam in chosen]
        seen = {beam.made for _, beam in chosen}
        found = list(chosen)
        shares = log_sums(scores) if self._keep else None
        for parent, beam in enumerate(self._running):
            progress = self._progress(beam)
            for token in [] if progress.is_complete else progress.leading():
                if token >= scores.shape[1]:
                    raise InputError(f"token {token} must be in the text, but the model has {scores.shape[1]} tokens")
                state = progress.with_token(token)
                if (*beam.made, token) not in seen:
                    seen.add((*beam.made, token))
                    total = scores[parent, token] + beam.score
                    found.append((parent, grown(beam, token, total, scores[parent], shares, parent)))
                    states.append(state)
        if len(found) == len(chosen):
            return chosen
        banks = [state.bank for state in states]
        totals = np.array([beam.score for _, beam in found], np.float32)
        order = np.argsort(-(np.array(banks) * _PER_BANK + totals).astype(np.float32), kind="stable").tolist()
        ranks, count = [], 0  # of each in its bank
        for n, index in enumerate(order):
            count = count + 1 if n and banks[index] == banks[order[n - 1]] else 0
            ranks.append(count)
        return [found[order[n]] for n in np.argsort(ranks, kind="stable")[: self._width]]

    def _finish(self, closed: bool) -> None:
        if not closed:
            complete = [self._progress(beam).is_complete for beam in self._running]
            enough = sum(complete) >= self._wanted
            for wanted in (True, False):
                for beam, is_complete in zip(self._running, complete, strict=True):
                    if is_complete is wanted and (wanted or not enough):
                        self._kept.add(replace(beam, complete=True), self._length)
        self.best = best_first(self._kept.texts)
