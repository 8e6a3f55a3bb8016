"""What a check found: results, what was skipped and why, as JSON and as a table. Nothing is measured here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Result:
    """One number against its limit. `case` begins with the artifact's dtype and the group: "f32 left padding, …"."""

    backend: str
    level: str
    case: str
    metric: str
    value: float
    limit: float
    passed: bool
    note: str = ""

    @property
    def group(self) -> str:
        return self.case.partition(",")[0]

    def to_json(self) -> dict[str, Any]:
        """The published keys, and a note where there is one."""
        data = {
            "backend": self.backend,
            "level": self.level,
            "case": self.case,
            "metric": self.metric,
            "value": self.value,
            "limit": self.limit,
            "pass": self.passed,
        }
        return data | ({"note": self.note} if self.note else {})


@dataclass(frozen=True, slots=True)
class Skip:
    """A case that was not run, and why."""

    backend: str
    level: str
    case: str
    reason: str

    def to_json(self) -> dict[str, str]:
        return {"backend": self.backend, "level": self.level, "case": self.case, "reason": self.reason}


@dataclass
class Report:
    """Results and skips in the order in which they were taken, which is the same for the same bundle."""

    results: list[Result] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)

    @property
    def same(self) -> bool:
        """Everything measured is within its limit, and something was measured."""
        return bool(self.results) and all(result.passed for result in self.results)

    def add(self, other: Report) -> None:
        self.results += other.results
        self.skipped += other.skipped

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"same": self.same, "results": [result.to_json() for result in self.results]}
        return data | ({"skipped": [skip.to_json() for skip in self.skipped]} if self.skipped else {})

    def summary(self) -> dict[str, Any]:
        """What the manifest keeps: the verdict, and of every group the result nearest to or furthest past its limit."""
        return {
            "same": self.same,
            "worst": [result.to_json() for result in worst(self.results)],
            "skipped": [skip.to_json() for skip in self.skipped],
        }


def worst(results: Iterable[Result]) -> list[Result]:
    """For each backend, level and group the result with the most of its limit used, in order of appearance."""
    chosen: dict[tuple[str, str, str], Result] = {}
    for result in results:
        key = _key(result)
        if key not in chosen or _use(result) > _use(chosen[key]):
            chosen[key] = result
    return list(chosen.values())


def _use(result: Result) -> tuple[bool, float]:
    """How bad it is: failures first, then the share of the limit."""
    share = result.value / result.limit if result.limit else (0.0 if result.value == 0 else float("inf"))
    return not result.passed, share


def table(report: Report) -> Table:
    """The worst result of every group, and what was skipped."""
    from rich.table import Table
    from rich.text import Text

    rows = Table(header_style="bold", title="parity", title_justify="left", title_style="bold")
    for column in ("backend", "level", "cases", "metric"):
        rows.add_column(column, overflow="fold")
    for column in ("value", "limit", "of limit"):
        rows.add_column(column, justify="right", no_wrap=True)
    rows.add_column("", overflow="fold")
    for result in worst(report.results):
        failed, share = _use(result)
        verdict = Text("ok", "green")
        if failed:
            alike = {r.case for r in report.results if not r.passed and _key(r) == _key(result)}
            where = result.case.partition(", ")[2] if len(alike) == 1 else f"{len(alike)} cases"
            verdict = Text(f"FAIL {where}".rstrip(), "red")
        if result.note:
            verdict.append(f": {result.note}" if failed else f", {result.note}", "red" if failed else "dim")
        rows.add_row(
            Text(result.backend),
            Text(result.level),
            Text(result.group),
            Text(result.metric),
            f"{result.value:.2g}",
            f"{result.limit:.2g}",
            f"{share:.0%}" if result.limit else "",
            verdict,
        )
    for skip in report.skipped:
        reason = Text(f"skipped: {skip.reason}", "yellow")
        rows.add_row(Text(skip.backend), Text(skip.level), Text(skip.case), "", "", "", "", reason)
    return rows


def _key(result: Result) -> tuple[str, str, str]:
    return result.backend, result.level, result.group
