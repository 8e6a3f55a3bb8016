"""The places inside a model that are looked at, by canonical names, and what the reference computes there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from isoform.validators.report.layers import Side, place

if TYPE_CHECKING:
    from torch import Tensor, nn

ROTARY = "rotary"


@dataclass(frozen=True, slots=True)
class Point:
    """What goes into a module, what comes out of it, or a state among the outputs of the graph.

    Semantic operations that are no module count as one. The n-th rotation in a layer is the module `layers.N.rotary` or
    `layers.N.rotary.n`; its output alone is a point.
    """

    module: str
    side: Side = "out"

    def __str__(self) -> str:
        return place(self.module, self.side)


def rotation(scope: str, count: int) -> Point:
    """The point of the `count`-th rotation (from 1) in a module."""
    name = ROTARY if count == 1 else f"{ROTARY}.{count}"
    return Point(f"{scope}.{name}" if scope else name)


def main_tensor(given: Any, returned: Any) -> Any:
    """The tensor that a module is about: of several returned ones the first that is as large as the one given."""
    shape = getattr(next(iter(tensors(given)), None), "shape", None)
    found = list(tensors(returned))
    return next((tensor for tensor in found if tensor.shape == shape), found[-1] if found else None)


def tensors(values: Any) -> Iterator[Any]:
    """The tensors in nested tuples and lists, in order."""
    from torch import Tensor

    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, tuple | list):
        for value in values:
            yield from tensors(value)


@contextmanager
def recorded(module: nn.Module, operations: Mapping[str, Any] = MappingProxyType({})) -> Iterator[dict[Point, Tensor]]:
    """While the block lasts, a pass of `module` fills the yielded dict, in the order of computation.

    `operations` are semantic ones that are computed otherwise.

    Inputs are kept of modules with parameters of their own, outputs of all but the outermost; only floating ones. A
    module that runs more than once is kept the first time.
    """
    from isoform.reference.modules import ops

    found: dict[Point, Tensor] = {}
    running: list[str] = [""]
    rotations: dict[str, int] = {}
    handles = []

    def keep(point: Point, tensor: Any) -> None:
        if tensor is not None and tensor.is_floating_point():
            found.setdefault(point, tensor)

    def enter(name: str, own: bool) -> Any:
        def hook(_: nn.Module, given: tuple[Any, ...]) -> None:
            running.append(name)
            if own:
                keep(Point(name, "in"), next(iter(tensors(given)), None))

        return hook

    def leave(name: str) -> Any:
        def hook(_: nn.Module, given: tuple[Any, ...], returned: Any) -> None:
            running.pop()
            keep(Point(name), main_tensor(given, returned))

        return hook

    def rotary(x: Tensor, *arguments: Any) -> Tensor:
        scope = running[-1]
        rotations[scope] = rotations.get(scope, 0) + 1
        result: Tensor = ops.OPS[ROTARY](x, *arguments)
        keep(rotation(scope, rotations[scope]), result)
        return result

    from torch import nn

    for name, part in module.named_modules():
        if name and not isinstance(part, nn.Identity):
            handles.append(part.register_forward_pre_hook(enter(name, bool(part._parameters))))
            handles.append(part.register_forward_hook(leave(name)))
    try:
        with ops.lowered_by({**ops.OPS, ROTARY: rotary, **operations}):
            yield found
    finally:
        for handle in handles:
            handle.remove()
