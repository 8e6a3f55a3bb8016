"""What runs a model when nothing was measured: torch for a checkpoint, the first backend and form of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from isoform.quality import admits, plain_dtype, quality_of

if TYPE_CHECKING:
    from isoform.manifest import Manifest

Proof = dict[str, tuple[float, float]]
"""By metric, its value and its limit."""


def proof_of(manifest: Manifest, form: str, dtype: str) -> Proof | None:
    """What the last check of a bundle found of one form: of each metric the result nearest to its limit.

    None where its outputs were not checked.
    """
    found: Proof = {}
    levels = set()
    for result in (manifest.parity or {}).get("worst", ()):
        if (result.get("form"), result.get("dtype")) == (form, dtype):
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


def form_of(manifest: Manifest, form: str, quality: str) -> tuple[str, str]:
    """The dtype of the first form of a format that a quality admits and that is proven, and "".

    Where there is none: the first form of the format, and what is wrong with it. The format has at least one form.
    """
    dtypes = held(manifest, form)
    for dtype in dtypes:
        if admits(quality, dtype) and proven(manifest, form, dtype):
            return dtype, ""
    first = dtypes[0]
    wrong = "no check of it has passed" if admits(quality, first) else f"{first} is {quality_of(first)}"
    return first, f"the bundle holds no proven {form} form of the quality {quality} ({wrong})"


def held(manifest: Manifest, form: str) -> Sequence[str]:
    """The dtypes that a bundle holds of a format, in its order."""
    return list(dict.fromkeys(one.dtype for one in manifest.artifacts if one.format == form))
