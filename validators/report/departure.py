"""The record of where an artifact begins to compute something else."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

from isoform.validators.report.layers import ModuleShare, place, read_shares, shares_json
from isoform.validators.report.subject import Subject

INSIDE = ("in", "out", "state")
"""The sides of a place in the computation; others are stored tensors and metadata."""
NUMBERS = ("error", "limit", "row", "index", "want", "got", "neighbours", "ranges")


@dataclass(frozen=True, slots=True)
class Departure(Subject):
    """Where an artifact begins to compute something else.

    `module` is canonical (`layers.3.attn.out`), `layer` the layer around it, or "". `side` is "in" when already what
    goes into the module differs although what is before agrees, "out" when it is the module itself, "state" for a state
    among the outputs; "weight" or "bias" when its stored tensor is another, "metadata" for a key of a file.

    `index` counts (token, channel, …) of the worst value in row `row`; `neighbours` are the values (wanted, got) around
    it along the last axis. `ranges` are the smallest and largest wanted and got values. `agreed` is the last place
    before that still agrees; `profile` has every place with its share of the limit.
    """

    module: str
    side: str
    layer: str
    metric: str
    error: float
    limit: float
    row: int
    index: tuple[int, ...]
    want: float
    got: float
    neighbours: tuple[tuple[float, float], ...]
    ranges: tuple[tuple[float, float], tuple[float, float]]
    agreed: str
    profile: tuple[ModuleShare, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Numbers that are not finite become null."""
        texts = {name: getattr(self, name) for name in ("module", "side", "layer", "metric")}
        numbers = {name: _plain(getattr(self, name)) for name in NUMBERS}
        tail = {"agreed": self.agreed, "profile": shares_json(self.profile)}
        return {**self.subject_json(), **texts, **numbers, **tail}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Departure:
        def numbers(value: Any) -> Any:
            if isinstance(value, list):
                return tuple(numbers(entry) for entry in value)
            return float("nan") if value is None else value

        texts = {name: data[name] for name in ("module", "side", "layer", "metric", "agreed")}
        given = {name: numbers(data[name]) for name in NUMBERS}
        return cls(**cls.read_subject(data), **texts, **given, profile=read_shares(data["profile"]))

    @property
    def place(self) -> str:
        if self.side == "metadata":
            return self.module
        return place(self.module, self.side) if self.side in INSIDE else f"{self.module}.{self.side}"

    def __str__(self) -> str:
        """One line for the report."""
        where = (
            f"row {self.row}, [{', '.join(map(str, self.index))}]" if self.side != "weight" else f"{list(self.index)}"
        )
        (low, high), (got_low, got_high) = self.ranges
        before = f"; {self.agreed} still agrees" if self.agreed else ""
        around = " ".join(f"{got:.7g}/{want:.7g}" for want, got in self.neighbours)
        return (
            f"{self.place} departs: {self.metric} {self.error:.2g}, limit {self.limit:.2g}; worst at {where}: "
            f"{self.got:.6g} instead of {self.want:.6g} (got/wanted around: {around}); values from {got_low:.4g} to "
            f"{got_high:.4g} instead of {low:.4g} to {high:.4g}{before}"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not isfinite(value) else value
