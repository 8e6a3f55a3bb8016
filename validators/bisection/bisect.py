"""The first module of an artifact that departs from the reference, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.formats import DIGITS, FLOATS
from isoform.quality import plain_dtype
from isoform.validators.bisection.around import around
from isoform.validators.bisection.open_probe import open_probe
from isoform.validators.bisection.points import Point, recorded
from isoform.validators.bisection.probe import Inside, fitting, output_points
from isoform.validators.bisection.routed import Routes, forced
from isoform.validators.cases.case import Case, Row
from isoform.validators.report.departure import Departure
from isoform.validators.report.layers import ModuleShare, layer_of
from isoform.validators.report.subject import Subject
from isoform.validators.truth import tolerances as tolerance
from isoform.validators.truth.deviations import REASONS, deviation
from isoform.validators.truth.distances import Difference, difference
from isoform.validators.truth.reference import trimmed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from isoform.reference.model import Model

STEP = 3.0  # times the largest share of a limit that was used before


HIDES = 1e30
"""Numbers from here on hide slots of an attention. They differ by dtype, and are compared by what they hide."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the reference has at a point for one row, and how far torch itself is off there."""

    want: NDArray[np.float64]
    noise: Difference
    known: Difference | None  # with the backend's known deviation


class Insides:
    """What the reference computes at every point, for the rows of a case; `routes`: over these experts, by row."""

    def __init__(
        self, model: Model, rows: Sequence[Row], backend: str, dtype: str, routes: Sequence[Routes] | None = None
    ) -> None:
        import torch

        along: Sequence[Routes | None] = routes or [None] * len(rows)
        every = list(zip(rows, along, strict=True))
        module = model.module(torch.float64)
        exact = [self._pass(model, module, row, None, taken) for row, taken in every]
        module = model.module(getattr(torch, FLOATS.get(plain_dtype(dtype), "float32")))
        own = [self._pass(model, module, row, None, taken) for row, taken in every]
        known: list[dict[Point, Any]] | None = None
        if backend in REASONS:
            known = [self._pass(model, module, row, backend, taken) for row, taken in every]
        self.rows = [
            {
                point: Expected(
                    want,
                    difference(own[r][point], want),
                    difference(known[r][point], want) if known is not None else None,
                )
                for point, want in exact[r].items()
            }
            for r in range(len(rows))
        ]

    @staticmethod
    def _pass(model: Model, module: Any, row: Row, backend: str | None, routes: Routes | None) -> dict[Point, Any]:
        import torch

        dtype = next(p.dtype for p in module.parameters())
        inputs = [torch.from_numpy(array) for array in Case("", (row,)).inputs(model.signature).values()]
        inputs = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
        mode, table = deviation(backend) if backend else None, forced(routes) if routes else {}
        with torch.inference_mode(), mode or nullcontext(), trimmed(module, row), recorded(module, table) as found:
            outputs = module(*inputs)
        wide = torch.promote_types(dtype, torch.float32)
        for (point, slots), output in zip(output_points(model.signature).values(), outputs, strict=True):
            found.setdefault(point, output.transpose(1, slots) if output.dim() > 1 else output)
        return {point: x[0].to(wide).numpy() for point, x in found.items() if len(x) == 1}


def bisect(
    model: Model, path: Path, backend: str, dtype: str, case: Case, *, threads: int | None = None
) -> Departure | None:
    """Run a case that fails on the artifact with its insides shown, and find the first module that departs.

    None when nothing inside does: showing the insides may turn off the fusion at fault.
    """
    with closing(open_probe(model, path, backend, threads)) as probe:
        inside = list(probe.rows(case))
    subject = Subject(backend, "graph", dtype, case.group, case.name)
    return first_departure(Insides(model, case.rows, backend, dtype), inside, subject)


def first_departure(expected: Insides, inside: Sequence[Inside], subject: Subject) -> Departure | None:
    """In the reference's order of computation; a point that the artifact does not have is passed over."""
    places = shares(expected, inside, subject.dtype)
    at = first_jump([place[-1] for place in places])
    if at is None:
        return None
    point, pairs, metric, error, limit, _ = places[at]
    agreed = next((str(place[0]) for place in reversed(places[:at]) if place[-1] <= 1), "")
    found = _describe(pairs, point, subject, metric, error, limit, agreed)
    return replace(found, profile=tuple(ModuleShare(p[0].module, p[0].side, p[-1]) for p in places))


def shares(
    expected: Insides, inside: Sequence[Inside], dtype: str
) -> list[tuple[Point, list[tuple[int, NDArray[Any], Expected]], str, float, float, float]]:
    """Every point that both have: (row, got, expected) of the rows, the metric nearest to its limit, its value, the
    limit and the share that is used."""
    places = []
    for point in expected.rows[0]:
        pairs = []
        for r, (row, values) in enumerate(zip(expected.rows, inside, strict=True)):
            if point in row and point in values.values:
                got = fitting(values.values[point], row[point].want.shape, values.mask)
                if got is not None and np.abs(row[point].want).max(initial=0) < HIDES:
                    pairs.append((r, got, row[point]))
        if pairs:
            metric, error, limit = _judge(pairs, dtype)
            share = error / limit if limit else float("inf") if error else 0.0
            places.append((point, pairs, metric, error, limit, share if share == share else float("inf")))
    return places


def first_jump(shares: Sequence[float]) -> int | None:
    """The first place past its limit that stands out from all before it, or else the first past its limit.

    Rounding errors add up, and reach a limit here and there without a fault; a fault is a step.
    """
    largest = 0.0
    for n, share in enumerate(shares):
        if share > 1 and share >= STEP * largest:
            return n
        largest = max(largest, share)
    return next((n for n, share in enumerate(shares) if share > 1), None)


def _judge(pairs: Sequence[tuple[int, NDArray[Any], Expected]], dtype: str) -> tuple[str, float, float]:
    """The metric that is nearest to or furthest past its limit: its name, value and limit."""
    gaps = [difference(got, expected.want) for _, got, expected in pairs]
    if wrong := sum(gap.nonfinite for gap in gaps):
        return "nonfinite", float(wrong), 0.0
    ulp = 2.0 ** (1 - DIGITS.get(plain_dtype(dtype), 24))
    size = sum(gap.size for gap in gaps)

    def mean(values: Sequence[Difference], name: str) -> float:
        return float((sum(getattr(v, name) ** 2 * g.size for v, g in zip(values, gaps, strict=True)) / size) ** 0.5)

    noises = [expected.noise for _, _, expected in pairs]
    scale = max(gap.scale for gap in gaps)
    limit_max = tolerance.GRAPH_MAX.value * max(max(n.max_abs for n in noises), tolerance.FLOOR_MAX.value * ulp * scale)
    limit_rms = tolerance.GRAPH_RMS.value * max(
        mean(noises, "rms"), tolerance.FLOOR_RMS.value * ulp * mean(gaps, "size_rms")
    )
    known = [expected.known for _, _, expected in pairs if expected.known is not None]
    if known:
        limit_max = max(limit_max, tolerance.DEVIATION.value * max(k.max_abs for k in known))
        limit_rms = max(limit_rms, tolerance.DEVIATION.value * max(k.rms for k in known))
    both = [("max_abs", max(gap.max_abs for gap in gaps), limit_max), ("rms", mean(gaps, "rms"), limit_rms)]
    return max(both, key=lambda entry: entry[1] / entry[2] if entry[2] else float(entry[1] > 0) * float("inf"))


def _describe(
    pairs: Sequence[tuple[int, NDArray[Any], Expected]],
    point: Point,
    subject: Subject,
    metric: str,
    error: float,
    limit: float,
    agreed: str,
) -> Departure:
    import numpy as np

    def worst(got: NDArray[Any], want: NDArray[Any]) -> tuple[float, int]:
        with np.errstate(invalid="ignore"):
            gap = np.abs(got.astype(np.float64) - want).reshape(-1)
        gap = np.where(np.isfinite(gap), gap, np.inf)
        return float(gap.max(initial=0.0)), int(gap.argmax())

    row, got, want = max(((r, g, e.want) for r, g, e in pairs), key=lambda entry: worst(entry[1], entry[2])[0])
    seen = around(got, want, worst(got, want)[1])
    return Departure(
        **subject.fields(),
        module=point.module,
        side=point.side,
        layer=layer_of(point.module),
        metric=metric,
        error=error,
        limit=limit,
        row=row,
        index=seen.index,
        want=seen.want,
        got=seen.got,
        neighbours=seen.neighbours,
        ranges=seen.ranges,
        agreed=agreed,
    )
