"""Beam search: the best of several texts that grow side by side, as transformers' `_beam_search` does for one prompt.

The scores are sums of float32 log-probabilities in the same order of operations, so ids are those of
`transformers.generate` for the row alone, except where two continuations score the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from isoform.runtimes.generation.processors import Processor, log_softmax, nothing_but_numbers, some_token

if TYPE_CHECKING:
    from numpy.typing import NDArray

WORST = np.float32(-1e9)  # the score of a beam that is not there, and what is added to one that may not be chosen
BLOCK = 64  # scores whose maximum is looked at together when the best of all are sought


@dataclass(frozen=True, slots=True)
class Beam:
    """One text: its new tokens, the log-probability of each among the tokens allowed, and their score."""

    made: tuple[int, ...]
    chances: tuple[float, ...]  # empty unless they are kept
    score: np.float32
    complete: bool = False  # it ended, by a token, a string or its length
    terms: tuple[float, ...] = ()  # the log-probabilities that the score is the sum of; empty unless chances are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamRules:
    """`early_stopping` True ends at `width` complete texts, False when no better one is likely, "never" possible."""

    width: int
    length_penalty: float = 1.0  # the score is divided by the length to this power
    early_stopping: bool | Literal["never"] = False


class Beams:
    """The beams of one prompt. Feed the prompt once; after that, `tokens` of the rows that `advance` says.

    `ends` holds the tokens that end a text; `ended` says whether a text of new tokens ends for another reason. `limit`
    is the greatest number of new tokens. `random` samples the continuations instead of taking the best.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        rules: BeamRules,
        chain: Sequence[Processor],
        limit: int,
        *,
        ends: frozenset[int] = frozenset(),
        ended: Callable[[Sequence[int]], bool] | None = None,
        random: np.random.Generator | None = None,
        keep_chances: bool = False,
    ) -> None:
        self._prompt, self._rules, self._chain, self._limit = list(prompt), rules, chain, limit
        self._ends, self._ended, self._random, self._keep = ends, ended, random, keep_chances
        # More than `width`, so that as many go on even if all of the best end.
        self._candidates = max(2, 1 + len(ends)) * rules.width
        self._running = [Beam((), (), WORST if n else np.float32(0)) for n in range(rules.width)]
        self._best = [Beam((), (), WORST) for _ in range(rules.width)]
        self._improvable = True
        self.done = False

    @property
    def best(self) -> list[Beam]:
        """The complete texts, the best first; while some are missing, beams of score `WORST`."""
        return self._best

    @property
    def tokens(self) -> list[int]:
        """The last token of every running beam: what the model is fed next."""
        return [beam.made[-1] for beam in self._running]

    def advance(self, logits: NDArray[np.float32], late: bool = False) -> list[int]:
        """Choose the next tokens -> for each running beam, the row of `logits` that it goes on from.

        Shapes: logits (1, V) at first, then (width, V).
        """
        rules, length = self._rules, len(self._running[0].made) + 1
        scores = np.stack([self._processed(row, beam) for row, beam in zip(logits, self._running, strict=False)])
        shares = log_sums(scores) if self._keep else None
        if len(scores) < rules.width:
            if np.isfinite(scores[0]).sum() >= self._candidates:
                totals = scores + self._running[0].score
            else:
                totals = np.repeat(scores, rules.width, 0) + self._sums()[:, None]
        else:
            totals = scores + self._sums()[:, None]
        flat, vocabulary = totals.reshape(-1), totals.shape[1]
        some_token(flat.max())
        chosen = self._drawn(flat) if self._random is not None else largest(flat, self._candidates)
        found: list[Beam] = []
        parents: list[int] = []
        for index in chosen.tolist():
            parent, token = divmod(index, vocabulary)
            row, beam = min(parent, len(scores) - 1), self._running[parent]
            chances, terms = beam.chances, beam.terms
            if shares is not None:
                chances = (*chances, float(scores[row, token] - shares[row]))
                terms = (*terms, float(scores[row, token]))
            made = (*beam.made, token)
            hit = late or token in self._ends or length >= self._limit or bool(self._ended and self._ended(made))
            found.append(Beam(made, chances, flat[index], hit, terms))
            parents.append(row)
        held = [beam.score + WORST if beam.complete else beam.score for beam in found]
        order = _ranked(held)[: rules.width]
        self._collect(found, length)
        self._running = [replace(found[n], score=held[n], complete=False) for n in order]
        self._weigh(length, stuck=all(beam.complete for beam in found))
        return [parents[n] for n in order]

    def _processed(self, logits: NDArray[np.float32], beam: Beam) -> NDArray[np.float32]:
        return processed(logits, [*self._prompt, *beam.made], self._chain)

    def _sums(self) -> NDArray[np.float32]:
        return np.array([beam.score for beam in self._running], np.float32)

    def _drawn(self, flat: NDArray[np.float32]) -> NDArray[np.int64]:
        """Candidates in the order in which they would be drawn, without putting them back (the Gumbel trick)."""
        assert self._random is not None
        return largest((flat + self._random.gumbel(size=flat.shape)).astype(np.float32), self._candidates)

    def _collect(self, found: Sequence[Beam], length: int) -> None:
        """Take what ended among the best `width` candidates, where it beats what ended before."""
        rules, done = self._rules, all(beam.complete for beam in self._best)
        divisor = np.float32(length**rules.length_penalty)
        merged = list(self._best)
        for n, beam in enumerate(found):
            counts = beam.complete and n < rules.width
            score = beam.score / divisor
            for refused in (done and rules.early_stopping is True, not self._improvable, not counts):
                score = score + WORST if refused else score
            merged.append(replace(beam, score=score, complete=counts))
        self._best = [merged[n] for n in _ranked([beam.score for beam in merged])[: rules.width]]

    def _weigh(self, length: int, stuck: bool) -> None:
        """Whether a running beam can still become one of the best."""
        rules = self._rules
        reach = self._limit if rules.early_stopping == "never" and rules.length_penalty > 0 else length
        hope = self._running[0].score / np.float32(reach**rules.length_penalty)
        worst = min(beam.score for beam in self._best)
        self._improvable &= any(hope > (worst if beam.complete else WORST) for beam in self._best)
        full = all(beam.complete for beam in self._best) and rules.early_stopping is True
        self.done = stuck or full or not self._improvable


def processed(logits: NDArray[np.float32], ids: Sequence[int], chain: Sequence[Processor]) -> NDArray[np.float32]:
    """The log-probabilities of the tokens that may follow ids, (V,)."""
    scores = log_softmax(logits)
    if not np.isfinite(scores.max()):
        nothing_but_numbers(scores)
    if chain:
        so_far = np.array(ids, np.int64)
        for process in chain:
            scores = process(so_far, scores)
    return scores


def largest(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The indices of the `count` largest, the largest first; of equal ones the earlier. scores (N,)."""
    blocks = len(scores) // BLOCK
    if blocks <= count:
        return np.argsort(-scores, kind="stable")[:count]
    tops = scores[: blocks * BLOCK].reshape(blocks, BLOCK).max(1)
    # At least `count` scores reach the `count`-th largest of the blocks' maxima: nothing below it is among the largest.
    near = np.flatnonzero(scores >= np.partition(tops, blocks - count)[blocks - count])
    return near[np.argsort(-scores[near], kind="stable")[:count]]


def _ranked(scores: Sequence[Any]) -> list[int]:
    """Indices from the largest on; of equal ones the earlier."""
    return sorted(range(len(scores)), key=lambda n: -float(scores[n]))


def log_sums(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """log Σ exp of every row. scores (B, V) -> (B,)."""
    most = scores.max(1)
    sums: NDArray[np.float32] = most + np.log(np.exp(scores - most[:, None]).sum(1))
    return sums
