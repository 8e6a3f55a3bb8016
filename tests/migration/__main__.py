"""`python -m tests.migration docs/migration.md` renews the table of call forms in that page."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.migration.form import Form
from tests.migration.table import TOPICS

BEGIN, END = "<!-- forms: python -m tests.migration docs/migration.md -->", "<!-- end of forms -->"


def renewed(page: str) -> str:
    """The page with its table of forms written anew."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"the page has no {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


def tables() -> str:
    """Each topic with its forms and verdicts, and the count of all."""
    forms = [form for one in TOPICS.values() for form in one]
    refused = sum(bool(form.refused) for form in forms)
    parts = [f"{len(forms)} forms: {len(forms) - refused} give the same answer, {refused} are refused.\n"]
    for topic, one in TOPICS.items():
        rows = "\n".join(f"| {_code(form)} | {_verdict(form)} |" for form in one)
        parts.append(f"### {topic}\n\n| form | isoform |\n|---|---|\n{rows}\n")
    return "\n".join(parts)


def _code(form: Form) -> str:
    """The lines of a snippet in the cell of a table."""
    lines = (line.replace("|", "\\|") for line in form.source.splitlines())
    return "<br>".join(f"{'&nbsp;' * (len(line) - len(line.lstrip()))}`{line.strip()}`" for line in lines if line)


def _verdict(form: Form) -> str:
    return f"refused: {form.refused}" if form.refused else f"same{form.note and f' {form.note}'}"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
