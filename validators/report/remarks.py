"""What a report says in sentences, beside its table."""

from __future__ import annotations

from typing import Literal, NamedTuple

from isoform.validators.report.records import Report, group_of, worst


class Remark(NamedTuple):
    """One line: what kind of remark it is, and the rest."""

    kind: Literal["FAIL", "WARNING", "DEPARTS", "skipped", "note"]
    text: str

    def __str__(self) -> str:
        return f"{self.kind} {self.text}"


def remarks(report: Report) -> list[Remark]:
    """What the table leaves out, a line each: where it failed, what was skipped and why, and notes."""
    lines = []
    for result in worst(report.results):
        if not result.passed:
            alike = {r.case for r in report.results if not r.passed and group_of(r) == group_of(result)}
            several = f"{len(alike)} cases of {result.kind}, worst {result.where}"
            where = result.where if len(alike) == 1 else several
            note = f": {result.note}" if result.note else ""
            lines.append(Remark("FAIL", f"{result.who} {result.level}, {where}{note}"))
    lines += [Remark("WARNING", report.about["float16"])] if "float16" in report.about else []
    lines += [Remark("DEPARTS", f"{departure.who}, {departure.where}: {departure}") for departure in report.departures]
    lines += [Remark("skipped", f"{skip.who} {skip.level}, {skip.where}: {skip.reason}") for skip in report.skipped]
    noted: dict[tuple[str, str], list[str]] = {}
    for result in worst(report.results):
        if result.passed and result.note:
            noted.setdefault((result.who, result.note), []).append(result.kind)
    for (who, note), groups in noted.items():
        lines.append(Remark("note", f"{who}, {', '.join(dict.fromkeys(groups))}: {note}"))
    return lines
