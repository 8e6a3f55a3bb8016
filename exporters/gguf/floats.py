"""Values as F32, F16 and BF16, rounded to nearest even; bfloat16 is uint16 here, since NumPy has no such type.

What most exports need, bfloat16 as it is or as float16, is done by NumPy alone: numba takes longer to import. The rest
calls the compiled casts of `quantize.casts`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

STORED = {"float32": "F32", "float16": "F16", "uint16": "BF16"}
"""NumPy's name of a dtype -> ggml's."""
BITS = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}
CHUNK = 2**17  # values at a time: few enough for the cache of a core

_NORMAL = np.uint16(0x3880 << 1)  # twice the bfloat16 of float16's smallest normal number
_REBIAS = np.uint16(112 << 10 & 0xFFFF)  # what the exponents differ by, where float16 has its exponent


def convert_floats(values: NDArray[Any], kind: str, out: NDArray[np.uint8]) -> float:
    """Write `values` (n,), not stored as `kind` already, into `out`; returns the largest magnitude, or NaN."""
    stored = STORED[values.dtype.name]
    if kind == "F32":
        widen(values, out.view(np.float32))
    elif (stored, kind) == ("BF16", "F16"):
        return _bfloat_to_half(values, out.view(np.uint16))
    else:
        from isoform.exporters.gguf.quantize.casts import single_to_bfloat, single_to_half

        narrow = single_to_half if kind == "F16" else single_to_bfloat
        narrow(values.astype(np.float32, copy=False).view(np.int32), out.view(np.uint16))
    return largest(values)


def largest(values: NDArray[Any]) -> float:
    """The largest magnitude; infinite or NaN where some value is."""
    stored = STORED[values.dtype.name]
    mask = BITS[stored](2 ** (8 * values.itemsize - 1) - 1)
    parts = (values[start : start + CHUNK].view(BITS[stored]) for start in range(0, len(values), CHUNK))
    most = np.array([np.max(part & mask) for part in parts], BITS[stored]).max(initial=0)
    if stored == "BF16":
        return float(np.uint32(int(most) << 16).view(np.float32))
    return float(most.view(values.dtype))


def widen(values: NDArray[Any], out: NDArray[np.float32], *, compiled: bool = False) -> None:
    """float16, bfloat16 or float32 (n,) as float32.

    `compiled` calls numba's cast, twice as fast: for a caller that needs numba anyway.
    """
    if values.dtype == np.uint16 and compiled:
        from isoform.exporters.gguf.quantize.casts import bfloat_to_single

        bfloat_to_single(values, out.view(np.int32))
    elif values.dtype == np.uint16:
        for start in range(0, len(values), CHUNK):
            part = out[start : start + CHUNK].view(np.uint32)
            np.copyto(part, values[start : start + CHUNK])
            np.left_shift(part, np.uint32(16), out=part)
    else:
        np.copyto(out, values)


def _bfloat_to_half(values: NDArray[np.uint16], out: NDArray[np.uint16]) -> float:
    """A normal number keeps all of its bits; the few that are too small for one are looked up. Gives the largest."""
    twice, small = np.empty(CHUNK, np.uint16), np.empty(CHUNK, np.bool_)
    most = 0
    for start in range(0, len(values), CHUNK):
        part, made = values[start : start + CHUNK], out[start : start + CHUNK]
        size, tiny = twice[: len(part)], small[: len(part)]
        np.bitwise_and(part, np.uint16(0x8000), out=size)
        np.left_shift(part, np.uint16(3), out=made)
        np.subtract(made, _REBIAS, out=made)
        np.bitwise_or(made, size, out=made)
        np.add(part, part, out=size)  # the sign falls out at the top
        most = max(most, int(size.max()))
        np.less(size, _NORMAL, out=tiny)
        rare = np.flatnonzero(tiny)
        made[rare] = _halves()[part[rare]]
    return float(np.uint32(most << 15).view(np.float32))


@cache
def _halves() -> NDArray[np.uint16]:
    """The float16 of each bfloat16."""
    with np.errstate(over="ignore", invalid="ignore"):
        return (np.arange(2**16, dtype=np.uint32) << np.uint32(16)).view(np.float32).astype(np.float16).view(np.uint16)
