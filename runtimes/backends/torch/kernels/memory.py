"""Memory of tensors in a kernel: views at an address, since passing arrays takes longer than a small kernel runs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, types  # type: ignore[attr-defined]
from numba.extending import intrinsic

from isoform.compiled import inlined


def _pointer(element: Any) -> Any:
    @intrinsic
    def pointer(context: Any, address: Any) -> Any:
        kind: Any = types.CPointer(element)  # type: ignore[no-untyped-call]

        def body(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(kind))

        return kind(types.int64), body

    return pointer


_bytes_at, _halves_at, _floats_at = _pointer(types.uint8), _pointer(types.uint16), _pointer(types.float32)


@inlined
def bytes_at(address: int, count: int) -> Any:
    return carray(_bytes_at(address), count)


@inlined
def halves_at(address: int, count: int) -> Any:
    """bf16 numbers, by their bits."""
    return carray(_halves_at(address), count)


@inlined
def floats_at(address: int, count: int) -> Any:
    return carray(_floats_at(address), count)


def _bitcast(source: Any, target: Any) -> Any:
    @intrinsic
    def cast(context: Any, number: Any) -> Any:
        def body(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], context.get_value_type(target))

        return target(source), body

    return cast


_as_float, _as_bits = _bitcast(types.uint32, types.float32), _bitcast(types.float32, types.uint32)


@inlined
def widened(bits: Any) -> Any:
    """bf16 by its bits -> float32."""
    return _as_float(np.uint32(np.uint32(bits) << np.uint32(16)))


@inlined
def rounded(number: Any) -> Any:
    """float32 -> the bits of the nearest bf16, ties to even; of a NaN some NaN."""
    bits = _as_bits(number)
    bits = np.uint32(bits + np.uint32(0x7FFF) + np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1)))
    return np.uint16(bits >> np.uint32(16))
