"""Pictures whose values are normalised before they are resized, as transformers' torchvision processors of depth do it.

There is no Pillow processor of this kind, so the arithmetic is torch's: mean and deviation in units of a byte, and
`interpolation.bilinear`, which is none of Pillow's filters because it smooths nothing when a picture shrinks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import CheckpointError, InputError, UnsupportedModel
from isoform.runtimes.preprocess.image.interpolation import bilinear
from isoform.runtimes.preprocess.image.processor import (
    FILES,
    ImageProcessor,
    channels_last,
    rgb_picture,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

BILINEAR = 2  # Pillow's number


class NormalizedFirst(ImageProcessor):
    """Pictures (PIL, or arrays of 2 or 3 axes) to float32 arrays (C, H, W). Safe to share between threads."""

    also: ClassVar[tuple[str, ...]] = ("antialias",)

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        super().__init__(folder, facts)
        s, file = self.settings, Path(folder) / FILES[1]
        if s.others["antialias"]:
            raise UnsupportedModel(f"{file}: antialias is true; isoform resizes for this processor without it")
        if s.size is not None and s.resample != BILINEAR:
            raise UnsupportedModel(f"{file}: resample is {s.resample}; isoform resizes for this processor with 2 only")
        if s.size is not None and set(s.size) != {"height", "width"}:
            raise UnsupportedModel(f"{file}: size is {dict(s.size)}; for this processor it has height and width")
        if s.crop is not None:
            raise UnsupportedModel(f"{file}: do_center_crop is true; this processor does not crop")
        if s.scale == 0 and s.mean is not None:
            raise CheckpointError(f"{file}: rescale_factor is 0, by which nothing can be normalized")
        if s.scale is None and s.mean is None:
            raise UnsupportedModel(f"{file}: do_rescale and do_normalize are false; isoform resizes no bytes here")

    def one(self, image: Any) -> NDArray[np.float32]:
        """Raises InputError for what is no picture, or one that the settings cannot be applied to."""
        from PIL.Image import Image

        if isinstance(image, Image):
            pixels = np.asarray(rgb_picture(image) if self.settings.convert else image)
            pixels = pixels if pixels.ndim == 3 else pixels[..., None]
        else:
            pixels = channels_last(np.asarray(image), self.settings.convert)
        mean = self.settings.mean
        if isinstance(mean, tuple) and len(mean) != pixels.shape[2]:
            raise InputError(
                f"the picture has {pixels.shape[2]} channels, the processor normalises {len(mean)}; convert it to RGB"
            )
        planes = np.stack([self._plane(pixels[..., n], n) for n in range(pixels.shape[2])])
        size = self.settings.size
        if size is None:
            return planes
        self._target(*pixels.shape[:2])
        return bilinear(planes, size["height"], size["width"])

    def _plane(self, values: NDArray[Any], channel: int) -> NDArray[np.float32]:
        """One channel in float32; of bytes there are only 256, which are looked up."""
        if values.dtype == np.uint8:
            return self._bytes[channel % len(self._bytes)][values]
        return self._normalized(values.astype(np.float32), channel)

    @cached_property
    def _bytes(self) -> Sequence[NDArray[np.float32]]:
        mean, std = self.settings.mean, self.settings.std
        count = max(len(x) if isinstance(x, tuple) else 1 for x in (mean, std))
        return [self._normalized(np.arange(256, dtype=np.float32), n) for n in range(count)]

    def _normalized(self, values: NDArray[np.float32], channel: int) -> NDArray[np.float32]:
        """Every step in float32."""
        s = self.settings
        if s.mean is None:
            assert s.scale is not None
            return values * np.float32(s.scale)
        unit = np.float32(1 if s.scale is None else 1 / s.scale)
        mean, std = (np.float32(x[channel] if isinstance(x, tuple) else x) * unit for x in (s.mean, s.std))
        return (values - mean) / std
