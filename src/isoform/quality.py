"""How close to float32 a user wants a model to be, and which forms are that close.

`exact` is float32. `high` is 16-bit floats and 8-bit integers, within the budgets of `validators.truth`. `small` is
everything with fewer bits. Each admits what the ones before it admit.
"""

from __future__ import annotations

import re

from isoform.errors import InputError

QUALITIES = ("exact", "high", "small")
PORTABLE = "-portable"
"""Ends the name of an ONNX form that keeps to standard operators: "f32-portable" is float32 as well."""

_EIGHT_BITS = re.compile(r"int8w?|q8(_0|a?w?(-\d+)?)")


def plain_dtype(dtype: str) -> str:
    """The dtype of a form without what says how its graph is written: "f32-portable" -> "f32"."""
    return dtype.removesuffix(PORTABLE)


def quality_of(dtype: str) -> str:
    """The quality of a form: f32 -> exact, bf16 -> high, q4_0 -> small."""
    plain = plain_dtype(dtype)
    if plain in ("f32", "f64"):
        return "exact"
    return "high" if plain in ("bf16", "f16") or _EIGHT_BITS.fullmatch(plain) else "small"


def admits(quality: str, dtype: str) -> bool:
    """Whether a form of this dtype is good enough for a quality."""
    return QUALITIES.index(quality_of(dtype)) <= QUALITIES.index(quality)


def default_quality(stored: str) -> str:
    """The quality that a checkpoint stored in this dtype is run at: no better than the stored weights are."""
    return quality_of(stored)


def check_quality(quality: str) -> None:
    """InputError for a quality that is none."""
    if quality not in QUALITIES:
        raise InputError(f"quality {quality!r} is not known; choose from {', '.join(QUALITIES)}")
