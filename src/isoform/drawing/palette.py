"""Colours that colour-blind people can tell apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Colour = tuple[int, int, int]

COLOURS: tuple[Colour, ...] = (
    (213, 94, 0),
    (86, 180, 233),
    (240, 228, 66),
    (0, 158, 115),
    (204, 121, 167),
    (0, 114, 178),
    (230, 159, 0),
)
"""Okabe and Ito 2008, https://jfly.uni-koeln.de/color/, without black: neighbours in this order differ most."""

INK: Colour = (16, 16, 16)
PAPER: Colour = (255, 255, 255)
NOTHING: Colour = (128, 128, 128)
"""Where a depth is no number, and around pictures that are smaller than what is written on them."""


def colour_of(n: int) -> Colour:
    """The colour of the Nth class or thing; after seven they come again, dashed (`is_dashed`)."""
    return COLOURS[n % len(COLOURS)]


def is_dashed(n: int) -> bool:
    return n // len(COLOURS) % 2 == 1


def depth_colours(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Cividis, from dark blue (0) to yellow (1): values (H, W) -> (H, W, 3).

    Nuñez et al. 2018, https://doi.org/10.1371/journal.pone.0199239, by the polynomials of d3-scale-chromatic.
    """
    t = np.clip(np.nan_to_num(values), 0, 1)
    red = -4.54 - t * (35.34 - t * (2381.73 - t * (6402.7 - t * (7024.72 - t * 2710.57))))
    green = 32.49 + t * (170.73 + t * (52.82 - t * (131.46 - t * (176.58 - t * 67.37))))
    blue = 81.24 + t * (442.36 - t * (2482.43 - t * (6167.24 - t * (6614.94 - t * 2475.67))))
    colours: NDArray[np.uint8] = np.clip(np.round(np.stack((red, green, blue), -1)), 0, 255).astype(np.uint8)
    return colours
