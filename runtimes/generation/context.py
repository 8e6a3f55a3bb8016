"""How long a text may be: what config.json states, and what its rotary scaling stretches that to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def stretched(config: Mapping[str, Any], stated: int) -> int | None:
    """The greatest number of positions of a model whose config.json states so many; None: there is no limit.

    The kinds of scaling "yarn" and "longrope" reach `factor` times the original length, which files state or not in
    max_position_embeddings; "dynamic" grows with the text.
    """
    settings = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(settings, Mapping):
        return stated
    nested = settings.get("full_attention")
    settings = nested if isinstance(nested, Mapping) else settings
    kind = settings.get("rope_type") or settings.get("type")
    if kind == "dynamic":
        return None
    factor = settings.get("factor")
    original = config.get("original_max_position_embeddings") or settings.get("original_max_position_embeddings")
    if kind in ("longrope", "yarn") and isinstance(factor, int | float):
        return max(stated, int(factor * (original if isinstance(original, int) else stated)))
    return stated
