"""Types of tokens that a model of tables reads: a made-up table, and a real one by the checkpoint's own tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isoform.errors import IsoformError
from isoform.json_files import JsonObject
from isoform.validators.cases.case import Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from isoform.reference.model import Model

COLUMNS, WIDEST = 3, 2
"""Columns of a made-up table, and the most tokens of its cells."""

TABLE = {
    "Mission": ["Vostok 1", "Apollo 11", "Skylab 4", "Mir EO-1"],
    "Launched": ["12 April 1961", "16 July 1969", "16 November 1973", "13 March 1986"],
    "Crew": ["1", "3", "3", "2"],
    "Days in space": ["0.075", "8.14", "84.05", "125"],
}
QUESTIONS = ("How many days did the missions with a crew of 3 last?", "Which mission was launched after 1970?")


def type_sizes(model: Model) -> tuple[int, ...]:
    """How many values each type of a token may have; none for a model whose tokens have one type or no types."""
    port = model.signature.port("token_types")
    several = port is not None and len(port.axes) == 3
    return tuple(model.task.facts(model.config)["types"]) if several else ()


def table_types(random: np.random.Generator, sizes: tuple[int, ...], length: int) -> NDArray[np.int64]:
    """Types (length, kinds) of a question and the cells of a table; all but column and row are random."""
    import numpy as np

    types = random.integers(0, sizes, (length, len(sizes)))
    asked = length // 3
    cells = np.cumsum(random.integers(0, WIDEST, length - asked))
    types[:asked, :3] = 0
    types[asked:, 0] = 1
    types[asked:, 1] = np.minimum(cells % COLUMNS + 1, sizes[1] - 1)
    types[asked:, 2] = np.minimum(cells // COLUMNS, sizes[2] - 1)
    return types


def real_tables(model: Model) -> tuple[Row, ...]:
    """QUESTIONS about TABLE as the checkpoint's tokenizer reads them; none without one."""
    from isoform.reference.facts import facts_of
    from isoform.runtimes.preprocess.text.tables.reader import TableReader
    from isoform.runtimes.preprocess.text.tables.table import read_table
    from isoform.runtimes.preprocess.text.tokenizer import TextTokenizer

    folder = model.checkpoint.folder
    settings = JsonObject.read(folder / "tokenizer_config.json")
    try:
        reader = TableReader(TextTokenizer(folder, facts_of(model)), settings, type_sizes(model))
        read = reader.read(read_table(TABLE), QUESTIONS, drops_rows=True)
    except IsoformError:
        return ()
    most, limit = max(int(row.ids.max()) for row in read), model.config.context
    if most >= (model.config.vocabulary or 0) or any(limit is not None and len(row) > limit for row in read):
        return ()
    return tuple(Row(row.ids, row.types) for row in read)
