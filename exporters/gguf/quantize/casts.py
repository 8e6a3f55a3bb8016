"""Compiled casts between float32, float16 and bfloat16, on bits, rounded to nearest even."""

from __future__ import annotations

import numpy as np
from numpy import float32, int32
from numpy.typing import NDArray

from isoform.compiled import inlined, kernel

Shorts = NDArray[np.uint16]
Integers = NDArray[np.int32]

MAGNITUDE = int32(0x7FFFFFFF)
NORMAL = int32(0x38800000)  # float16's smallest normal number, as the bits of a float32
REBIAS = int32(112 << 23)
HALF_BITS = int32(0x3F000000)
HALF = float32(0.5)


@inlined
def _half(size: int32) -> int32:
    """The float16 of a magnitude below 65520, both as bits."""
    odd = int32(int32(size >> int32(13)) & int32(1))
    normal = int32(int32(int32(size - REBIAS) + int32(0xFFF)) + odd) >> int32(13)
    # Below the normal numbers the steps are 2**-24, which is what the last bit of 0.5 is worth.
    steps = int32(float32(int32(size).view(np.float32) + HALF).view(np.int32) - HALF_BITS)
    return int32(steps if size < NORMAL else normal)


@kernel
def single_to_half(bits: Integers, out: Shorts) -> int32:
    """float32, as its bits; gives the bits of the largest magnitude."""
    largest = int32(0)
    for i in range(len(bits)):
        size = int32(bits[i] & MAGNITUDE)
        largest = max(largest, size)
        out[i] = int32(int32(int32(bits[i] >> int32(16)) & int32(0x8000)) | _half(size))
    return largest


@kernel
def bfloat_to_single(x: Shorts, out: Integers) -> None:
    for i in range(len(x)):
        out[i] = int32(int32(x[i]) << int32(16))


@kernel
def single_to_bfloat(bits: Integers, out: Shorts) -> int32:
    """As above."""
    largest = int32(0)
    for i in range(len(bits)):
        largest = max(largest, int32(bits[i] & MAGNITUDE))
        odd = int32(int32(bits[i] >> int32(16)) & int32(1))
        out[i] = int32(int32(int32(bits[i] + int32(0x7FFF)) + odd) >> int32(16))
    return largest
