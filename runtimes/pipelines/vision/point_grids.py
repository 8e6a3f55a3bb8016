"""Where a picture is asked for its masks: crops of it, layer by layer, and a grid of points on each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import numpy as np
from numpy.typing import NDArray

from isoform.errors import InputError

Box = tuple[int, int, int, int]  # left, top, right, bottom


def crops(height: int, width: int, layers: int, overlap_ratio: float) -> Iterator[tuple[int, Box]]:
    """The whole picture as layer 0, then of layer n the 2**n by 2**n crops, column by column.

    The crops of layer 1 share `overlap_ratio` of the shorter edge, those of further layers less. Raises InputError for
    a picture that is too small to be cut so often.
    """
    yield 0, (0, 0, width, height)
    for layer in range(1, layers + 1):
        count = 2**layer
        shared = int(overlap_ratio * min(height, width) * (2 / count))
        wide, high = (math.ceil((shared * (count - 1) + edge) / count) for edge in (width, height))
        for column, row in product(range(count), repeat=2):
            left, top = (wide - shared) * column, (high - shared) * row
            box = left, top, min(left + wide, width), min(top + high, height)
            if box[0] >= box[2] or box[1] >= box[3]:
                raise InputError(
                    f"a picture of {width} x {height} is too small for {layers} layers of crops; lower crops_n_layers"
                )
            yield layer, box


def grid(side: int, height: int, width: int) -> NDArray[np.float64]:
    """`side` times `side` points (side**2, 2) of x and y, evenly over a picture, row by row."""
    centres = np.linspace(1 / (2 * side), 1 - 1 / (2 * side), side)
    x, y = np.meshgrid(centres, centres)
    return np.stack((x, y), -1).reshape(-1, 2) * (width, height)
