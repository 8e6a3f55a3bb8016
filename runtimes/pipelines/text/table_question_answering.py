"""table-question-answering: the cells of a table that answer a question, and what to do with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.pipelines.base import Batches, InputPiece, OneGraph
from isoform.runtimes.pipelines.batching import longest_first
from isoform.runtimes.preprocess.text.tables.reader import COLUMN, ROW, SEGMENT, TableTokens, open_reader
from isoform.runtimes.preprocess.text.tables.table import TAKES, Table, read_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.session import Session

Cell = tuple[int, int]
"""The row and column of a cell, from 0."""

_CUTS = {True: True, "drop_rows_to_fit": True, False: False, "do_not_truncate": False}
_PADS = (True, False, "longest", "max_length", "do_not_pad")
_LEAST = np.float32(-88.7)  # below, the exponential of float32 has no value


@dataclass(frozen=True, slots=True, kw_only=True)
class TableQuestionAnsweringOptions:
    """The parameters of a call."""

    sequential: bool = False  # the questions about a table are a conversation: each is told the answer before
    truncation: bool | str | None = (
        None  # leave out rows that have no place ("drop_rows_to_fit"), as without it; or not
    )
    padding: bool | str | None = None  # changes nothing

    def __post_init__(self) -> None:
        if self.truncation is not None and self.truncation not in _CUTS:
            raise InputError(f"truncation={self.truncation!r:.40} is not one of {', '.join(map(repr, _CUTS))}")
        if self.padding is not None and self.padding not in _PADS:
            raise InputError(f"padding={self.padding!r:.40} is not one of {', '.join(map(repr, _PADS))}")
        if not isinstance(self.sequential, bool):
            raise InputError(f"sequential={self.sequential!r:.40} is not True or False")

    @property
    def drops_rows(self) -> bool:
        return self.truncation is None or _CUTS[self.truncation]


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """A question about a table, or a whole conversation."""

    questions: tuple[TableTokens, ...]

    def __len__(self) -> int:
        return max(len(question) for question in self.questions)


class TableQuestionAnswering(OneGraph):
    """`pipe(table, query)`, or with {"table", "query"}, or a list of those -> {"answer", "coordinates", "cells",
    "aggregator"}: the cells as (row, column) and as texts, and the action that is to be done with them.

    A table is {column: [cells]}, a list of {column: cell} or a data frame; a list of queries gives a list of answers. A
    model without actions gives no aggregator. A list that holds one input gives its answer, not a list of one.
    """

    task: ClassVar[str] = "table-question-answering"
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    options: ClassVar[type[TableQuestionAnsweringOptions]] = TableQuestionAnsweringOptions
    keywords: ClassVar[tuple[str, ...]] = ("inputs", "table")
    takes_objects: ClassVar[bool] = True

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        super().__init__(session, folder, **parameters)
        self._reader = open_reader(self.text_tokenizer, self.folder, self.facts)
        self._actions: Sequence[str] = self.facts.get("aggregations", ())

    def __call__(self, inputs: Any = None, query: Any = None, **parameters: Any) -> Any:
        """One question or a list about a table -> one answer or a list; see the class."""
        return super().__call__(inputs, **parameters, **({} if query is None else {"query": query}))

    def _inputs(self, inputs: Any, parameters: dict[str, Any]) -> Any:
        """See `Pipeline._inputs`: objects of a table and its query."""
        inputs = super()._inputs(inputs, parameters)
        return {"table": inputs, "query": parameters.pop("query")} if "query" in parameters else inputs

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, Mapping) or hasattr(inputs, "itertuples")  # a data frame without a query

    def _shaped(self, answer: Any, inputs: Any, parameters: Mapping[str, Any]) -> Any:
        """A list of one input gives its answer."""
        return answer[0] if isinstance(inputs, list | tuple) and len(inputs) == 1 else answer

    def _takes(self) -> str:
        return f'table= and query=, {{"table", "query"}}, or a list of those; a table is {TAKES}'

    def check(self, item: Any) -> None:
        """See `BatchPipeline.check`."""
        if not isinstance(item, Mapping) or item.get("table") is None or "query" not in item:
            raise InputError(f"{self.task} takes {self._takes()}; this is {item!r:.80}")
        query = item["query"]
        if not (isinstance(query, str) and query) and not _texts(query):
            raise InputError(f"a query is a text that is not empty, or a list of those, not {query!r:.80}")

    def prepare(
        self, items: Sequence[Mapping[str, Any]], call: TableQuestionAnsweringOptions
    ) -> Iterable[Iterable[Any]]:
        """See `BatchPipeline.prepare`: a piece is a question, or with `sequential` a conversation."""
        for item in items:
            table, query = read_table(item["table"]), item["query"]
            read = self._reader.read(table, [query] if isinstance(query, str) else query, drops_rows=call.drops_rows)
            for tokens in read:
                self._check_ids(tokens.ids.tolist())
                if self.context is not None and len(tokens) > self.context:
                    raise InputError(
                        f"a question of this length with the table has {len(tokens)} tokens, too many for the model's "
                        f"{self.context} positions; pass truncation=True, or a smaller table: {query!r:.60}"
                    )
            yield [_Asked(tuple(read))] if call.sequential else [_Asked((tokens,)) for tokens in read]

    def batches(self, pieces: Iterator[InputPiece], size: int | None, count: int) -> Batches:
        """See `BatchPipeline.batches`."""
        rows = list(pieces)
        groups = list(longest_first([len(piece.value) for piece in rows], size))
        return Batches(len(groups), ([rows[n] for n in group] for group in groups))

    def feed(self, batch: list[_Asked], call: Any) -> dict[str, NDArray[Any]]:
        """See `OneGraph.feed`: the first question of each piece, padded on the right."""
        return self._feed([asked.questions[0] for asked in batch])

    def _feed(self, rows: Sequence[TableTokens]) -> dict[str, NDArray[Any]]:
        length = max(len(row) for row in rows)
        ids = np.full((len(rows), length), self.text_tokenizer.pad_id, np.int64)
        mask, types = np.zeros_like(ids), np.zeros((len(rows), length, rows[0].types.shape[1]), np.int64)
        for n, row in enumerate(rows):
            ids[n, : len(row)], types[n, : len(row)], mask[n, : len(row)] = row.ids, row.types, 1
        roles = {"tokens": ids, "mask": mask, "token_types": types}
        return {port.name: roles[str(port.role)] for port in self.session.signature.inputs}

    def split(self, batch: list[_Asked], outputs: dict[str, NDArray[np.float32]]) -> Sequence[Any]:
        """See `OneGraph.split`: what the model says of one question of each piece."""
        return [{name: array[n] for name, array in outputs.items()} for n in range(len(batch))]

    def forward(
        self, batches: Iterator[list[_Asked]], count: int, call: TableQuestionAnsweringOptions
    ) -> Iterator[Sequence[Any]]:
        """See `BatchPipeline.forward`; a conversation runs question by question."""
        if call.sequential:
            return ([list(self._conversation(asked)) for asked in batch] for batch in batches)
        return ([[output] for output in outputs] for outputs in super().forward(batches, count, call))

    def _conversation(self, asked: _Asked) -> Iterator[Mapping[str, NDArray[np.float32]]]:
        answer: set[Cell] | None = None
        for tokens in asked.questions:
            tokens = tokens if answer is None else tokens.after(answer)
            outputs = self.session.run(self._feed([tokens]))
            (said,) = self.split([asked], outputs)
            answer = set(_chosen(tokens, said["logits"]))
            yield said

    def finish(self, item: Mapping[str, Any], pieces: Sequence[InputPiece], call: Any) -> Any:
        """See `BatchPipeline.finish`."""
        table = read_table(item["table"])
        answers = [
            self._answer(table, tokens, said)
            for piece in pieces
            for tokens, said in zip(piece.value.questions, piece.output, strict=True)
        ]
        return answers if len(answers) > 1 else answers[0]

    def _answer(self, table: Table, tokens: TableTokens, said: Mapping[str, NDArray[np.float32]]) -> dict[str, Any]:
        coordinates = _chosen(tokens, said["logits"])
        cells = [table.rows[row][column] for row, column in coordinates]
        answer = {"answer": ", ".join(cells), "coordinates": coordinates, "cells": cells}
        if not self._actions:
            return answer
        number = int(said["logits_aggregation"].argmax())
        action = self._actions[number]
        if number != self.facts.get("no_aggregation"):
            answer["answer"] = f"{action} > {answer['answer']}"
        return answer | ({"aggregator": action} if action else {})


def _chosen(tokens: TableTokens, logits: NDArray[np.float32]) -> list[Cell]:
    """The cells whose tokens have a mean probability above one half, by row and column."""
    chances = 1 / (1 + np.exp(-np.maximum(logits[: len(tokens)].astype(np.float32), _LEAST)))
    inside = (tokens.types[:, SEGMENT] == 1) & (tokens.types[:, ROW] > 0) & (tokens.types[:, COLUMN] > 0)
    found: dict[Cell, list[float]] = {}
    for row, column, chance in zip(
        (tokens.types[inside, ROW] - 1).tolist(),
        (tokens.types[inside, COLUMN] - 1).tolist(),
        chances[inside].astype(np.float64).tolist(),
        strict=True,
    ):
        found.setdefault((row, column), []).append(chance)
    return sorted(cell for cell, values in found.items() if np.mean(values) > 0.5)


def _texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, str) and item for item in value)
