"""Pictures for detectors: resized within two edges, or to one size, and padded where the file states how far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import CheckpointError, InputError
from isoform.runtimes.preprocess.image.processor import FILES, ImageProcessor

if TYPE_CHECKING:
    from numpy.typing import NDArray

EDGES = ({"height", "width"}, {"shortest_edge", "longest_edge"}, {"max_height", "max_width"})
"""What a size may have."""


class DetectionProcessor(ImageProcessor):
    """Pictures (PIL, or arrays of 2 or 3 axes) to float32 arrays (C, H, W), with zeros below and to the right if any.

    transformers pads the pictures of a batch to the largest, which changes no picture alone; so a batch here is of
    pictures of one size, and only a `pad_size` of the file pads. Facts of the class: `multiple`, of which both sides
    are multiples; `longest_edge`, of a file whose size is one number; `pads`, unless the file says otherwise.
    """

    also: ClassVar[tuple[str, ...]] = (
        *("do_convert_annotations", "do_pad", "format", "max_size", "pad_and_return_pixel_mask", "pad_size"),
        "return_segmentation_masks",
    )

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Raises CheckpointError for a file that is missing or wrong, UnsupportedModel for what is not known."""
        super().__init__(folder, facts)
        kind, others = facts.get("image_processor", {}), self.settings.others
        where = f"{folder}/{FILES[1]}"
        self._multiple: int = kind.get("multiple", 1)
        size = self.settings.size
        if size is not None:
            if set(size) == {"shortest_edge"} and "longest_edge" in kind:
                size = {**size, "longest_edge": others.get("max_size") or kind["longest_edge"]}
            if set(size) not in EDGES or not all(isinstance(edge, int) and edge > 0 for edge in size.values()):
                raise CheckpointError(
                    f"{where}: size is {dict(size)}; it has height and width, or shortest_edge and longest_edge"
                )
            self.settings = replace(self.settings, size=size)
        stated = [others.get(key) for key in ("do_pad", "pad_and_return_pixel_mask")]
        pads = next((bool(value) for value in stated if value is not None), kind.get("pads", False))
        pad = others.get("pad_size")
        self.padded: tuple[int, int] | None = None
        if pads and pad is not None:
            high, wide = (pad.get("height"), pad.get("width")) if isinstance(pad, Mapping) else (None, None)
            if (
                not isinstance(high, int)
                or not isinstance(wide, int)
                or not 0 < min(high, wide) <= max(high, wide) < 2**15
            ):
                raise CheckpointError(f"{where}: pad_size is {pad!r:.60}; it has height and width")
            self.padded = high, wide

    def one(self, image: Any) -> NDArray[np.float32]:
        """Raises InputError for what is no picture, or one that the settings cannot be applied to."""
        pixels = super().one(image)
        if self.padded is None:
            return pixels
        _, height, width = pixels.shape
        if height > self.padded[0] or width > self.padded[1]:
            raise InputError(
                f"a picture of {width} x {height} pixels after resizing does not fit into the pad_size of "
                f"{self.padded[1]} x {self.padded[0]}; state a larger one in {FILES[1]}"
            )
        out = np.zeros((len(pixels), *self.padded), np.float32)
        out[:, :height, :width] = pixels
        return out

    def mask(self, height: int, width: int) -> NDArray[np.int64]:
        """Which pixels of a prepared picture, whose own size this is, are no padding: (H, W), of ones and zeros."""
        real = (height, width) if self.settings.size is None else self._target(height, width)
        mask = np.zeros(self.padded or real, np.int64)
        mask[: real[0], : real[1]] = 1
        return mask

    def _target(self, height: int, width: int) -> tuple[int, int]:
        new = super()._target(height, width)
        if self._multiple > 1 and "shortest_edge" in (self.settings.size or {}):
            new = new[0] - new[0] % self._multiple, new[1] - new[1] % self._multiple
            if min(new) < 1:
                raise InputError(
                    f"a picture of {width} x {height} has fewer than {self._multiple} pixels on a side after resizing; "
                    "crop it first"
                )
        return new
