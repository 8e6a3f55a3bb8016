"""The tables of measurements in docs/, made of the JSON files in benchmarks/results/.

`python -m benchmarks.tables` makes every table of docs/ anew. A page holds `<!-- result: NAME -->` where the table of
NAME.json goes. A result says what was run ("command"), where ("machine"; left out for what no machine changes), when
("date"), and the table ("columns", "rows").
"""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS, PAGES = ROOT / "benchmarks" / "results", ROOT / "docs"
TABLE = re.compile(r"<!-- result: (\w+) -->\n.*?<!-- end of result -->", re.DOTALL)


def table(name: str) -> str:
    """A result as Markdown, with a line under it that says how it was measured."""
    found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    columns, rows = found["columns"], found["rows"]
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"{name}.json: a row of {len(row)} cells under {len(columns)} columns: {row}")
    lines = [_line(columns), _line(["---"] * len(columns)), *map(_line, rows)]
    where = f" on {found['machine']}" if "machine" in found else ""
    return "\n".join([*lines, "", f"*`{found['command']}`{where}, {found['date']}*"])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def renewed(page: str) -> str:
    """A page with its tables made anew."""
    return TABLE.sub(lambda found: f"<!-- result: {found[1]} -->\n{table(found[1])}\n<!-- end of result -->", page)


def main() -> None:
    """Make the tables of every page anew."""
    for page in sorted(PAGES.glob("*.md")):
        page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
