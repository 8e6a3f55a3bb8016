"""The best complete texts of a beam search over groups or with constraints, by the rules of transformers' scorer.

Its scores are Python's floats, unlike those of plain beams.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from isoform.runtimes.generation.beams import Beam, BeamRules


class BestTexts:
    """At most `width` texts; a better one takes the place of the worst."""

    def __init__(self, rules: BeamRules, limit: int) -> None:
        """`limit`: the greatest number of new tokens."""
        self._rules, self._limit = rules, limit
        self._worst = 1e9
        self.texts: list[tuple[float, Beam]] = []  # in the order in which they came

    def add(self, beam: Beam, length: int) -> None:
        """Take a text of so many new tokens, the one that ends it included, if it is among the best."""
        score = float(beam.score) / length**self._rules.length_penalty
        if len(self.texts) < self._rules.width:
            self.texts.append((score, replace(beam, score=np.float32(score))))
            self._worst = min(score, self._worst)
        elif score > self._worst:
            self.texts.append((score, replace(beam, score=np.float32(score))))
            order = sorted(range(len(self.texts)), key=lambda n: self.texts[n][0])
            self._worst = self.texts[order[1]][0]
            del self.texts[order[0]]

    def are_final(self, best: float, length: int) -> bool:
        """Whether no text whose tokens have this sum of log-probabilities after so many of them gets among the best."""
        rules = self._rules
        if len(self.texts) < rules.width:
            return False
        if rules.early_stopping is True:
            return True
        reach = self._limit if rules.early_stopping == "never" and rules.length_penalty > 0 else length
        return self._worst >= best / reach**rules.length_penalty


def best_first(texts: list[tuple[float, Beam]]) -> list[Beam]:
    """The texts from the best on; of equal ones the later."""
    return [beam for _, beam in sorted(texts, key=lambda text: text[0])[::-1]]
