"""Pictures for keypoint detectors: resized, scaled, and made gray where the settings say so; three equal channels.

The gray comes after the resizing and the scaling, in float32, as in transformers' Pillow processors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.runtimes.preprocess.image.processor import ImageProcessor

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHARES = (0.2989, 0.5870, 0.1140)
"""Of red, green and blue in what the eye finds bright, by NTSC."""


class GrayProcessor(ImageProcessor):
    """Pictures to float32 arrays (3, H, W)."""

    also: ClassVar[tuple[str, ...]] = ("do_grayscale",)

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        super().__init__(folder, facts)
        self.grays = bool(self.settings.others["do_grayscale"])

    def one(self, image: Any) -> NDArray[np.float32]:
        """See `ImageProcessor.one`. A picture of one channel gets three, and transparency is left out."""
        pixels = super().one(image)
        if len(pixels) < 3:
            return np.repeat(pixels[:1], 3, 0)
        red, green, blue = pixels[:3]
        if not self.grays or (np.array_equal(red, green) and np.array_equal(green, blue)):
            return pixels[:3]
        gray = red * SHARES[0] + green * SHARES[1] + blue * SHARES[2]
        return np.stack([gray] * 3)
