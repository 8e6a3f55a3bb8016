"""Cases of models whose rotary angles depend on how long the text is: those in which a row is what it is alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from isoform.validators.cases.case import Case

if TYPE_CHECKING:
    from isoform.reference.model import Model


def as_alone(model: Model, cases: Iterable[Case]) -> list[Case]:
    """The cases in which every step rotates a row as one pass over that row alone does; all, for most models.

    Such a model takes the length of the longest row of a step, so a shorter row beside it has other angles, and keys
    that are cached keep those of their step. That is the model, but a reference row by row says nothing about it.
    """
    scalings = _scalings(model)
    return [case for case in cases if all(_agrees(case, scaling) for scaling in scalings)]


def _scalings(model: Model) -> list[Callable[[int], int]]:
    """For each rotation that depends on the length: what it makes of a length."""
    from isoform.reference.modules.rotary import Rope

    found = [module.settings for module in model.skeleton().modules() if isinstance(module, Rope)]
    return [rope.effective for rope in found if rope.depends_on_length]


def _agrees(case: Case, effective: Callable[[int], int]) -> bool:
    lengths = case.mask.cumsum(1)
    width = lengths.shape[1]
    stops = [width - sum(case.chunks[n:]) for n in range(1, len(case.chunks))] + [width]
    reached = [effective(int(lengths[:, stop - 1].max())) for stop in stops]
    return all(effective(len(row)) == each for row in case.rows for each in reached)
