"""Huge pages under the weights, where Linux has them.

A decoder reads all weights for every token, and memory in pages of 4 KiB costs a look-up for each: with pages of 2 MiB
a token takes about a tenth less time. Allocators do not ask for them, so that it is asked for afterwards: madvise(2),
MADV_HUGEPAGE and MADV_COLLAPSE. Both are hints; nothing happens where they are not known or not wanted.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from pathlib import Path
from time import monotonic

import numpy as np

Region = tuple[int, int]  # addresses

PAGE = 2**21
LARGEST_IN_HEAP = 2**25  # bytes, with what the allocator adds: M_MMAP_THRESHOLD goes no further
AT_ONCE = 32 * PAGE  # every call waits for all processors first
_HUGEPAGE, _COLLAPSE = 14, 25
_SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_MAPS = Path("/proc/self/maps")


def gather() -> None:
    """Have weights of up to 32 MB lie side by side, where they fill huge pages: before they are read.

    glibc maps a block of 128 KiB or more on its own, between the libraries wherever there is room; once one was freed,
    blocks up to its size come from the heap (mallopt(3), M_MMAP_THRESHOLD). Elsewhere this changes nothing.
    """
    np.empty(LARGEST_IN_HEAP - 2**13, np.uint8)  # freed at once, never touched


def regions() -> set[Region]:
    """Where this process has memory of its own that may be written, in parts of a huge page or more."""
    if sys.platform != "linux" or not _MAPS.exists():
        return set()
    found = set()
    for line in _MAPS.read_text().splitlines():
        addresses, permissions, _, _, inode, *_ = line.split(None, 5)
        start, end = (int(address, 16) for address in addresses.split("-"))
        if permissions == "rw-p" and inode == "0" and end - start >= PAGE:
            found.add((start, end))
    return found


def ask(wanted: Iterable[Region], seconds: float) -> set[Region]:
    """Ask for huge pages in these regions, the largest first; the kernel may copy for so long.

    Returns what there was no time for, to be asked for another time.
    """
    if sys.platform != "linux" or not _SWITCH.exists() or "[never]" in _SWITCH.read_text():
        return set()
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
    deadline = monotonic() + seconds
    left = sorted(wanted, key=lambda region: region[0] - region[1])
    while left:
        start, end = left.pop(0)
        first, last = -(-start // PAGE) * PAGE, end // PAGE * PAGE
        for at in range(first, last, AT_ONCE):
            if monotonic() > deadline:
                return {(at, last), *left}
            size = min(AT_ONCE, last - at)
            madvise(at, size, _HUGEPAGE)
            madvise(at, size, _COLLAPSE)
    return set()
