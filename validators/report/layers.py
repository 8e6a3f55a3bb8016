"""The record of how far off every module of an artifact is, and which share of its limit a layer uses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, NamedTuple

from isoform.validators.report.subject import Subject

Side = Literal["in", "out", "state"]
"""What goes into a module, what comes out of it, or an output of the graph that is a state (a key of the cache)."""
STATES = "states"


class ModuleShare(NamedTuple):
    """One place inside a model, and the share of its limit that its error uses."""

    module: str
    side: Side
    share: float

    @property
    def place(self) -> str:
        return place(self.module, self.side)


@dataclass(frozen=True, slots=True)
class LayerProfile(Subject):
    """Of one case on one backend: every place, in order of computation."""

    places: tuple[ModuleShare, ...]

    def to_json(self) -> dict[str, Any]:
        return {**self.subject_json(), "places": shares_json(self.places)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LayerProfile:
        return cls(**cls.read_subject(data), places=read_shares(data["places"]))


def shares_json(places: Iterable[ModuleShare]) -> list[list[Any]]:
    """Lists of module, side and share; null for a share that is not finite."""
    return [[p.module, p.side, float(f"{p.share:.4g}") if isfinite(p.share) else None] for p in places]


def read_shares(data: Iterable[Sequence[Any]]) -> tuple[ModuleShare, ...]:
    return tuple(ModuleShare(name, side, float("inf") if share is None else share) for name, side, share in data)


def by_layer(places: Iterable[ModuleShare]) -> dict[str, ModuleShare]:
    """Layer -> the place in it with the largest share. The states are one layer, a module outside stands for itself."""
    found: dict[str, ModuleShare] = {}
    for one in places:
        layer = STATES if one.side == "state" else layer_of(one.module) or one.module
        if layer not in found or one.share > found[layer].share:
            found[layer] = one
    return found


def place(module: str, side: str) -> str:
    """A place inside a model as a reader is told."""
    return f"what goes into {module}" if side == "in" else module


def layer_of(module: str) -> str:
    """`layers.3` of `layers.3.attn.out`, or "" outside of the layers."""
    match = re.match(r"(.*?\blayers\.\d+)(?:\.|$)", module)
    return match[1] if match else ""
