"""A stored report against a new one: what passed and fails now, what is gone, and which errors have grown.

Errors below the noise of a float may double between two machines and mean nothing. So a grown error counts when it is
more than `GROWTH` times what it was, and more than `FLOOR` of its limit: below that no user is near to it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from isoform.validators.levels.preprocessing import LEVEL as INPUTS
from isoform.validators.levels.preprocessing import ORACLE_IDS, ORACLE_TEMPLATE
from isoform.validators.report.records import Report, Result
from isoform.validators.report.subject import Subject
from isoform.validators.truth.tolerances import BASELINE_FLOOR, BASELINE_GROWTH

if TYPE_CHECKING:
    from collections.abc import Iterable

LEVEL = "baseline"
Key = tuple[str, ...]


def compare_with_baseline(report: Report, stored: Report) -> Report:
    """What to add to `report`: a failed result for every regression, and one result that counts them.

    Only what both hold is compared, and what `stored` held and passed must still be there, unless it is among what was
    skipped for want of time or of a backend's ability (then it stays skipped).
    """
    now, before = _by_key(report.results), _by_key(stored.results)
    groups = {_key(r, r.group): r for r in report.results if r.level != "graph"}
    found = Report()
    for key, old in before.items():
        # Elsewhere than in the graph level a case has counts in its name, and is the only one of its group.
        new = now.get(key) or groups.get(_key(old, old.group))
        if new is None:
            if old.passed and not _covered(old, report) and not _replaced(old, report):
                found.results.append(_regression(old, 1, 0, f"{old.metric} was measured before and is gone"))
            continue
        if old.passed and not new.passed:
            note = f"{old.metric} was {old.value:.3g} of {old.limit:.3g} and is {new.value:.3g} of {new.limit:.3g}"
            found.results.append(_regression(new, 1, 0, f"passed before and fails now: {note}"))
        elif new.passed and _grown(old, new):
            ratio = new.value / old.value if old.value else float("inf")
            note = (
                f"{new.metric} grew from {old.value:.3g} to {new.value:.3g}, {new.value / new.limit:.0%} of its limit"
            )
            found.results.append(_regression(new, ratio, BASELINE_GROWTH.value, note))
    new_keys = sum(key not in before for key in now)
    note = f"{len(before)} stored, {new_keys} new" if new_keys else f"{len(before)} stored"
    count = len(found.results)
    subject = Subject("baseline", LEVEL, "", "regressions", "regressions")
    found.results.append(Result.of(subject, "regressions", count, 0, note))
    return found


def _by_key(results: Iterable[Result]) -> dict[Key, Result]:
    return {_key(r, r.case): r for r in results if r.level != LEVEL}


def _key(result: Result, name: str) -> Key:
    """`name` is the case or the group. The names of files are enough: version 1 did not say whose part they are."""
    r = result
    return r.model, r.backend, r.form, r.dtype, "" if r.level == "files" else r.part, r.level, name, r.metric


def _grown(old: Result, new: Result) -> bool:
    if not new.limit:
        return False
    return new.value > BASELINE_GROWTH.value * old.value and new.value > BASELINE_FLOOR.value * new.limit


def _covered(old: Result, report: Report) -> bool:
    """Skipped with a reason, itself or all of its group or form. What transformers says is not asked for where it is
    not installed."""
    if old.level == INPUTS and old.group in (ORACLE_IDS, ORACLE_TEMPLATE):
        return True
    return any(skip.covers(old) for skip in report.skipped)


def _replaced(old: Result, report: Report) -> bool:
    """The same case now fails in another way (an error instead of a number): that failure is the regression."""
    return any(not r.passed and r.fields() == old.fields() for r in report.results)


def _regression(result: Result, value: float, limit: float, note: str) -> Result:
    place = {"level": LEVEL, "case": f"{result.case} [{result.level} {result.metric}]"}
    return replace(result, **place, metric="regression", value=value, limit=limit, passed=False, note=note)
