"""What runs a model when nothing was measured: torch for a checkpoint, the first backend and form of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from isoform.formats import CHECKED_ON, FORMAT_OF, STANDARD
from isoform.quality import PORTABLE, admits, plain_dtype, quality_of

if TYPE_CHECKING:
    from isoform.manifest import Manifest

Proof = dict[str, tuple[float, float]]
"""By metric, its value and its limit."""


def proof_of(manifest: Manifest, form: str, dtype: str, backend: str = "") -> Proof | None:
    """What the last check of a bundle found of one form: of each metric the result nearest to its limit.

    Without a `backend`, on the one that the format is checked on.

    None where its outputs were not checked.
    """
    found: Proof = {}
    levels = set()
    runner = backend or CHECKED_ON[form]
    for result in (manifest.parity or {}).get("worst", ()):
        ran = result["level"] in ("graph", "deployment")
        if (result.get("form"), result.get("dtype")) == (form, dtype) and not (ran and result["backend"] != runner):
            levels.add(result["level"])
            value, limit = (float("inf") if result[key] is None else float(result[key]) for key in ("value", "limit"))
            name = str(result["metric"])
            if name not in found or _share(value, limit) > _share(*found[name]):
                found[name] = value, limit
    return found if levels & {"graph", "deployment"} else None


def _share(value: float, limit: float) -> float:
    return value / limit if limit else (float("inf") if value > 0 else 0.0)


def proven(manifest: Manifest, form: str, dtype: str) -> bool:
    """Whether a form is float32, or passed the last check of its bundle."""
    proof = proof_of(manifest, form, dtype)
    return plain_dtype(dtype) == "f32" or (proof is not None and all(value <= limit for value, limit in proof.values()))


def form_of(manifest: Manifest, backend: str, quality: str) -> tuple[str, str]:
    """The dtype of the first form for a backend that a quality admits and that is proven, and "".

    Where there is none: the first form, and what is wrong with it. The backend reads at least one form of the bundle.
    A backend of standard operators prefers portable forms, and others those that are not.
    """
    form = FORMAT_OF[backend]
    dtypes = held(manifest, form)
    places = {plain_dtype(name): n for n, name in reversed(list(enumerate(dtypes)))}
    portable_first = backend in STANDARD
    dtypes = sorted(dtypes, key=lambda name: (places[plain_dtype(name)], name.endswith(PORTABLE) != portable_first))
    for dtype in dtypes:
        if admits(quality, dtype) and proven(manifest, form, dtype):
            return dtype, ""
    first = dtypes[0]
    wrong = "no check of it has passed" if admits(quality, first) else f"{first} is {quality_of(first)}"
    return first, f"the bundle holds no proven {form} form of the quality {quality} ({wrong})"


def held(manifest: Manifest, form: str) -> Sequence[str]:
    """The dtypes that a bundle holds of a format, in its order."""
    return list(dict.fromkeys(one.dtype for one in manifest.artifacts if one.format == form))
