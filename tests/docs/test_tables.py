"""The pages hold the tables that the JSON files and the cards say, and the README stays short."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from benchmarks import tables

from isoform import support

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_tables_of_a_page_are_those_of_the_results(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == tables.renewed(text), "run python -m benchmarks.tables"


@pytest.mark.parametrize(("pattern", "files"), [(tables.TABLE, "*.json"), (tables.OUTPUT, "*.txt")])
def test_every_result_is_on_a_page(pattern: re.Pattern[str], files: str) -> None:
    shown = {name for page in PAGES for name in pattern.findall(page.read_text(encoding="utf-8"))}
    assert shown == {path.stem for path in tables.RESULTS.glob(files)}


def test_an_output_on_a_page_is_that_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "said.txt").write_text("$ isoform bench m\nchosen: torch  \n\n")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    page = "Before\n<!-- output: said -->\nold\n<!-- end of output -->\nafter"
    block = "```text\n$ isoform bench m\nchosen: torch\n```"
    assert tables.renewed(page) == page.replace("old", block)


@pytest.mark.parametrize("page", ["README.md", "docs/support.md"])
def test_the_support_tables_are_those_of_the_cards(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text == support.renewed(text), "run python -m isoform.support README.md docs/support.md"


def test_a_stale_table_is_found() -> None:
    page = (ROOT / "docs" / "gguf.md").read_text(encoding="utf-8")
    assert tables.renewed(page.replace("| q8_0 |", "| q8_1 |")) == page


def test_the_readme_has_at_most_eight_kilobytes() -> None:
    assert (ROOT / "README.md").stat().st_size <= 8192


def test_the_links_of_the_readme_lead_somewhere() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", readme):
        assert (ROOT / target).is_file(), target


def test_every_page_is_in_the_menu_of_the_site() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if f" {page.name}\n" not in menu] == []


def test_the_budgets_on_the_page_are_those_of_the_code() -> None:
    from isoform.validators.truth.budgets import PRECISIONS

    text = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|[^|\n]*\| `(\w+)`[^|\n]*\|([^|\n]*)\|([^|\n]*)\|([^|\n]*)\|([^|\n]*)\|$", text, re.MULTILINE)
    assert {metric for metric, *_ in rows} == {field.name for field in fields(PRECISIONS["bf16"])}
    for metric, *cells in rows:
        for name, cell in zip(("bf16", "f16", "int8", "small"), cells, strict=True):
            said = float(cell.removesuffix(" % ").strip()) / (100 if "%" in cell else 1)
            assert said == pytest.approx(getattr(PRECISIONS[name], metric).value, rel=0.05), (metric, name)
