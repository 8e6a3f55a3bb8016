"""TQ1_0 and TQ2_0: every value of a super-block of 256 is its largest magnitude times -1, 0 or 1.

The layouts are those of block_tq1_0 and block_tq2_0 in ggml-common.h. Importances do not matter to them.
"""

from __future__ import annotations

import numpy as np
from numpy import int32

from isoform.compiled import inlined, kernel
from isoform.exporters.gguf.quantize.lanes import ONE, SUPER, ZERO, Bytes, Floats, Integers
from isoform.exporters.gguf.quantize.packing import pack_pairs, put_half
from isoform.exporters.gguf.quantize.rounding import away_from_zero


def tq1_0(x: Floats, out: Bytes, importance: Floats | None) -> bool:
    return _fives(x, x.view(np.int32), out)


def tq2_0(x: Floats, out: Bytes, importance: Floats | None) -> bool:
    return _pairs(x, x.view(np.int32), out)


@inlined
def _trits(x: Floats, bits: Integers, trits: Bytes, packed: Bytes) -> bool:
    """A super-block as 0, 1 and 2, its scale into `packed`; whether it was finite."""
    size = int32(0)
    for i in range(SUPER):
        size = max(size, int32(bits[i] & int32(0x7FFFFFFF)))
    scale = int32(size).view(np.float32)
    factor = ONE / scale if scale != ZERO else ZERO
    put_half(scale, packed)
    for i in range(SUPER):
        trits[i] = int32(away_from_zero(x[i] * factor) + int32(1))
    return bool(size < int32(0x7F800000))


@kernel
def _pairs(x: Floats, bits: Integers, out: Bytes) -> bool:
    """TQ2_0: two bits each, elements 0 to 31 of each 128 lowest."""
    trits = np.empty(SUPER, np.uint8)
    for block in range(len(x) // SUPER):
        part, packed = slice(block * SUPER, (block + 1) * SUPER), out[block * 66 : block * 66 + 66]
        if not _trits(x[part], bits[part], trits, packed[64:]):
            return False
        pack_pairs(trits, packed)
    return True


@kernel
def _fives(x: Floats, bits: Integers, out: Bytes) -> bool:
    """TQ1_0: five to a byte as a fraction of 243, the first the highest digit; the last sixteen go four to a byte."""
    trits = np.empty(SUPER, np.uint8)
    for block in range(len(x) // SUPER):
        part, packed = slice(block * SUPER, (block + 1) * SUPER), out[block * 54 : block * 54 + 54]
        if not _trits(x[part], bits[part], trits, packed[52:]):
            return False
        for i in range(32):
            digits = _digits(trits[i], trits[i + 32], trits[i + 64], trits[i + 96], trits[i + 128])
            packed[i] = _fraction(digits)
        for i in range(160, 176):
            digits = _digits(trits[i], trits[i + 16], trits[i + 32], trits[i + 48], trits[i + 64])
            packed[i - 128] = _fraction(digits)
        for i in range(240, 244):
            packed[i - 192] = _fraction(_digits(trits[i], trits[i + 4], trits[i + 8], trits[i + 12], 0))
    return True


@inlined
def _digits(first: int, second: int, third: int, fourth: int, fifth: int) -> int:
    return (81 * first + 27 * second + 9 * third + 3 * fourth + fifth) & 255


@inlined
def _fraction(digits: int) -> int:
    """Rounded up, so that multiplying by three gives one digit after another back."""
    return (digits * 256 + 242) // 243
