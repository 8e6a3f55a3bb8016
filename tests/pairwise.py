"""A small choice out of a product of settings, in which every two of them still meet."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from itertools import combinations
from typing import TypeVar

Row = TypeVar("Row", bound=tuple[Hashable, ...])


def pairs_of(row: tuple[Hashable, ...]) -> set[tuple[tuple[int, Hashable], ...]]:
    return set(combinations(enumerate(row), 2))


def pairwise(rows: Iterable[Row]) -> list[Row]:
    """Some of the rows, in their order: each pair of values that one of the rows has is in one of those."""
    given = list(rows)
    missing = set().union(*map(pairs_of, given))
    chosen: list[int] = []
    while missing:
        best = max(range(len(given)), key=lambda n: (len(missing & pairs_of(given[n])), -n))
        chosen.append(best)
        missing -= pairs_of(given[best])
    return [given[n] for n in sorted(chosen)]
