"""Half precision turns near ties between experts: the reference along the routes that an artifact takes.

A score that is off in its last place may choose another expert, and what comes after is another computation. Such a
case is judged anew: the reference runs the experts that the artifact's scores choose. Where those scores are off by no
more than rounding, a choice that is not the reference's own is a near tie.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from isoform.reference.names import ROUTER
from isoform.validators.bisection.bisect import Insides, shares
from isoform.validators.bisection.open_probe import open_probe
from isoform.validators.bisection.points import Point
from isoform.validators.bisection.probe import Inside, fitting, output_points
from isoform.validators.bisection.routed import Routes
from isoform.validators.cases.case import Case
from isoform.validators.report.records import Report, Result
from isoform.validators.report.subject import Subject

if TYPE_CHECKING:
    from isoform.reference.model import Model

LEVEL = "graph"


def routers(model: Model) -> list[str]:
    """The modules that score experts, in the order in which they run."""
    return [name.removesuffix(".weight") for name in model.weights if name.endswith(ROUTER)]


def along_routes(
    model: Model, path: Path, backend: str, dtype: str, report: Report, cases: Sequence[Case], threads: int | None
) -> None:
    """Judge the failing cases in `report` anew, in place.

    A case stays as it is where no choice was turned, or a clear one, or where the artifact's insides are not shown.
    """
    failed = {r.case for r in report.results if r.level == LEVEL and not r.passed and r.metric != "error"}
    if not (failed and routers(model)):
        return
    for case in (case for case in cases if case.name in failed):
        try:
            with closing(open_probe(model, path, backend, threads)) as probe:
                inside = list(probe.rows(case))
            found = list(_judged(model, backend, dtype, case, inside))
        except Exception:  # noqa: BLE001  the failure stands; the bisection says what cannot be shown
            continue
        if not found:
            continue
        old = [r for r in report.results if r.level == LEVEL and r.case == case.name]
        at = report.results.index(old[0])
        subject = Subject(backend, LEVEL, dtype, case.group, case.name)
        new = [Result.of(subject, *one) for one in found]
        passed = [r for r in old if r.passed and r.metric not in {r.metric for r in new}]
        report.results[:] = [r for r in report.results if r not in old]
        report.results[at:at] = [*new, *passed]


def _judged(
    model: Model, backend: str, dtype: str, case: Case, inside: Sequence[Inside]
) -> Iterator[tuple[str, float, float, str]]:
    """Metric, value, limit and note along the artifact's routes; nothing where those do not explain the difference."""
    import numpy as np

    names = [Point(name) for name in routers(model)]
    plan = model.skeleton()
    used = [plan.get_submodule(name.module.rpartition(".")[0]).used for name in names]
    routes: list[Routes] = []
    for row, values in zip(case.rows, inside, strict=True):
        each = []
        for point in names:
            count = plan.get_submodule(point.module).out_features
            found = fitting(values.values[point], (len(row), count), values.mask)  # type: ignore[arg-type]
            if found is None:
                return
            each.append(found)
        routes.append([np.argsort(-x, -1, kind="stable")[:, :k] for x, k in zip(each, used, strict=True)])
    expected = Insides(model, case.rows, backend, dtype, routes)
    places = {place[0]: place for place in shares(expected, inside, dtype)}
    turned = 0
    for n, point in enumerate(names):
        if places[point][-1] > 1:  # a score is off by more than rounding
            return
        for r, known in enumerate(expected.rows):
            want = known[point].want
            chosen = np.zeros(want.shape, bool)
            np.put_along_axis(chosen, np.asarray(routes[r][n]), True, -1)
            gap = np.where(chosen, -np.inf, want).max(-1) - np.where(chosen, want, np.inf).min(-1)
            turned += int(np.count_nonzero(gap > 0))
    if not turned:
        return
    note = f"along its own routes; choices of an expert that were near ties: {turned}"
    worst: dict[str, tuple[float, float]] = {}
    for point, _ in output_points(model.signature).values():
        if point in places:
            _, _, metric, value, limit, share = places[point]
            name = f"cache_{metric}" if point.side == "state" else metric
            if name not in worst or share > worst[name][0] / (worst[name][1] or 1):
                worst[name] = value, limit
    for metric, (value, limit) in worst.items():
        yield metric, value, limit, note
