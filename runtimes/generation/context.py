"""How long a text may be: what config.json states, and what its rotary scaling stretches that to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def stretched(config: Mapping[str, Any], stated: int) -> int | None:
    """The greatest number of positions of a model whose config.json states so many; None: there is no limit.

    The kinds of scaling "yarn" and "longrope" reach `factor` times the original length, which files state or not in
    max_position_embeddings; "dynamic" grows with the text.
    """
    settings = _scaling(config)
    kind = settings.get("rope_type") or settings.get("type")
    if kind == "dynamic":
        return None
    factor = settings.get("factor")
    original = config.get("original_max_position_embeddings") or settings.get("original_max_position_embeddings")
    if kind in ("longrope", "yarn") and isinstance(factor, int | float):
        return max(stated, int(factor * (original if isinstance(original, int) else stated)))
    return stated


def turning_point(config: Mapping[str, Any]) -> int | None:
    """The length of a text beyond which the angles of all its positions depend on its length; None: they never do.

    Keys that were cached for a shorter text are rotated otherwise than those of the same text read at once.
    """
    settings = _scaling(config)
    kind = settings.get("rope_type") or settings.get("type")
    original = config.get("original_max_position_embeddings") or settings.get("original_max_position_embeddings")
    point = original or config.get("max_position_embeddings")
    return point if kind in ("dynamic", "longrope") and isinstance(point, int) else None


def _scaling(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of rotary scaling, those of the layers that see all where there are several."""
    settings = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(settings, Mapping):
        return {}
    nested = settings.get("full_attention")
    return nested if isinstance(nested, Mapping) else settings
