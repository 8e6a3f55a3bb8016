"""What a check found: results, what was skipped and why, as JSON. Nothing is measured here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

from isoform.validators.report import version1
from isoform.validators.report.departure import Departure
from isoform.validators.report.evidence import Evidence
from isoform.validators.report.layers import LayerProfile
from isoform.validators.report.subject import Subject

SCHEMA_VERSION = 2
"""Of the JSON that a check prints (report/report.schema.json); it grows when a key changes or goes."""


@dataclass(frozen=True, slots=True)
class Result(Subject):
    """One number against its limit."""

    metric: str
    value: float
    limit: float
    passed: bool
    note: str = ""

    @classmethod
    def of(cls, subject: Subject, metric: str, value: float, limit: float, note: str = "") -> Result:
        """The result of a subject; it passes when `value` is no larger than `limit`."""
        passed = bool(value <= limit)
        return cls(**subject.fields(), metric=metric, value=value, limit=limit, passed=passed, note=note)

    def to_json(self) -> dict[str, Any]:
        """The published keys, and a note where there is one."""
        data = {
            **self.subject_json(),
            "metric": self.metric,
            "value": self.value if isfinite(self.value) else None,
            "limit": self.limit if isfinite(self.limit) else None,
            "pass": self.passed,
        }
        return data | ({"note": self.note} if self.note else {})

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Result:
        """A number that is not finite is written as null."""
        value, limit = (float("inf") if data[key] is None else data[key] for key in ("value", "limit"))
        verdict = {"passed": bool(data["pass"]), "note": data.get("note", "")}
        return cls(**cls.read_subject(data), metric=data["metric"], value=value, limit=limit, **verdict)


@dataclass(frozen=True, slots=True)
class Skip(Subject):
    """A case that was not run, or all of a group or dtype, and why."""

    reason: str

    @classmethod
    def of(cls, subject: Subject, reason: str) -> Skip:
        return cls(**subject.fields(), reason=reason)

    def to_json(self) -> dict[str, Any]:
        return {**self.subject_json(), "reason": self.reason}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Skip:
        return cls(**cls.read_subject(data), reason=data["reason"])


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

    def labelled(self, **fields: Any) -> Report:
        """The same findings, each with these fields of its subject (`model="tiny"`)."""
        return Report(
            [replace(result, **fields) for result in self.results],
            [replace(skip, **fields) for skip in self.skipped],
            [replace(evidence, **fields) for evidence in self.evidence],
            self.about,
            [replace(departure, **fields) for departure in self.departures],
            [replace(profile, **fields) for profile in self.layers],
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
        """Reads version 1 as well. Raises KeyError, TypeError or ValueError for what is no report."""
        version = data["schema_version"]
        if version == version1.SCHEMA_VERSION:
            data = version1.converted(data)
        elif version != SCHEMA_VERSION:
            raise ValueError(f"schema version {version}, this isoform reads {SCHEMA_VERSION} and 1")
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
    """For each form, part, level and group the result with the most of its limit used, in order of appearance."""
    chosen: dict[tuple[str, ...], Result] = {}
    for result in results:
        key = group_of(result)
        if key not in chosen or use(result) > use(chosen[key]):
            chosen[key] = result
    return list(chosen.values())


def use(result: Result) -> tuple[bool, float]:
    """How bad it is: failures first, then the share of the limit."""
    share = result.value / result.limit if result.limit else (0.0 if result.value == 0 else float("inf"))
    return not result.passed, share


def group_of(result: Result) -> tuple[str, ...]:
    """What results that share a line of a table have in common."""
    r = result
    return r.model, r.backend, r.form, r.dtype, r.part, r.level, r.group
