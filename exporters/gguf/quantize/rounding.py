"""How ggml rounds: to whole numbers and to float16, on the bits of a float32."""

from __future__ import annotations

import numpy as np
from numpy import float32, int32

from isoform.compiled import inlined

ALIGNER = float32(12582912.0)  # 1.5 * 2**23: adding it leaves the whole number, rounded to even, in the low bits
TINY = float32(2.0**-24)  # the smallest float16
ZERO = float32(0)
HALF = float32(0.5)
FAR = float32(2.0**30)


@inlined
def nearest(value: float32) -> int32:
    """The nearest whole number, ties to even. Past 2**22 it wraps, and NaN gives 0, as ggml's nearest_int does."""
    bits = float32(value + ALIGNER).view(int32)
    return int32(int32(bits & int32(0x7FFFFF)) - int32(0x400000))


@inlined
def clamp(level: int32, low: int32, high: int32) -> int32:
    return max(low, min(high, level))


@inlined
def clamp_early(value: float32, top: float32) -> float32:
    """The nearest whole number from 0 to `top`; 0 for NaN. Clamped first, so that nothing wraps."""
    value = value if value > ZERO else ZERO
    value = value if value < top else top
    return value + ALIGNER - ALIGNER


@inlined
def cut(value: float32) -> int32:
    """Without its fraction; 0 where ggml's conversion to eight bits gives 0, for NaN and what is far too large."""
    return int32(value if abs(value) < FAR else float32(0))


@inlined
def away_from_zero(value: float32) -> int32:
    """The nearest whole number, ties away from zero, as C's roundf; 0 like `cut`."""
    inside = value if abs(value) < FAR else float32(0)
    whole = int32(inside)
    rest = inside - float32(whole)
    return int32(int32(whole + int32(rest >= HALF)) - int32(rest <= -HALF))


@inlined
def to_half(value: float32) -> int:
    """The bits of the nearest float16, ties to even; what is too large becomes infinity."""
    bits = int(float32(value).view(int32))
    sign, size = (bits >> 16) & 0x8000, bits & 0x7FFFFFFF
    if size > 0x7F800000:
        return sign | 0x7E00
    if size >= 0x47800000:
        return sign | 0x7C00
    if size < 0x38800000:
        # Below the normal numbers the steps are 2**-24, which is what the last bit of 0.5 is worth.
        steps = int(float32(abs(float32(value)) + HALF).view(int32)) - 0x3F000000
        return sign | steps
    return sign | ((size - (112 << 23) + 0xFFF + ((size >> 13) & 1)) >> 13)


@inlined
def from_half(half: int) -> float32:
    """The value of a float16, given as its bits."""
    sign, exponent, fraction = (half & 0x8000) << 16, (half >> 10) & 31, half & 0x3FF
    if exponent == 0:
        value = float32(fraction) * TINY
        return -value if sign else value
    exponent = 255 if exponent == 31 else exponent + 112
    return int32(sign | exponent << 23 | fraction << 13).view(np.float32)
