"""What a check found: results, what was skipped and why, as JSON, a table and remarks. Nothing is measured here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from isoform.validators.report.departure import Departure
    from isoform.validators.report.evidence import Evidence
    from isoform.validators.report.layers import LayerProfile

SCHEMA_VERSION = 1
"""Of the JSON that a check prints (report/report.schema.json); it grows when a key changes or goes."""


@dataclass(frozen=True, slots=True)
class Result:
    """One number against its limit. `case` begins with the artifact's dtype and the group: "f32 left padding, …".

    `model` is set where one report is about several.
    """

    backend: str
    level: str
    case: str
    metric: str
    value: float
    limit: float
    passed: bool
    note: str = ""
    model: str = ""

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
            "value": self.value if isfinite(self.value) else None,
            "limit": self.limit if isfinite(self.limit) else None,
            "pass": self.passed,
        }
        data |= {"note": self.note} if self.note else {}
        return {"model": self.model, **data} if self.model else data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Result:
        """A number that is not finite is written as null."""
        value, limit = (float("inf") if data[key] is None else data[key] for key in ("value", "limit"))
        names = (data["backend"], data["level"], data["case"], data["metric"])
        return cls(*names, value, limit, bool(data["pass"]), data.get("note", ""), data.get("model", ""))


@dataclass(frozen=True, slots=True)
class Skip:
    """A case that was not run, and why."""

    backend: str
    level: str
    case: str
    reason: str
    model: str = ""

    def to_json(self) -> dict[str, str]:
        data = {"backend": self.backend, "level": self.level, "case": self.case, "reason": self.reason}
        return {"model": self.model, **data} if self.model else data

    @classmethod
    def from_json(cls, data: dict[str, str]) -> Skip:
        return cls(data["backend"], data["level"], data["case"], data["reason"], data.get("model", ""))


@dataclass
class Report:
    """Results and skips in the order in which they were taken, which is the same for the same bundle.

    `about` says what was checked (bundle, source, family, task, versions, estimate and seconds), `evidence` holds what
    the charts show, `departures` where a form that is not the same begins to differ, `layers` how far off its modules
    are.
    """

    results: list[Result] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)
    evidence: list[Evidence] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    departures: list[Departure] = field(default_factory=list)
    layers: list[LayerProfile] = field(default_factory=list)

    @property
    def same(self) -> bool:
        """Everything measured is within its limit, and something was measured."""
        return bool(self.results) and all(result.passed for result in self.results)

    def add(self, other: Report) -> None:
        self.results += other.results
        self.skipped += other.skipped
        self.evidence += other.evidence
        self.departures += other.departures
        self.layers += other.layers

    def labelled(self, model: str) -> Report:
        """The same findings, each said to be about this model."""
        return Report(
            [replace(result, model=model) for result in self.results],
            [replace(skip, model=model) for skip in self.skipped],
            [replace(evidence, model=model) for evidence in self.evidence],
            self.about,
            [replace(departure, model=model) for departure in self.departures],
            [replace(profile, model=model) for profile in self.layers],
        )

    def to_json(self) -> dict[str, Any]:
        """The published form; a key whose list is empty is left out, but for the results."""
        data: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "same": self.same}
        if self.about:
            data["about"] = self.about
        data["results"] = [result.to_json() for result in self.results]
        for key in ("skipped", "departures", "evidence", "layers"):
            if entries := getattr(self, key):
                data[key] = [entry.to_json() for entry in entries]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Report:
        """Raises KeyError, TypeError or ValueError for what is no report of this version."""
        from isoform.validators.report.departure import Departure
        from isoform.validators.report.evidence import Evidence
        from isoform.validators.report.layers import LayerProfile

        if data["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {data['schema_version']}, this isoform reads {SCHEMA_VERSION}")
        return cls(
            [Result.from_json(entry) for entry in data["results"]],
            [Skip.from_json(entry) for entry in data.get("skipped", ())],
            [Evidence.from_json(entry) for entry in data.get("evidence", ())],
            dict(data.get("about", {})),
            [Departure.from_json(entry) for entry in data.get("departures", ())],
            [LayerProfile.from_json(entry) for entry in data.get("layers", ())],
        )

    def summary(self) -> dict[str, Any]:
        """What the manifest keeps: the verdict, and of every group the result nearest to or furthest past its limit."""
        return {
            "same": self.same,
            "worst": [result.to_json() for result in worst(self.results)],
            "skipped": [skip.to_json() for skip in self.skipped],
        }


def worst(results: Iterable[Result]) -> list[Result]:
    """For each backend, level and group the result with the most of its limit used, in order of appearance."""
    chosen: dict[tuple[str, str, str, str], Result] = {}
    for result in results:
        key = _key(result)
        if key not in chosen or use(result) > use(chosen[key]):
            chosen[key] = result
    return list(chosen.values())


def use(result: Result) -> tuple[bool, float]:
    """How bad it is: failures first, then the share of the limit."""
    share = result.value / result.limit if result.limit else (0.0 if result.value == 0 else float("inf"))
    return not result.passed, share


def tables(report: Report) -> list[Table]:
    """A table for each model."""
    models = dict.fromkeys(result.model for result in report.results)
    return [table(Report([r for r in report.results if r.model == model]), model) for model in models]


def table(report: Report, model: str = "") -> Table:
    """The worst result of every group; what to say about them is in `remarks`."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    title = Text(f"parity: {model}" if model else "parity")
    rows = Table(header_style="bold", title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    rows.padding = (0, 1, 0, 0)  # fits 80 columns
    for column in ("backend", "level", "cases", "metric"):
        rows.add_column(column, overflow="fold")
    for column in ("value", "limit", "used"):
        rows.add_column(column, justify="right", no_wrap=True)
    rows.add_column("", no_wrap=True)
    before: tuple[str, ...] = ()
    for result in worst(report.results):
        failed, share = use(result)
        here = (result.backend, result.level)
        shown = [name if here[: n + 1] != before[: n + 1] else "" for n, name in enumerate(here)]
        before = here
        rows.add_row(
            *map(Text, shown),
            Text(result.group),
            Text(result.metric),
            f"{result.value:.2g}",
            f"{result.limit:.2g}",
            f"{share:.0%}" if result.limit else "",
            Text("FAIL", "red") if failed else Text("ok", "green"),
        )
    return rows


def remarks(report: Report) -> list[str]:
    """What the table leaves out, a line each: where it failed, what was skipped and why, and notes."""
    lines = []
    for result in worst(report.results):
        if not result.passed:
            alike = {r.case for r in report.results if not r.passed and _key(r) == _key(result)}
            where = result.case if len(alike) == 1 else f"{len(alike)} cases of {result.group}, worst {result.case}"
            note = f": {result.note}" if result.note else ""
            lines.append(f"FAIL {_who(result)} {result.level}, {where}{note}")
    lines += [f"WARNING {report.about['float16']}"] if "float16" in report.about else []
    lines += [f"DEPARTS {_who(departure)}, {departure.case}: {departure}" for departure in report.departures]
    lines += [f"skipped {_who(skip)} {skip.level}, {skip.case}: {skip.reason}" for skip in report.skipped]
    noted: dict[tuple[str, str], list[str]] = {}
    for result in worst(report.results):
        if result.passed and result.note:
            noted.setdefault((_who(result), result.note), []).append(result.group)
    for (who, note), groups in noted.items():
        lines.append(f"note {who}, {', '.join(dict.fromkeys(groups))}: {note}")
    return lines


def _who(entry: Result | Skip | Departure) -> str:
    return f"{entry.model} {entry.backend}".strip()


def _key(result: Result) -> tuple[str, str, str, str]:
    return result.model, result.backend, result.level, result.group
