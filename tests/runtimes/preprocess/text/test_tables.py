"""Tables to tokens, against what transformers' tokenizer of TAPAS gave (`table_goldens`), and quantities of a text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoform.errors import InputError, UnsupportedModel
from isoform.json_files import JsonObject
from isoform.reference.facts import facts_of
from isoform.reference.model import open_model
from isoform.runtimes.preprocess.text.tables.comparing import EQUAL, GREATER, LESS, ComparedTable
from isoform.runtimes.preprocess.text.tables.fitting import fitted, word_starts
from isoform.runtimes.preprocess.text.tables.quantities import quantities_of
from isoform.runtimes.preprocess.text.tables.reader import FROM_ABOVE, ROW, TableReader, TableTokens
from isoform.runtimes.preprocess.text.tables.table import MISSING, Table, read_table
from isoform.runtimes.preprocess.text.tokenizer import TextTokenizer
from tests.oracle import table_goldens as goldens

Tiny = Callable[[str], Path]
WIDE = (3, 600, 600, 2, 600, 600, 10)
"""More rows and ranks than a table here has, so that nothing is cut for want of a number."""


@contextmanager
def reading(folder: Path, sizes: tuple[int, ...] = WIDE) -> Iterator[TableReader]:
    model = open_model(folder)  # whose folder has a tokenizer.json made from vocab.txt
    where = model.checkpoint.folder
    yield TableReader(TextTokenizer(where, facts_of(model)), JsonObject.read(where / "tokenizer_config.json"), sizes)


def read(reader: TableReader, table: goldens.Columns, asked: list[str], cut: bool) -> list[Any] | str:
    try:
        found = reader.read(read_table(table), asked, drops_rows=cut)
    except InputError as error:
        return (
            "Too many columns" if "columns" in str(error) else "Too many rows" if "rows" in str(error) else str(error)
        )
    return [[row.ids.tolist(), row.types.tolist()] for row in found]


@pytest.mark.parametrize("name", goldens.SETTINGS)
def test_tokens_and_their_types_are_those_of_transformers(name: str, tiny: Tiny, tmp_path: Path) -> None:
    stored = json.loads(Path(goldens.__file__).with_suffix(".json").read_text(encoding="utf-8"))["tokens"][name]
    source, settings = goldens.SETTINGS[name]
    with reading(goldens.changed(tiny(source), tmp_path / "changed", settings)) as reader:
        hand = [read(reader, *example, cut) for example in goldens.HAND for cut in (True, False)]
        for found, expected in zip(hand, stored["hand"], strict=True):
            assert (goldens.digest(found) if settings else found) == expected
        for seed, expected in enumerate(stored["made"]):
            table, asked = goldens.made(seed)
            assert goldens.digest(read(reader, table, asked, seed % 3 > 0)) == expected, (seed, table, asked)


@pytest.mark.nightly
def test_tokens_are_those_of_transformers_where_pandas_is_installed(tiny: Tiny) -> None:
    pandas = pytest.importorskip("pandas")
    from transformers import TapasTokenizer

    theirs = TapasTokenizer.from_pretrained(tiny("tapas_qa"))
    with reading(tiny("tapas_qa")) as reader:
        for seed in range(1000, 1200):
            table, asked = goldens.made(seed)
            for question, found in zip(asked, reader.read(read_table(table), asked, drops_rows=True), strict=True):
                expected = theirs(pandas.DataFrame(table), question, truncation=True)
                assert found.ids.tolist() == expected["input_ids"], (seed, question)
                assert found.types.tolist() == expected["token_type_ids"], (seed, question)


# ------------------------------------------------------------------ numbers and dates
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,234.5", [1234.5]),
        ("3rd and 1st", [3.0, 1.0]),
        ("Twelve of the third", [12.0, 3.0]),
        ("a -7 b+8", [-7.0, 8.0]),
        ("1990", [1990.0, (1990, None, None)]),
        ("1690", [1690.0]),  # before the first year
        ("may 1990", [(1990, 5, None)]),
        ("Monday, Jan 5", [(None, 1, 5)]),
        ("6.05.1999", [(1999, 5, 6)]),
        ("2010-02-30", [(2010, 2, None), 30.0]),  # there is no such day
        ("29 february", [29.0, (None, 2, None)]),  # without a year it is one of 28 days
        ("Sept 5", [5.0]),
        ("1e999, nan, inf", [1.0, 999.0]),
        ("", []),
    ],
)
def test_the_longest_numbers_and_dates_of_a_text_are_found(text: str, expected: list[Any]) -> None:
    assert quantities_of(text) == expected


@given(
    st.dates(date(1700, 1, 1), date(2016, 12, 31)), st.sampled_from(("%d %B %Y", "%b %d, %Y", "%Y-%m-%d", "%d.%m.%Y"))
)
def test_every_day_is_read_back_from_each_form_that_names_it(day: date, form: str) -> None:
    assert quantities_of(day.strftime(form)) == [(day.year, day.month, day.day)]


@given(st.text(max_size=40))
def test_any_text_has_quantities_without_an_error(text: str) -> None:
    assert all(value == value for value in quantities_of(text))


# ------------------------------------------------------------------ ranks and relations
def column(*cells: str) -> Table:
    return Table(("a",), tuple((cell,) for cell in cells))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12))
def test_ranks_count_the_different_values_from_both_ends(values: list[int]) -> None:
    found = ComparedTable(column(*map(str, values)))
    different = sorted(set(values))
    assert found.ranks[:, 0].tolist() == [different.index(value) + 1 for value in values]
    assert (found.ranks + found.from_above == len(different) + 1).all()


def test_dates_compare_by_what_all_of_them_say() -> None:
    assert ComparedTable(column("5 may 2010", "august 2007", "2007")).ranks[:, 0].tolist() == [2, 1, 1]
    assert not ComparedTable(column("may", "2007", "2008")).ranks.any(), "there is nothing that all of them say"


def test_a_column_has_ranks_where_seven_of_ten_cells_have_a_quantity() -> None:
    numbers, words = [str(n) for n in range(7)], ["x", "y", "z"]
    assert ComparedTable(column(*numbers, *words)).ranks[:, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 0, 0, 0]
    assert not ComparedTable(column(*numbers[:6], *words, "w")).ranks.any()


def test_a_question_is_equal_to_less_or_greater_than_each_cell() -> None:
    found = ComparedTable(column("3", "5", "x", "4", "6")).relations("more than 4, or five")
    assert found[:, 0].tolist() == [GREATER, LESS | EQUAL, 0, EQUAL | GREATER, LESS]


# ------------------------------------------------------------------ what fits
def test_a_word_is_kept_whole_or_left_out() -> None:
    assert word_starts(["a", "b", "##c", "##d", "e"]) == [0, 1, 1, 1, 4]
    rows = [[[0]], [[0, 1, 1, 1, 4]]]
    assert fitted(rows, 1, 5, -1) == (1, 4)  # the word of three tokens, and not the last
    assert fitted(rows, 1, 4, -1) == (1, 1)


def test_rows_are_left_out_when_not_even_one_token_of_a_cell_fits() -> None:
    rows = [[[0], [0]]] * 10
    assert fitted(rows, 9, 20, -1) == (9, 1)
    assert fitted(rows, 9, 11, -1) == (4, 1)
    assert fitted(rows, 9, 1, -1) == (0, 1), "the header stays"
    assert fitted(rows, 9, -5, -1) == (0, 1)


def test_a_trimmed_cell_is_cut_no_further() -> None:
    rows = [[[0, 1, 2]]] * 4
    assert fitted(rows, 3, 8, 2) == (3, 2)
    assert fitted(rows, 3, 7, 2) == (2, 2)
    assert fitted(rows, 3, 7, -1) == (3, 1)


def test_ten_thousand_rows_are_read_as_far_as_the_model_has_numbers(tiny: Tiny) -> None:
    table = read_table({"number": range(10_000), "word": ["a"] * 10_000})
    with reading(tiny("tapas_qa"), (3, 256, 256, 2, 256, 256, 10)) as reader:
        (found,) = reader.read(table, ["which is 9999?"], drops_rows=True)
        assert len(found) <= 512
        assert 100 < found.types[:, ROW].max() < 256
        assert found.types[:, FROM_ABOVE].max() == 255, "a rank without a number is the greatest"
        with pytest.raises(InputError, match=r"10000 rows, and the model reads up to 255; pass truncation=True"):
            reader.read(table, ["which?"], drops_rows=False)


def test_cells_that_answered_before_are_marked(tiny: Tiny) -> None:
    with reading(tiny("tapas_qa")) as reader:
        (tokens,) = reader.read(read_table(goldens.SHORT), ["which?"], drops_rows=True)
    found = tokens.after({(1, 0), (9, 9)})
    marked = found.types[:, 3] == 1
    assert marked.any()
    assert {(row, column) for row, column in found.types[marked][:, [2, 1]].tolist()} == {(2, 1)}
    assert not tokens.types[:, 3].any()


# ------------------------------------------------------------------ tables
class Frame:
    """What is asked of a data frame."""

    columns = ("a", 2)

    def itertuples(self, index: bool = True, name: str | None = "Pandas") -> Iterator[tuple[Any, ...]]:
        assert not index
        assert name is None
        yield from (("x", 1), ("y", float("nan")))


def test_a_table_is_columns_rows_or_a_data_frame() -> None:
    expected = Table(("a", "2"), (("x", "1"), ("y", MISSING)))
    assert read_table({"a": ["x", "y"], 2: (1, None)}) == expected
    assert read_table([{"a": "x", 2: 1}, {"a": "y"}]) == expected
    assert read_table(Frame()) == expected
    assert read_table({"a": np.array(["x", "y"]), "2": np.array([1.0, np.nan])}).rows == (("x", "1.0"), ("y", MISSING))


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({}, "has no columns"),
        ([], "has no columns"),
        ({"a": []}, "has no rows"),
        ([{}], "has no columns"),
        ({"a": ["x"], "b": []}, "unlike numbers of cells: 'a' has 1, 'b' has 0"),
        ({"a": "text"}, "column 'a' of the table is no list of cells"),
        ({"a": {"0": "x"}}, "column 'a' of the table is no list of cells"),
        ({"a": 3}, "column 'a' of the table is no list of cells"),
        ([["x"]], "row 0 of the table is no object"),
        ({"a": [["x"]]}, "a cell of the table is a list"),
        ({"a": [b"x"]}, "a cell of the table is a bytes"),
        ("a,b", "not a str"),
        (3, "not a int"),
    ],
)
def test_what_is_no_table_is_one_line(table: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        read_table(table)


@pytest.mark.parametrize(
    ("settings", "question", "reason"),
    [
        ({"max_question_length": 2}, "one two three", "has 7 tokens; tokenizer_config.json allows 0 to 2"),
        ({"min_question_length": 2}, "cat", "has 1 tokens; tokenizer_config.json allows 2 to any"),
    ],
)
def test_a_question_of_a_length_that_the_settings_forbid_is_one_line(
    settings: dict[str, Any], question: str, reason: str, tiny: Tiny, tmp_path: Path
) -> None:
    with (
        reading(goldens.changed(tiny("tapas_qa"), tmp_path / "changed", settings)) as reader,
        pytest.raises(InputError, match=reason),
    ):
        reader.read(read_table(goldens.SHORT), [question], drops_rows=True)


@pytest.mark.parametrize("settings", [{"never_split": ["cat"]}, {"do_basic_tokenize": False}])
def test_settings_that_no_checkpoint_has_are_refused_by_name(
    settings: dict[str, Any], tiny: Tiny, tmp_path: Path
) -> None:
    folder = goldens.changed(tiny("tapas_qa"), tmp_path / "changed", settings)
    with pytest.raises(UnsupportedModel, match=next(iter(settings))), reading(folder):
        pass


def test_tokens_have_a_length() -> None:
    assert len(TableTokens(np.zeros(3, np.int64), np.zeros((3, 7), np.int64))) == 3
