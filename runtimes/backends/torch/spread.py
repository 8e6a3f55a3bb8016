"""Spreads the rows of a kernel over as many threads as torch has, where they are worth it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import torch

PIECE = 2**18  # numbers that a thread gets at least: 30 microseconds of work or more


def by_rows(rows: int, numbers: int, call: Callable[[int, int], None]) -> None:
    """`call(start, count)` until all rows are done; `numbers`: how many there are in all of them."""
    pieces = min(rows, numbers // PIECE)
    if pieces > 1:
        pieces = min(pieces, torch.get_num_threads())
    if pieces <= 1:
        call(0, rows)
        return
    edges = [rows * n // pieces for n in range(pieces + 1)]
    list(_pool(pieces).map(call, edges[:-1], (end - start for start, end in pairwise(edges))))


@cache
def _pool(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "isoform-rows")
