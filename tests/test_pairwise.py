"""The choice of pairs leaves no pair out."""

from __future__ import annotations

from itertools import product

from tests.pairwise import pairs_of, pairwise


def test_every_pair_that_can_meet_meets() -> None:
    rows = [row for row in product((1, 3), (1, 7, 20), (0, 1, 9), ("", "left", "right")) if row[0] > 1 or not row[3]]
    chosen = pairwise(rows)
    assert len(chosen) < len(rows) / 2
    assert set().union(*map(pairs_of, chosen)) == set().union(*map(pairs_of, rows))


def test_nothing_gives_nothing() -> None:
    assert pairwise([]) == []
