"""Weights of 4 bits back to bf16, out of the layout that torch's kernel takes on x86."""

from __future__ import annotations

import numpy as np
from numpy import float32

from isoform.compiled import reordering_kernel
from isoform.runtimes.backends.torch.kernels.memory import bytes_at, halves_at, rounded, widened


@reordering_kernel
def unpacked(packed: int, scales: int, first: int, count: int, block: int, rows: int, columns: int, out: int) -> None:
    """`count` blocks of `block` rows, from `first` on: scales (columns / 32, rows, 2) -> out (rows, columns), bf16.

    A block has for each column `block` / 2 bytes; one holds a row of the block's first half below one of its second.
    """
    size = block // 2
    groups = columns // 32
    for n in range(first, first + count):
        for group in range(groups):
            for lane in range(size):
                source = bytes_at(packed + n * size * columns + group * 32 * size + lane, 32 * size)
                for high in range(2):
                    row = n * block + high * size + lane
                    pair = halves_at(scales + 4 * (group * rows + row), 2)
                    scale, middle = widened(pair[0]), widened(pair[1])
                    target = halves_at(out + 2 * (row * columns + group * 32), 32)
                    shift = np.uint32(4 * high)
                    for i in range(32):
                        number = np.int32(np.uint32(source[i * size]) >> shift) & np.int32(15)
                        target[i] = rounded(float32(number - np.int32(8)) * scale + middle)
