"""centre_keypoints: places in pixels as distances from the middle of the picture, in a part of its longer side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

INPUTS = ("keypoints", "sizes")
OUTPUTS = ("keypoints",)


def run(inputs: Mapping[str, NDArray[Any]], *, spread: float) -> dict[str, NDArray[Any]]:
    """Shapes: keypoints (..., N, 2) of x and y, sizes (..., 2) of height and width -> keypoints (..., N, 2)."""
    import numpy as np

    keypoints = np.asarray(inputs["keypoints"], np.float32)
    sizes = np.asarray(inputs["sizes"], np.float32)[..., None, ::-1]
    unit = sizes.max(-1, keepdims=True) * np.float32(spread)
    return {"keypoints": (keypoints - sizes / 2) / unit}
