"""What a probe is: an artifact that shows what its modules compute, by the reference's names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from isoform.errors import IsoformError
from isoform.validators.bisection.points import Point
from isoform.validators.cases.case import Case

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.signature import Signature

Values = dict[Point, list["NDArray[Any]"]]
"""Point -> the tensors that may be its value, the likeliest first; one of the right shape is taken."""


@dataclass(frozen=True)
class Inside:
    """What was computed for one row: slots (S, …) without the batch axis, of which `mask` (S,) says the real ones."""

    values: Values
    mask: NDArray[Any]


class Probe(Protocol):
    """An artifact whose insides can be seen."""

    def rows(self, case: Case) -> Iterator[Inside]:
        """Run a case; what was computed for each of its rows, in order."""
        ...

    def close(self) -> None: ...


Run = Callable[[Mapping[str, "NDArray[Any]"]], tuple[Values, Mapping[str, "NDArray[Any]"]]]
"""Inputs by port -> the values of the points with their batch axis, and the outputs by port."""


def graph_rows(run: Run, signature: Signature, case: Case) -> Iterator[Inside]:
    """The rows of a case through a graph: in one pass together, or step by step one after the other."""
    import numpy as np

    if not case.chunks:
        values, outputs = run(case.inputs(signature))
        values |= _outputs(signature, outputs)
        for r, mask in enumerate(case.mask):
            own = {point: [x[r] for x in found if len(x) == len(case.rows)] for point, found in values.items()}
            yield Inside(own, mask)
        return
    if not signature.states or not signature.takes("mask"):
        raise IsoformError("steps over encoder states are not shown; a case in one pass would be")
    past = [state.input for state in signature.states]
    present = [state.output for state in signature.states]
    for r, mask in enumerate(case.mask):
        cache = {name: array[r : r + 1] for name, array in case.inputs(signature).items() if name in past}
        steps: list[Values] = []
        for _, feed in case.steps(signature):
            values, outputs = run({**{name: array[r : r + 1] for name, array in feed.items()}, **cache})
            cache = dict(zip(past, (outputs[name] for name in present), strict=True))
            shown = _outputs(signature, outputs)
            steps.append({**values, **{point: found for point, found in shown.items() if point.side != "state"}})
        joined: Values = {}
        for point in steps[0]:
            pieces = zip(*([x[0] for x in step[point]] for step in steps), strict=False)
            joined[point] = [np.concatenate(parts) for parts in pieces if len({x.shape[1:] for x in parts}) == 1]
        joined |= {point: [found[0][0]] for point, found in shown.items() if point.side == "state"}
        yield Inside(joined, mask)


def output_points(signature: Signature) -> dict[str, tuple[Point, int]]:
    """Output port -> its point, and the axis of its slots, which is 1 but for states that have another first."""
    axes = {state.output: state.slots or 1 for state in signature.states}
    return {
        port.name: (Point(port.name, "state" if port.role == "state" else "out"), axes.get(port.name, 1))
        for port in signature.outputs
    }


def _outputs(signature: Signature, outputs: Mapping[str, NDArray[Any]]) -> Values:
    """The outputs as points, slots first after the batch: a key of a cache is (B, heads, S, D)."""
    points = output_points(signature)
    return {
        points[name][0]: [array.swapaxes(1, points[name][1]) if array.ndim > 1 else array]
        for name, array in outputs.items()
    }


def fitting(candidates: Sequence[NDArray[Any]], want: tuple[int, ...], mask: NDArray[Any]) -> NDArray[Any] | None:
    """The real slots of the first candidate that has the wanted shape, heads apart or together; None without one."""
    for found in candidates:
        padded = not mask.all()
        if found.shape == want and not (padded and len(found) == len(mask)):
            return found
        if len(found.shape) > 0 and len(found) == len(mask):
            kept = found[mask != 0]
            if kept.shape == want:
                return kept
            if want and len(kept) == want[0] and kept.size == _size(want):
                return kept.reshape(want)
    return None


def _size(shape: tuple[int, ...]) -> int:
    from math import prod

    return prod(shape)
