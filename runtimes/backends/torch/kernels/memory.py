"""Memory of tensors in a kernel: views at an address, since passing arrays takes longer than a small kernel runs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, types  # type: ignore[attr-defined]
from numba.extending import intrinsic
from numpy import float32

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


@inlined
def exponential(x: Any) -> Any:
    """e**x of a float32 to 2e-7 of itself, in operations that LLVM vectorises; 0 below -87."""
    clamped = min(max(x, float32(-87.0)), float32(88.0))
    powers = clamped * float32(1.4426950408889634)
    whole = np.floor(powers + float32(0.5))
    r = clamped - whole * float32(0.693359375) + whole * float32(2.12194440e-4)
    y = float32(1.9875691500e-4)
    y = y * r + float32(1.3981999507e-3)
    y = y * r + float32(8.3334519073e-3)
    y = y * r + float32(4.1665795894e-2)
    y = y * r + float32(1.6666665459e-1)
    y = y * r + float32(5.0000001201e-1)
    y = y * r * r + r + float32(1.0)
    scale = _as_float(np.uint32(np.int32(np.int32(whole) + np.int32(127)) << np.int32(23)))
    return y * scale if x >= float32(-87.0) else float32(0.0)
