"""How the cells of a column compare with each other and with the quantities of a question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoform.runtimes.preprocess.text.tables.quantities import (
    Quantity,
    kind_of,
    normalized,
    quantities_of,
    spans_of,
)
from isoform.runtimes.preprocess.text.tables.table import Table

COMMON = 0.7  # of the cells of a column must have a quantity of one kind
EQUAL, LESS, GREATER = 1, 2, 4
"""Relations of a question's quantity to a cell's; those to several quantities are added."""


class ComparedTable:
    """The quantities of a table, one for a cell at most, and the ranks (rows, columns) that follow from them.

    `ranks` count the different values of a column from 1, from below; `from_above` from the other end. 0: none.
    """

    def __init__(self, table: Table) -> None:
        self.shape = len(table.rows), len(table.columns)
        known = {cell: quantities_of(cell) for cell in {cell for row in table.rows for cell in row}}
        self._columns = [_common([known[row[n]] for row in table.rows]) for n in range(len(table.columns))]
        self.ranks, self.from_above = np.zeros(self.shape, np.int64), np.zeros(self.shape, np.int64)
        for n, column in enumerate(self._columns):
            if (key := _comparable(column.values())) is None:
                continue
            places = {value: place for place, value in enumerate(sorted({key(one) for one in column.values()}))}
            for row, quantity in column.items():
                place = places[key(quantity)]
                self.ranks[row, n], self.from_above[row, n] = place + 1, len(places) - place

    def relations(self, question: str) -> NDArray[np.int64]:
        """How the quantities of a question compare with each cell, (rows, columns): sums of EQUAL, LESS, GREATER."""
        found = np.zeros(self.shape, np.int64)
        for span in spans_of(normalized(question)):
            for quantity in span.quantities:
                for n, column in enumerate(self._columns):
                    if not column or (key := _comparable((*column.values(), quantity))) is None:
                        continue
                    asked = key(quantity)
                    for row, other in column.items():
                        value = key(other)
                        found[row, n] |= EQUAL if asked == value else LESS if asked < value else GREATER
        return found


def _common(cells: Sequence[Sequence[Quantity]]) -> Mapping[int, Quantity]:
    """By row, the first quantity of the kind that most cells of a column have; none where too few have it."""
    counts = Counter(kind for cell in cells for kind in {kind_of(quantity) for quantity in cell})
    most = max(counts.values(), default=0)
    if not most or most < len(cells) * COMMON:
        return {}
    kind = "date" if counts["date"] == most else "number"
    firsts = ((row, next((one for one in cell if kind_of(one) == kind), None)) for row, cell in enumerate(cells))
    return {row: quantity for row, quantity in firsts if quantity is not None}


def _comparable(quantities: Iterable[Quantity]) -> Callable[[Quantity], Any] | None:
    """The part of each quantity by which all of them compare: numbers, or what every date says of year, month and day.

    None where there is no such part.
    """
    every = list(quantities)
    dates = [one for one in every if isinstance(one, tuple)]
    if not every or 0 < len(dates) < len(every):
        return None
    if not dates:
        return lambda number: number
    said = [n for n in range(3) if all(one[n] is not None for one in dates)]
    return (lambda day: tuple(day[n] for n in said)) if said else None  # type: ignore[index]
