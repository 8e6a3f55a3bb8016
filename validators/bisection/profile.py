"""How far off every module of an artifact is: the reference's module outputs against the backend's, for one case.

A check does not need it, a reader does: whether an error comes from one place or grows from layer to layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from isoform.validators.bisection.bisect import Insides, shares
from isoform.validators.bisection.open_probe import open_probe
from isoform.validators.check.plan import telling
from isoform.validators.report.layers import LayerProfile, ModuleShare

if TYPE_CHECKING:
    from isoform.reference.model import Model
    from isoform.validators.cases.case import Case


def shown_case(cases: Sequence[Case]) -> Case | None:
    """The most telling one in a single pass, which every backend takes."""
    fitting = [case for case in cases if not case.chunks and not case.optional]
    return max(fitting, key=telling, default=None)


def profile(model: Model, path: Path, backend: str, dtype: str, case: Case, threads: int | None = None) -> LayerProfile:
    """Run the case on the artifact with its insides shown, and on the reference."""
    with closing(open_probe(model, path, backend, threads)) as probe:
        inside = list(probe.rows(case))
    found = shares(Insides(model, case.rows, backend, dtype), inside, dtype)
    places = tuple(ModuleShare(place[0].module, place[0].side, place[-1]) for place in found)
    return LayerProfile(backend, "layers", dtype, case.group, case.name, places)
