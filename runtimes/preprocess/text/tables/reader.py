"""Tables and questions to tokens with their types."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoform.errors import InputError, UnsupportedModel
from isoform.json_files import JsonObject
from isoform.runtimes.preprocess.text.tables.comparing import ComparedTable
from isoform.runtimes.preprocess.text.tables.fitting import fitted, word_starts
from isoform.runtimes.preprocess.text.tables.table import Table
from isoform.runtimes.preprocess.text.tokenizer import TextTokenizer

SEGMENT, COLUMN, ROW, ANSWERED, RANK, FROM_ABOVE, RELATION = range(7)
"""The types of a token: 1 in the table, its column and row from 1 (a header has row 0), whether its cell was an answer
before, its ranks in the column, and its relations to the question."""

MOST_TOKENS = 512  # where tokenizer_config.json says nothing


@dataclass(frozen=True, slots=True, eq=False)
class TableTokens:
    """A question and a table: ids (T,) and types (T, 7), int64."""

    ids: NDArray[np.int64]
    types: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def type_ids(self) -> NDArray[np.int64]:
        """Of the two texts, the question and the table."""
        segments: NDArray[np.int64] = self.types[:, SEGMENT]
        return segments

    def after(self, answer: Collection[tuple[int, int]]) -> TableTokens:
        """The same after a question that these cells (row, column) answered."""
        types = self.types.copy()
        inside = types[:, SEGMENT] == 1
        places = zip((types[:, ROW] - 1).tolist(), (types[:, COLUMN] - 1).tolist(), inside.tolist(), strict=True)
        types[:, ANSWERED] = [int(in_table and (row, column) in answer) for row, column, in_table in places]
        return TableTokens(self.ids, types)


def open_reader(tokenizer: TextTokenizer, folder: Path, facts: Mapping[str, Any]) -> TableReader:
    """The reader of a model's tables. Raises UnsupportedModel for one that reads none."""
    if "types" not in facts:
        raise UnsupportedModel("this model reads no tables: its tokens have no types of rows and columns")
    return TableReader(tokenizer, JsonObject.read(folder / "tokenizer_config.json"), facts["types"])


class TableReader:
    """Reads tables with the tokenizer of a TAPAS folder. `sizes`: how many values each type of a token may have."""

    def __init__(self, tokenizer: TextTokenizer, settings: JsonObject, sizes: Sequence[int]) -> None:
        self._tokenizer, self._sizes = tokenizer, tuple(sizes)
        self.length = MOST_TOKENS if "model_max_length" not in settings else tokenizer.max_length or 2**31
        self._trim = settings.integer("cell_trim_length", -1)
        self._rows = settings.integer("max_row_id", self.length) or self.length
        self._columns = settings.integer("max_column_id", self.length) or self.length
        self._strips = settings.flag("strip_column_names", False)
        self._question = settings.integer("min_question_length", 0), settings.integer("max_question_length")

    def read(self, table: Table, questions: Sequence[str], *, drops_rows: bool) -> list[TableTokens]:
        """The tokens of each question with the table; rows that have no place are left out if `drops_rows`."""
        count = self._count(table, drops_rows)
        cells = _Cells(self._tokenizer, table, count, named=not self._strips)
        compared = ComparedTable(table)
        return [self._joined(question, cells, compared, count, drops_rows) for question in questions]

    def _count(self, table: Table, drops_rows: bool) -> int:
        """How many rows may be read: as many as there are numbers for."""
        limit = min(self._rows, self._sizes[ROW])
        count = len(table.rows)
        if count >= limit and not drops_rows:
            raise InputError(
                f"the table has {count} rows, and the model reads up to {limit - 1}; pass truncation=True to leave out "
                "the last ones"
            )
        most = min(self._columns, self._sizes[COLUMN]) - 1
        if len(table.columns) > most:
            raise InputError(
                f"the table has {len(table.columns)} columns, and the model reads up to {most}; leave some out"
            )
        return min(count, limit - 1)

    def _joined(
        self, question: str, cells: _Cells, compared: ComparedTable, count: int, drops_rows: bool
    ) -> TableTokens:
        (row,) = self._tokenizer.encode([question], add_special_tokens=False) if question else (None,)
        asked: list[int] = [] if row is None else row.ids
        least, most = self._question
        if len(asked) < (least or 0) or (most is not None and len(asked) > most):
            raise InputError(
                f"the question has {len(asked)} tokens; tokenizer_config.json allows {least or 0} to {most or 'any'}: "
                f"{question!r:.60}"
            )
        tokens = cells.longest
        if drops_rows:
            count, tokens = fitted(cells.starts, count, self.length - len(asked) - 2, self._trim)
        kept = (cells.starts_flat < tokens) & (cells.rows <= count)
        ids, columns, rows = cells.ids[kept], cells.columns[kept], cells.rows[kept]
        first = [self._named("cls_token"), *asked, self._named("sep_token")]
        types = np.zeros((len(first) + len(ids), 7), np.int64)
        part, body = types[len(first) :], rows > 0
        part[:, SEGMENT], part[:, COLUMN], part[:, ROW] = 1, columns + 1, rows
        places = rows[body] - 1, columns[body]
        for kind, values in (
            (RANK, compared.ranks),
            (FROM_ABOVE, compared.from_above),
            (RELATION, compared.relations(question)),
        ):
            # A rank for which the model has no number is the greatest that it has.
            part[body, kind] = np.minimum(values[places], self._sizes[kind] - 1)
        return TableTokens(np.concatenate((np.array(first, np.int64), ids)), types)

    def _named(self, name: str) -> int:
        return self._tokenizer.token_id(name) or 0


class _Cells:
    """The tokens of the header and of the first `count` rows, in their order: ids, columns and rows (N,)."""

    def __init__(self, tokenizer: TextTokenizer, table: Table, count: int, *, named: bool) -> None:
        header = table.columns if named else ("",) * len(table.columns)
        lines = [header, *islice(table.rows, count)]
        texts = list(dict.fromkeys(text for line in lines for text in line if text))  # "" has no token
        rows = tokenizer.encode(texts, add_special_tokens=False)
        known: Mapping[str, Any] = {
            text: (row.ids, word_starts(row.tokens)) for text, row in zip(texts, rows, strict=True)
        }
        found = [[known.get(text, ((), ())) for text in line] for line in lines]
        self.starts = [[starts for _, starts in line] for line in found]
        flat = [
            (token, start, row, column)
            for row, line in enumerate(found)
            for column, (ids, starts) in enumerate(line)
            for token, start in zip(ids, starts, strict=True)
        ]
        self.ids, self.starts_flat, self.rows, self.columns = np.array(flat, np.int64).reshape(-1, 4).T
        self.longest = max((len(starts) for line in self.starts for starts in line), default=0)
