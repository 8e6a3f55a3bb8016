"""Which failing case is looked into, and what is found there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from isoform.errors import IsoformError
from isoform.validators.bisection.bisect import bisect
from isoform.validators.report.records import Report, Skip

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
    label: str | None = None,
    threads: int | None = None,
) -> Report:
    """Bisect the simplest case that fails at the graph level in `report`; nothing when none does.

    The simplest is the first in one pass, if it has so many tokens that rounding errors even out.
    `label` is what the results call the dtype. A case that could not run at all has no insides to look at.
    """
    name = label or dtype
    failed = {r.case for r in report.results if r.level == LEVEL and not r.passed and r.metric != "error"}
    wrong = [case for case in cases if f"{name} {case.name}" in failed]
    if not wrong:
        return Report()
    case = min(wrong, key=lambda case: (bool(case.parts), max(0, ENOUGH - sum(map(len, case.rows)))))
    try:
        found = bisect(model, path, backend, dtype, case, threads=threads)
    except Exception as error:  # noqa: BLE001  it only explains a failure, which stands without it
        text = str(error) if isinstance(error, IsoformError) else f"{type(error).__name__}: {error}"
        return Report(skipped=[Skip(backend, "bisection", f"{name} {case.name}", " ".join(text.split()))])
    if found is None:
        reason = "no module departs while its insides are shown; the fault may be in how operations are fused"
        return Report(skipped=[Skip(backend, "bisection", f"{name} {case.name}", reason)])
    return Report(departures=[found])
