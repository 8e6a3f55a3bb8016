"""The record of how far off every module of an artifact is, and what a layer of it is as bad as."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

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


def by_layer(places: Sequence[tuple[str, float]]) -> dict[str, tuple[float, str]]:
    """Layer -> the largest share in it, and whose it is; the cache is one, what is outside stands for itself."""
    found: dict[str, tuple[float, str]] = {}
    for place, share in places:
        bare = place.removeprefix("what goes into ")
        layer = layer_of(bare) or (CACHE if bare.startswith(CACHE) else bare)
        if layer not in found or share > found[layer][0]:
            found[layer] = share, place
    return found


def place(module: str, side: str) -> str:
    """A place inside a model as a reader is told: `side` is "in" or "out" of a module."""
    return f"what goes into {module}" if side == "in" else module


def layer_of(module: str) -> str:
    """`layers.3` of `layers.3.attn.out`, or "" outside of the layers."""
    match = re.match(r"(.*?\blayers\.\d+)(?:\.|$)", module)
    return match[1] if match else ""
