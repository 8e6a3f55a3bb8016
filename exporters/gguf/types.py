"""ggml's types: their numbers, their blocks, and how many bytes a tensor takes in each."""

from __future__ import annotations

from math import prod

from isoform.reference.checkpoints.gguf_file import TYPES

NUMBERS = {name: (number, block, nbytes) for number, (name, block, nbytes) in TYPES.items()}
"""By name: ggml's number, the values in a block, and the bytes of a block."""

BYTES_PER_WEIGHT = {name: nbytes / block for name, (_, block, nbytes) in NUMBERS.items()}

FLOATS = ("F32", "F16", "BF16")
"""One value to a block, rounded and nothing else."""

LARGEST_HALF = 65520  # from there on a float16 is infinite


def nbytes(shape: tuple[int, ...], kind: str) -> int:
    """The size of a tensor in ggml's type `kind`."""
    _, block, size = NUMBERS[kind]
    return prod(shape) // block * size
