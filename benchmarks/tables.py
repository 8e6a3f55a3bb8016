"""The tables of measurements in docs/, made of the JSON files in benchmarks/results/.

`python -m benchmarks.tables` makes every table of docs/ anew. A page holds `<!-- result: NAME -->` where the table of
NAME.json goes. A result says what was run ("command"), where ("machine"; left out for what no machine changes), when
("date"), and the table ("columns", "rows"). "conditions" are the load average of the minute before, how much longer a
piece of work took at times than at best ("noise"), and versions. `<!-- output: NAME -->` stands for what a program
printed: NAME.txt.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS, PAGES = ROOT / "benchmarks" / "results", ROOT / "docs"
OUTPUT = re.compile(r"<!-- output: (\w+) -->\n.*?<!-- end of output -->", re.DOTALL)
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
    state = "; load {load}, noise {noise}".format(**found["conditions"]) if "conditions" in found else ""
    return "\n".join([*lines, "", f"*`{found['command']}`{where}, {found['date']}{state}*"])


def output(name: str) -> str:
    """What a program printed, as a block of code."""
    printed = (RESULTS / f"{name}.txt").read_text(encoding="utf-8")
    return "\n".join(["```text", *(line.rstrip() for line in printed.strip("\n").split("\n")), "```"])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def renewed(page: str) -> str:
    """A page with its tables and outputs made anew."""
    page = OUTPUT.sub(lambda found: f"<!-- output: {found[1]} -->\n{output(found[1])}\n<!-- end of output -->", page)
    return TABLE.sub(lambda found: f"<!-- result: {found[1]} -->\n{table(found[1])}\n<!-- end of result -->", page)


def main() -> None:
    """Make the tables of every page anew."""
    for page in sorted(PAGES.glob("*.md")):
        page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
