"""Markdown, for the summary of a CI step: the verdict first, then the worst of every group, then everything."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from isoform.validators.report.records import use, worst
from isoform.validators.report.remarks import remarks

if TYPE_CHECKING:
    from isoform.validators.report.records import Report, Result

LARGEST = 900_000  # characters; GitHub cuts a step's summary at 1 MiB


def markdown(report: Report) -> str:
    """The report as GitHub's Markdown."""
    failed = [result for result in report.results if not result.passed]
    name = report.about.get("bundle") or report.about.get("config") or ""
    verdict = "✅ the same" if report.same else "❌ not the same"
    lines = [f"## {verdict}" + (f": {_text(str(name))}" if name else ""), ""]
    count = f"{len(report.results)} results, {len(failed)} failed, {len(report.skipped)} skipped"
    spent = report.about.get("seconds")
    lines += [count + (f", {spent:.0f} s" if isinstance(spent, int | float) else ""), ""]
    lines += _table(report, worst(report.results))
    said = [line for line in remarks(report) if line.kind != "note"]
    lines += ["", *(f"* {_text(str(line))}" for line in said)] if said else []
    short = "\n".join(lines) + "\n"
    whole = ["", "<details><summary>Every result</summary>", "", *_table(report, report.results), "", "</details>"]
    long = short + "\n".join(whole) + "\n"
    return long if len(long) <= LARGEST else short


def _table(report: Report, results: list[Result]) -> list[str]:
    several = any(result.model for result in report.results)
    head = [*(["model"] if several else []), "backend", "level", "case", "metric", "value", "limit", "used", ""]
    rows = ["| " + " | ".join(head) + " |", "|" + "|".join([*("---",) * (len(head) - 4), *("---:",) * 3, "---"]) + "|"]
    for result in results:
        share = use(result)[1]
        cells = [*([result.model] if several else []), result.backend, result.level, result.where, result.metric]
        used = f"{share:.0%}" if result.limit else ""
        numbers = [f"{result.value:.2g}", f"{result.limit:.2g}", used, "ok" if result.passed else "**FAIL**"]
        rows.append("| " + " | ".join([*map(_text, cells), *numbers]) + " |")
    return rows


def _text(text: str) -> str:
    """No markup, no line breaks, no cells of its own."""
    return re.sub(r"([\\`*_\[\]<>|~#])", r"\\\1", " ".join(text.split()))
