"""Pictures resized by their longer edge and padded to a square, so that points of theirs have a place in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import CheckpointError, InputError, UnsupportedModel
from isoform.runtimes.preprocess.image.pictures import load_image
from isoform.runtimes.preprocess.image.processor import (
    FILES,
    ImageProcessor,
    channels_last,
    from_array,
    is_array,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image


class LongestEdgeProcessor(ImageProcessor):
    """Pictures (PIL, or arrays of 2 or 3 axes) to float32 arrays (C, *padded): zeros below, and to the right.

    `padded` is the (height, width) that the model reads.
    """

    also: ClassVar[tuple[str, ...]] = (
        *("do_pad", "pad_size"),
        *("mask_pad_size", "mask_size"),  # of a training, where masks are resized too
    )

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Raises CheckpointError for a file that is missing or wrong, UnsupportedModel for what is not known."""
        super().__init__(folder, facts)
        given = self.settings.others
        if self.settings.size is None or self.settings.crop is not None or not given.get("do_pad"):
            raise UnsupportedModel(
                f"{folder}/{FILES[1]}: pictures that are not resized, not padded, or cropped are not supported here"
            )
        edge, pad = self.settings.size.get("longest_edge"), given.get("pad_size")
        if not edge or len(self.settings.size) > 1:
            raise CheckpointError(f"{folder}/{FILES[1]}: size is {dict(self.settings.size)}; it has longest_edge alone")
        if not isinstance(pad, Mapping):
            raise CheckpointError(f"{folder}/{FILES[1]}: pad_size is {pad!r:.60}; it has height and width")
        high, wide = pad.get("height"), pad.get("width")
        if (
            not isinstance(high, int)
            or not isinstance(wide, int)
            or not edge <= min(high, wide) <= max(high, wide) < 2**15
        ):
            raise CheckpointError(
                f"{folder}/{FILES[1]}: pad_size is {dict(pad)!r:.60}, which must hold the longest edge of {edge} pixels"
            )
        self.longest: int = edge
        self.padded: tuple[int, int] = (high, wide)

    def opened(self, source: Any, timeout: float | None = None) -> Image:
        """A source that `load_image` takes, or an array of bytes, as a picture in RGB. Raises InputError."""
        if not is_array(source):
            return load_image(source, timeout)
        pixels = np.asarray(source)
        if pixels.dtype != np.uint8:
            raise InputError(f"an array of {pixels.dtype} is no picture here; give bytes (uint8), 0 to 255")
        return from_array(channels_last(pixels, convert=True))

    def one(self, image: Any) -> NDArray[np.float32]:
        """Raises InputError for what is no picture, or one that the settings cannot be applied to."""
        pixels = super().one(image)
        out = np.zeros((len(pixels), *self.padded), np.float32)
        out[:, : pixels.shape[1], : pixels.shape[2]] = pixels
        return out

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) of a picture of this size inside the padded one. Raises InputError for a thin one."""
        scale = self.longest * 1.0 / max(height, width)
        new = int(height * scale + 0.5), int(width * scale + 0.5)
        if min(new) < 1:
            raise InputError(
                f"a picture of {width} x {height} would become {new[1]} x {new[0]}; crop it, so that its longer edge "
                f"is at most {2 * self.longest} times the shorter one"
            )
        return new

    def placed(self, points: NDArray[Any], height: int, width: int) -> NDArray[np.float64]:
        """Points (..., 2) of x and y on a picture of this size, where they are in the padded one."""
        new = self.resized(height, width)
        return np.asarray(points, np.float64) * (new[1] / width, new[0] / height)

    def _target(self, height: int, width: int) -> tuple[int, int]:
        return self.resized(height, width)
