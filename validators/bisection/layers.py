"""How far off every module of an artifact is: the reference's module outputs against the backend's, for one case.

A check does not need it, a reader does: whether an error comes from one place or grows from layer to layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoform.reference.model import Model
    from isoform.validators.cases.case import Case


CACHE = "present"


@dataclass(frozen=True, slots=True)
class LayerProfile:
    """Of one case on one backend: (module, share of the limit that its output uses), in order of computation."""

    backend: str
    case: str
    places: tuple[tuple[str, float], ...]
    model: str = ""

    def to_json(self) -> dict[str, Any]:
        places = [[place, float(f"{share:.4g}") if isfinite(share) else None] for place, share in self.places]
        data = {"backend": self.backend, "case": self.case, "places": places}
        return {"model": self.model, **data} if self.model else data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LayerProfile:
        places = tuple((place, float("inf") if share is None else share) for place, share in data["places"])
        return cls(data["backend"], data["case"], places, data.get("model", ""))


def shown_case(cases: Sequence[Case]) -> Case | None:
    """The most telling one in a single pass, which every backend takes."""
    from isoform.validators.check.plan import telling

    fitting = [case for case in cases if not case.parts and not case.optional]
    return max(fitting, key=telling, default=None)


def profile(model: Model, path: Path, backend: str, dtype: str, case: Case, threads: int | None = None) -> LayerProfile:
    """Run the case on the artifact with its insides shown, and on the reference."""
    from isoform.validators.bisection.departure import Insides, shares
    from isoform.validators.bisection.probes import open_probe

    with closing(open_probe(model, path, backend, threads)) as probe:
        inside = list(probe.rows(case))
    found = shares(Insides(model, case.rows, backend, dtype), inside, dtype)
    return LayerProfile(backend, f"{dtype} {case.name}", tuple((str(place[0]), place[-1]) for place in found))


def by_layer(places: Sequence[tuple[str, float]]) -> dict[str, tuple[float, str]]:
    """Layer -> the largest share in it, and whose it is; the cache is one, what is outside stands for itself."""
    from isoform.validators.bisection.departure import layer_of

    found: dict[str, tuple[float, str]] = {}
    for place, share in places:
        bare = place.removeprefix("what goes into ")
        layer = layer_of(bare) or (CACHE if bare.startswith(CACHE) else bare)
        if layer not in found or share > found[layer][0]:
            found[layer] = share, place
    return found
