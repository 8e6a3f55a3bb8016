"""Levels into bytes, as ggml lays them out."""

from __future__ import annotations

from numpy import float32

from isoform.compiled import inlined, kernel
from isoform.exporters.gguf.quantize.lanes import Bytes
from isoform.exporters.gguf.quantize.rounding import to_half


@kernel
def pack_nibbles(levels: Bytes, packed: Bytes) -> None:
    """The low four bits of 256: elements 0 to 31 of each 64 below, 32 to 63 above."""
    for j in range(4):
        for i in range(32):
            packed[32 * j + i] = levels[64 * j + i] & 15 | (levels[64 * j + i + 32] & 15) << 4


@kernel
def pack_pairs(levels: Bytes, packed: Bytes) -> None:
    """The low two bits of 256: elements 0 to 31 of each 128 lowest, 96 to 127 highest."""
    for j in range(2):
        for i in range(32):
            low = levels[128 * j + i] & 3 | (levels[128 * j + i + 32] & 3) << 2
            high = (levels[128 * j + i + 64] & 3) << 4 | (levels[128 * j + i + 96] & 3) << 6
            packed[32 * j + i] = low | high


@kernel
def pack_bit(levels: Bytes, bit: int, packed: Bytes) -> None:
    """One bit of 256: byte i holds those of the elements i, i + 32, i + 64 and so on, the first lowest."""
    for i in range(32):
        byte = 0
        for j in range(8):
            byte |= (levels[32 * j + i] >> bit & 1) << j
        packed[i] = byte


@inlined
def put_half(value: float32, packed: Bytes) -> None:
    half = to_half(value)
    packed[0] = half & 255
    packed[1] = half >> 8
