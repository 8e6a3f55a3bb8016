"""Persons cut out of a picture by their boxes, each warped to the model's size, as transformers' Pillow processor does.

That one warps with SciPy's `ndimage.affine_transform`; here is the same arithmetic in NumPy, to the bit: float64 over
the four neighbours of a place, rounded half up. Huang et al. 2020, https://arxiv.org/abs/1911.07524, is where the
matrix is from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import CheckpointError, InputError, UnsupportedModel
from isoform.runtimes.preprocess.image.pictures import load_image
from isoform.runtimes.preprocess.image.processor import (
    ImageProcessor,
    channels_last,
    is_array,
    rgb_picture,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNIT = 200.0
"""Pixels that a scale of 1 stands for. The file may state another `normalize_factor`, which the way back ignores."""
ROOM = np.float64(1.25)  # how much wider and higher than its box a person is cut out


@dataclass(frozen=True, slots=True)
class Crop:
    """Where a person is: the middle (x, y) in pixels, and the width and height that are cut out, in `UNIT`s."""

    center: NDArray[np.float32]
    scale: NDArray[np.float32]


class PersonCrops(ImageProcessor):
    """A picture and boxes (x, y, width, height in its pixels) to float32 arrays (C, H, W), one a box.

    Where a picture comes without boxes, it is one person.
    """

    also: ClassVar[tuple[str, ...]] = ("do_affine_transform", "normalize_factor")

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Raises UnsupportedModel for settings with which transformers warps nothing, or loses the way back."""
        super().__init__(folder, facts)
        given = self.settings.others
        size = self.settings.size or {}
        if given.get("do_affine_transform") is False or not {"height", "width"} <= size.keys():
            raise UnsupportedModel(
                f"{folder}: its image processor does not warp persons to a height and a width; take "
                "do_affine_transform and do_resize out of the file, and state both sizes"
            )
        if given.get("normalize_factor") not in (None, UNIT):
            raise UnsupportedModel(
                f"{folder}: normalize_factor is {given['normalize_factor']!r:.60}; keypoints come back with {UNIT} only"
            )
        self.height, self.width = size["height"], size["width"]
        if min(self.height, self.width) < 2:  # between one pixel and itself there is no scale
            raise CheckpointError(
                f"{folder}: the size of its image processor is {self.width} x {self.height}; it needs 2 x 2"
            )

    def one(self, image: Any) -> NDArray[np.float32]:
        """See `ImageProcessor.one`: the whole picture as one person."""
        pixels = self.pixels(image)
        return self.warped(pixels, self.crop((0, 0, pixels.shape[1], pixels.shape[0])))

    def opened(self, source: Any, timeout: float | None = None) -> NDArray[Any]:
        """The pixels (H, W, C) of what `load_image` takes, or of an array."""
        return self.pixels(source if is_array(source) else load_image(source, timeout))

    def pixels(self, image: Any) -> NDArray[Any]:
        """(H, W, C). Raises InputError for what is no picture."""
        from PIL.Image import Image

        if isinstance(image, Image):
            found = np.asarray(rgb_picture(image) if self.settings.convert else image)
            return found if found.ndim == 3 else found[..., None]
        return channels_last(np.asarray(image), self.settings.convert)

    def crop(self, box: Sequence[float]) -> Crop:
        """The smallest rectangle of the model's shape around a box, and some room around that."""
        x, y, width, height = box
        ratio = self.width / self.height
        center = np.array([x + width * 0.5, y + height * 0.5], np.float32)
        if width > ratio * height:
            height = width / ratio
        elif width < ratio * height:
            width = height * ratio
        scale = np.array([width / UNIT, height / UNIT], np.float32)
        return Crop(center, scale * np.float32(ROOM))

    def warped(self, pixels: NDArray[Any], crop: Crop) -> NDArray[np.float32]:
        """The person of a picture (H, W, C) at the model's size, scaled and normalised: (C, height, width)."""
        rows, columns = _places(crop, self.height, self.width)
        return self.values(_interpolated(pixels, rows, columns))


def _places(crop: Crop, height: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The row of the picture for each row of the crop, likewise columns: the inverse of a matrix of float32."""
    size, wanted = crop.center * 2.0, crop.scale * UNIT
    forward = np.zeros((3, 3))
    for axis, edge in enumerate((width - 1.0, height - 1.0)):
        factor = np.float64(edge) / wanted[axis]
        forward[axis, axis] = np.float32(factor)
        forward[axis, 2] = np.float32(factor * (-0.5 * size[axis] + 0.5 * wanted[axis]))
    forward[2, 2] = 1
    back = np.linalg.inv(forward)
    columns, rows = (np.arange(count) * back[n, n] + back[n, 2] for n, count in enumerate((width, height)))
    return rows, columns


def _interpolated(pixels: NDArray[Any], rows: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[Any]:
    """(H, W, C) at places between its pixels, which are 0 beyond its edges."""
    (above, below, down), (before, after, across) = (
        _neighbours(places, count) for places, count in zip((rows, columns), pixels.shape, strict=False)
    )
    found = np.zeros((len(rows), len(columns), pixels.shape[2]))
    for row, by_row in ((above, 1 - down), (below, down)):
        for column, by_column in ((before, 1 - across), (after, across)):
            part = pixels.take(row, 0).take(column, 1) * by_row[:, None, None]
            part *= by_column[:, None]
            found += part
    found[~_inside(rows, pixels.shape[0])] = 0
    found[:, ~_inside(columns, pixels.shape[1])] = 0
    if np.issubdtype(pixels.dtype, np.integer):
        found += 0.5
    return found.astype(pixels.dtype)


def _inside(places: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    return (places >= 0) & (places <= count - 1)


def _neighbours(places: NDArray[np.float64], count: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[Any]]:
    """The pixel before each place and the one after it, and how far it is from the first."""
    first = np.floor(places)
    before = np.clip(first, 0, count - 1).astype(np.intp)
    return before, np.minimum(before + 1, count - 1), places - first


def checked_boxes(boxes: Any, height: int, width: int) -> list[tuple[float, float, float, float]]:
    """Boxes as a caller gives them for a picture of this size.

    Raises InputError for what is no list of four numbers each, a box of no size, or one beside the picture.
    """
    if isinstance(boxes, str | bytes | Mapping) or not isinstance(boxes, Iterable):
        raise InputError(f"boxes={boxes!r:.80} is no list of boxes; give [[x, y, width, height], …] in pixels")
    found = []
    for n, box in enumerate(boxes):
        try:
            x, y, wide, high = (float(value) for value in box)
        except (TypeError, ValueError):
            raise InputError(f"boxes[{n}] is {box!r:.80}; a box is [x, y, width, height] in pixels") from None
        if not np.isfinite((x, y, wide, high)).all() or wide <= 0 or high <= 0:
            raise InputError(f"boxes[{n}] is {_shown(x, y, wide, high)}; its width and height must be above 0")
        if x >= width or y >= height or x + wide <= 0 or y + high <= 0:
            raise InputError(
                f"boxes[{n}], {_shown(x, y, wide, high)}, lies beside the picture of {width} x {height}; boxes are "
                "[x, y, width, height] in its pixels"
            )
        found.append((x, y, wide, high))
    return found


def _shown(*box: float) -> str:
    return f"[{', '.join(f'{value:g}' for value in box)}]"
