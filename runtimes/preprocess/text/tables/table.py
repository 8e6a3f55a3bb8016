"""Tables: names of columns and rows of texts, from lists, objects and data frames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from isoform.errors import InputError

TAKES = "{column: [cells]}, a list of {column: cell}, or a data frame"

MISSING = "nan"
"""The text of a cell without a value: what pandas writes for one, and what TAPAS reads as an empty cell."""


@dataclass(frozen=True, slots=True)
class Table:
    """Names of columns, and rows with a text for each of them."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def read_table(value: Any) -> Table:
    """A table of what `TAKES` says. Numbers become their text, and a missing value becomes `MISSING`.

    Raises InputError for anything else, columns of unlike length and a table without cells.
    """
    if isinstance(value, Table):
        found = value
    elif isinstance(value, Mapping):
        found = _of_columns(value)
    elif isinstance(value, list | tuple):
        found = _of_rows(value)
    elif hasattr(value, "itertuples") and hasattr(value, "columns"):  # pandas, which need not be installed
        rows = value.itertuples(index=False, name=None)
        found = Table(tuple(map(str, value.columns)), tuple(tuple(map(_text, row)) for row in rows))
    else:
        raise InputError(f"a table is {TAKES}, not a {type(value).__name__}: {value!r:.60}")
    if not found.rows or not found.columns:
        what = "rows" if found.columns else "columns"
        raise InputError(f"the table has no {what}; give one with at least one cell")
    return found


def _of_columns(value: Mapping[Any, Any]) -> Table:
    columns = {str(name): _cells(str(name), cells) for name, cells in value.items()}
    lengths = {name: len(cells) for name, cells in columns.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name!r:.40} has {count}" for name, count in list(lengths.items())[:5])
        raise InputError(f"the columns of the table have unlike numbers of cells: {shown}; fill the shorter ones")
    return Table(tuple(columns), tuple(zip(*columns.values(), strict=True)))


def _of_rows(value: Iterable[Any]) -> Table:
    rows = list(value)
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InputError(f"row {number} of the table is no object of cells by column: {row!r:.60}")
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    return Table(tuple(map(str, columns)), tuple(tuple(_text(row.get(name)) for name in columns) for row in rows))


def _cells(name: str, cells: Any) -> tuple[str, ...]:
    if isinstance(cells, str | bytes | Mapping) or not isinstance(cells, Iterable):
        raise InputError(f"the column {name!r:.40} of the table is no list of cells: {cells!r:.60}")
    return tuple(map(_text, cells))


def _text(cell: Any) -> str:
    """The text of a cell. InputError for what is no text, number or date."""
    if isinstance(cell, str):
        return cell
    if cell is None or type(cell).__name__ in ("NAType", "NaTType") or cell != cell:  # NaN is not equal to itself
        return MISSING
    if isinstance(cell, bytes | Mapping | Iterable):
        raise InputError(f"a cell of the table is a {type(cell).__name__}, no text or number: {cell!r:.60}")
    return str(cell)
