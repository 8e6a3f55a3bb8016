"""Plant a fault, run the check on the bundle, and see whether it turned red and where it pointed."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from isoform.validators.check.bundle import check_bundle
from isoform.validators.report.departure import INSIDE
from isoform.validators.report.records import Report
from isoform.validators.report.remarks import remarks
from tests.mutants.faults import Fault
from tests.mutants.planting import Sources, make_bundle


@dataclass(frozen=True)
class Outcome:
    """`levels` are those that failed; `place` is where the first departure is, or what the first failure says.

    `lines` are what the report says about departures.
    """

    fault: Fault
    form: str
    killed: bool
    found: bool
    levels: tuple[str, ...]
    place: str
    lines: tuple[str, ...] = ()


def hunt(sources: Sources, fault: Fault, form: str) -> Outcome:
    """The fate of one mutant."""
    honest = sources.open(fault.source)
    with tempfile.TemporaryDirectory(dir=sources.folder) as folder:
        bundle = make_bundle(honest, form, fault.plant, Path(folder))
        try:
            report = check_bundle(bundle, honest, threads=1)
        except Exception as error:  # noqa: BLE001  a check that breaks off has found nothing, and is a fault of ours
            return Outcome(fault, form, False, False, ("crash",), f"{type(error).__name__}: {error}")
    looked_into = [departure.place for departure in report.departures if departure.side in INSIDE]
    places = list(dict.fromkeys([where(report), *looked_into]))
    found = all(any(re.search(pattern, place) for pattern in fault.places) for place in places)
    lines = tuple(str(remark) for remark in remarks(report) if remark.kind == "DEPARTS")
    levels = dict.fromkeys(result.level for result in report.results if not result.passed)
    return Outcome(fault, form, not report.same, found, tuple(levels), "; ".join(places), lines)


def where(report: Report) -> str:
    """The place of the first departure, or the note of the first failed result."""
    if report.departures:
        return report.departures[0].place
    return next((f"{r.where}: {r.note}" for r in report.results if not r.passed), "")


def is_honest(sources: Sources, source: str, form: str) -> Report:
    """The report about a bundle without a fault, which must be the same."""
    honest = sources.open(source)
    with tempfile.TemporaryDirectory(dir=sources.folder) as folder:
        return check_bundle(make_bundle(honest, form, None, Path(folder)), honest, threads=1)
