"""Pictures prepared for a model, with the size that they had: what places in an answer are measured in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from isoform.runtimes.preprocess.image.pictures import load_image
from isoform.runtimes.preprocess.image.processor import is_array

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Sized:
    """`pixels` (C, H, W) for the model; `size` is the height and width of the picture itself."""

    pixels: NDArray[np.float32]
    size: tuple[int, int]


def sized(processor: Any, sources: Sequence[Any], timeout: float | None = None) -> list[Sized]:
    """Each source, which `load_image` takes or an array of pixels, read once."""
    images = [source if is_array(source) else load_image(source, timeout) for source in sources]
    return [Sized(pixels, size_of(image)) for image, pixels in zip(images, processor(images), strict=True)]


def size_of(image: Any) -> tuple[int, int]:
    """Height and width of a PIL picture, or of an array (H, W), (C, H, W) or (H, W, C)."""
    if not is_array(image):
        return image.height, image.width
    shape = tuple(int(side) for side in image.shape)
    return (shape[-2], shape[-1]) if len(shape) == 2 or shape[0] in (1, 3, 4) else (shape[0], shape[1])
