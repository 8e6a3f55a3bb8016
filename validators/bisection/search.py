"""Which failing case is looked into, and what is found there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from isoform.errors import IsoformError
from isoform.validators.bisection.bisect import bisect
from isoform.validators.report.records import Report, Skip
from isoform.validators.report.subject import Subject

if TYPE_CHECKING:
    from isoform.reference.model import Model
    from isoform.validators.cases.case import Case

LEVEL = "graph"
ENOUGH = 16  # tokens


def departures(
    model: Model,
    path: Path,
    backend: str,
    dtype: str,
    report: Report,
    cases: Sequence[Case],
    *,
    threads: int | None = None,
) -> Report:
    """Bisect the simplest case that fails at the graph level in `report`; nothing when none does.

    The simplest is the first in one pass, if it has so many tokens that rounding errors even out.
    A case that could not run at all has no insides to look at.
    """
    failed = {r.case for r in report.results if r.level == LEVEL and not r.passed and r.metric != "error"}
    wrong = [case for case in cases if case.name in failed]
    if not wrong:
        return Report()
    case = min(wrong, key=lambda case: (bool(case.chunks), max(0, ENOUGH - sum(map(len, case.rows)))))
    subject = Subject(backend, "bisection", dtype, case.group, case.name)
    try:
        found = bisect(model, path, backend, dtype, case, threads=threads)
    except Exception as error:  # noqa: BLE001  it only explains a failure, which stands without it
        text = str(error) if isinstance(error, IsoformError) else f"{type(error).__name__}: {error}"
        return Report(skipped=[Skip.of(subject, " ".join(text.split()))])
    if found is None:
        reason = "no module departs while its insides are shown; the fault may be in how operations are fused"
        return Report(skipped=[Skip.of(subject, reason)])
    return Report(departures=[found])
