"""Pictures whose sides become multiples of a number, by transformers' arithmetic for DPT's kind of models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from isoform.errors import CheckpointError, InputError, UnsupportedModel
from isoform.runtimes.preprocess.image.processor import FILES, LARGEST, ImageProcessor


class MultiplesProcessor(ImageProcessor):
    """An `ImageProcessor` whose `size` is a height and a width to come near to.

    `ensure_multiple_of` rounds both; `keep_aspect_ratio` scales both alike, by the factor that is nearer to 1.
    """

    also: ClassVar[tuple[str, ...]] = (
        *("ensure_multiple_of", "keep_aspect_ratio"),
        "size_divisor",  # of padding, which is refused
    )

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        super().__init__(folder, facts)
        found, file = self.settings.others, Path(folder) / FILES[1]
        multiple = found.get("ensure_multiple_of")
        self.multiple = 1 if multiple is None else multiple
        if type(self.multiple) is not int or self.multiple < 1:
            raise CheckpointError(f"{file}: ensure_multiple_of is {multiple!r:.40}, not a whole number from 1 on")
        self.keeps = bool(found.get("keep_aspect_ratio"))
        size = self.settings.size
        if size is not None and set(size) != {"height", "width"}:
            raise UnsupportedModel(f"{file}: size is {dict(size)}; for this processor it has height and width")

    def _target(self, height: int, width: int) -> tuple[int, int]:
        size = self.settings.size or {}
        down, across = size["height"] / height, size["width"] / width
        if self.keeps:
            down = across = across if abs(1 - across) < abs(1 - down) else down
        new = tuple(
            round(scale * side / self.multiple) * self.multiple for scale, side in ((down, height), (across, width))
        )
        if min(new) < 1 or new[0] * new[1] * 3 > LARGEST:
            raise InputError(f"a picture of {width} x {height} would become {new[1]} x {new[0]}; crop it first")
        return new[0], new[1]
