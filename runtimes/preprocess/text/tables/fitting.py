"""How much of a table fits behind a question: the tokens of each cell are cut first, then rows are left out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

INSIDE = "##"
"""Begins a token that goes on with a word."""


def word_starts(tokens: Sequence[str]) -> list[int]:
    """For each token of a cell the place of the token that begins its word: a word is kept whole or not at all."""
    starts: list[int] = []
    for n, token in enumerate(tokens):
        starts.append(n if not token.startswith(INSIDE) else starts[-1] if starts else -1)
    return starts


def fitted(rows: Sequence[Sequence[Sequence[int]]], most: int, budget: int, trim: int) -> tuple[int, int]:
    """How many rows behind the header, `most` at most, and how many tokens of each cell have place in a budget.

    `rows` hold, for the header and each row, the `word_starts` of each cell. A `trim` of 0 or more is the length that
    longer cells are cut to; then they are cut no further. Without place for one token of each cell a row is left out;
    the header stays whatever it takes.
    """
    longest = max((len(cell) for row in rows for cell in row), default=0)
    most_tokens = min(longest, trim) if trim >= 0 else longest
    width = min(longest, max(budget, 0)) + 1  # more tokens of a cell than these are over the budget anyway
    begun = np.zeros((len(rows), width + 1), np.int64)
    for n, row in enumerate(rows):
        for cell in row:
            for start in cell:
                begun[n, min(max(start, 0), width)] += 1
    costs = begun.cumsum(1).cumsum(0)  # [rows, tokens - 1]: what cells of so many tokens cost
    for count in range(most, 0, -1):
        over = np.flatnonzero(costs[count, : most_tokens + 1] > budget)
        tokens = int(over[0]) if over.size else most_tokens
        if tokens == most_tokens or (tokens > 0 and trim < 0):
            return count, tokens or 1
    return 0, 1
