"""Arrays on their way into a session, checked against its signature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from isoform.errors import InputError
from isoform.signature import Port, Signature

if TYPE_CHECKING:
    from numpy.typing import NDArray


def checked(signature: Signature, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Every input port in order: int64 or float32, contiguous. Raises InputError that names what does not fit."""
    names = [port.name for port in signature.inputs]
    missing, unknown = [n for n in names if n not in inputs], sorted(set(inputs) - set(names))
    if missing or unknown:
        wrong = f"{', '.join(missing)} missing" if missing else f"{', '.join(unknown)} unknown"
        raise InputError(f"inputs: {wrong}; this model takes {', '.join(names)}")
    arrays = {port.name: _typed(port, inputs[port.name]) for port in signature.inputs}
    sizes: dict[str, int] = {}
    for port in signature.inputs:
        shape = arrays[port.name].shape
        fits = len(shape) == len(port.axes) and all(
            size == (axis if isinstance(axis, int) else sizes.setdefault(axis, size))
            for axis, size in zip(port.axes, shape, strict=True)
        )
        if not fits:
            axes = ", ".join(str(sizes.get(axis, axis) if isinstance(axis, str) else axis) for axis in port.axes)
            raise InputError(f"{port.name} has shape {shape}, not ({axes})")
    for axis, unit in signature.units.items():
        if sizes.get(axis, unit) < unit:
            raise InputError(f"{axis} {sizes[axis]} is too small: the model reads at least {unit}")
    for relation in signature.sizes:
        expected = relation.value(sizes)
        found = sizes.get(relation.axis, expected)
        if expected is not None and found != expected and not (relation.optional and found == 0):
            spanning = next(port.name for port in signature.inputs if relation.axis in port.axes)
            terms = ", ".join(f"{term} {sizes[term]}" for term in relation.terms)
            raise InputError(
                f"{spanning}: {relation.axis} is {sizes[relation.axis]}, not {expected} ({relation}; {terms})"
            )
    return arrays


def _typed(port: Port, value: Any) -> NDArray[Any]:
    import numpy as np

    array = np.asarray(value)
    if port.dtype == "int64":
        if array.dtype.kind not in "iub":
            raise InputError(f"{port.name} has dtype {array.dtype}; it holds integers")
        return np.ascontiguousarray(array, np.int64)
    if port.dtype == "bool":
        if array.dtype.kind != "b":
            raise InputError(f"{port.name} has dtype {array.dtype}; it holds true or false")
        return np.ascontiguousarray(array)
    if array.dtype.kind not in "fiu":
        raise InputError(f"{port.name} has dtype {array.dtype}; it holds numbers")
    return np.ascontiguousarray(array, np.float32)
