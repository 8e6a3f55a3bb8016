"""Diverse beam search: groups of beams, of which each avoids the tokens of those before it (arXiv:1610.02424).

The ids are those of transformers' `_group_beam_search` (until 4.56) for the row alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.generation.beams import WORST, Beam, BeamRules, largest, log_sums, processed
from isoform.runtimes.generation.best_texts import BestTexts, best_first
from isoform.runtimes.generation.processors import Diversity, Processor, some_token

if TYPE_CHECKING:
    from numpy.typing import NDArray


class BeamGroups:
    """The beams of one prompt, `rules.width` in each group; see `Beams` for what is fed and for the parameters.

    A text ends with the first of `ends`, whichever of them it was. `padding` is what a group that is done counts as
    having chosen.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        rules: BeamRules,
        groups: int,
        chain: Sequence[Processor],
        limit: int,
        *,
        ends: Sequence[int] = (),
        padding: int = 0,
        ended: Callable[[Sequence[int]], bool] | None = None,
        keep_chances: bool = False,
    ) -> None:
        self._prompt, self._width, self._chain, self._limit = list(prompt), rules.width, chain, limit
        self._ends, self._padding, self._ended, self._keep = tuple(ends), padding, ended, keep_chances
        self._diversity = next((process for process in chain if isinstance(process, Diversity)), None)
        first = [Beam((), (), WORST if n else np.float32(0)) for n in range(rules.width)]
        self._groups = [list(first) for _ in range(groups)]
        self._kept = [BestTexts(rules, limit) for _ in range(groups)]
        self._closed = [False] * groups
        self._length = 0
        self.done = False
        self.best: list[Beam] = []

    @property
    def tokens(self) -> list[int]:
        """The last token of every running beam: what the model is fed next."""
        return [beam.made[-1] for group in self._groups for beam in group]

    def advance(self, logits: NDArray[np.float32], late: bool = False) -> list[int]:
        """Choose the next tokens -> for each running beam, the row of `logits` that it goes on from."""
        self._length += 1
        given: list[int] = []
        parents: list[int] = []
        for n in range(len(self._groups)):
            if self._diversity is not None:
                self._diversity.given = given
            rows = [0 if len(logits) == 1 else n * self._width + m for m in range(self._width)]
            parents += self._advance_group(n, logits, rows)
            given = [*given, *(beam.made[-1] for beam in self._groups[n])]
        stopped = self._ended is not None and all(self._ended(beam.made) for group in self._groups for beam in group)
        self.done = all(self._closed) or self._length >= self._limit or late or stopped
        if self.done:
            self._finish()
        return parents

    def _advance_group(self, n: int, logits: NDArray[np.float32], rows: Sequence[int]) -> list[int]:
        group, kept = self._groups[n], self._kept[n]
        if self._closed[n]:
            self._groups[n] = [Beam((*group[0].made, self._padding), (), np.float32(0))] * self._width
            return [rows[0]] * self._width
        scores = np.stack(
            [
                processed(logits[row], [*self._prompt, *beam.made], self._chain)
                for row, beam in zip(rows, group, strict=True)
            ]
        )
        found = continuations(group, scores, max(2, 1 + len(self._ends)) * self._width, self._keep)
        self._groups[n], parents = [], []
        for rank, (parent, beam) in enumerate(found):
            if beam.made[-1] in self._ends:
                if rank < self._width:
                    kept.add(ended_with(beam, self._ends[0]), self._length)
                continue
            self._groups[n].append(beam)
            parents.append(rows[parent])
            if len(self._groups[n]) == self._width:
                break
        need_beams(self._groups[n], self._width)
        self._closed[n] = kept.are_final(float(found[0][1].score), self._length)
        return parents

    def _finish(self) -> None:
        for closed, group, kept in zip(self._closed, self._groups, self._kept, strict=True):
            for beam in () if closed else group:
                kept.add(replace(beam, complete=True), self._length)
        self.best = best_first([text for kept in self._kept for text in kept.texts])


def continuations(
    beams: Sequence[Beam], scores: NDArray[np.float32], count: int, keep_chances: bool
) -> list[tuple[int, Beam]]:
    """The best continuations of beams by one token, each with the number of its beam. scores (beams, V)."""
    some_token(scores.max())
    totals = scores + np.array([beam.score for beam in beams], np.float32)[:, None]
    flat, shares = totals.reshape(-1), log_sums(scores) if keep_chances else None
    found = []
    for index in largest(flat, count).tolist():
        parent, token = divmod(index, scores.shape[1])
        found.append((parent, grown(beams[parent], token, flat[index], scores[parent], shares, parent)))
    return found


def grown(
    beam: Beam,
    token: int,
    score: np.float32,
    scores: NDArray[np.float32],
    shares: NDArray[np.float32] | None,
    parent: int,
) -> Beam:
    """A beam with one token more. scores (V,) are those of its tokens, shares (beams,) the logarithms of their sums."""
    chances, terms = beam.chances, beam.terms
    if shares is not None:
        term = float(scores[token])
        chances, terms = (*chances, term - float(shares[parent])), (*terms, term)
    return Beam((*beam.made, token), chances, score, terms=terms)


def ended_with(beam: Beam, end: int) -> Beam:
    """A complete text, whose last token is given as `end`."""
    return replace(beam, made=(*beam.made[:-1], end), complete=True)


def need_beams(beams: Sequence[Beam], width: int) -> None:
    """InputError when fewer beams than `width` go on: the others ended, and nothing else may follow them."""
    if len(beams) < width:
        raise InputError(
            f"{width} beams need as many tokens that do not end a text, and only {len(beams)} are left; pass fewer "
            "num_beams, or fewer eos_token_id"
        )
