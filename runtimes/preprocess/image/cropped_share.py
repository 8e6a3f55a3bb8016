"""Pictures for ConvNeXt: resized to more than the model reads and cropped, or, where that is large, warped.

As in the training: below 384 pixels the shorter edge becomes the size divided by `crop_pct`, and the middle is cut out;
from 384 on the whole picture is resized to a square.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from isoform.errors import CheckpointError
from isoform.runtimes.preprocess.image.processor import FILES, ImageProcessor, ImageSettings

WARPED = 384  # pixels from which pictures are warped


class CroppedShareProcessor(ImageProcessor):
    """Pictures to float32 arrays (C, size, size)."""

    also: ClassVar[tuple[str, ...]] = ("crop_pct",)

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Raises CheckpointError for a file that is missing or wrong, UnsupportedModel for what is not known."""
        super().__init__(folder, facts)
        if self.settings.size is not None:
            file = str(Path(folder) / FILES[1])
            self.settings = _planned(self.settings, self.settings.others["crop_pct"], file)


def _planned(settings: ImageSettings, share: Any, file: str) -> ImageSettings:
    """The settings of one resizing, and of one crop below `WARPED` pixels."""
    edge = dict(settings.size or {}).get("shortest_edge")
    if not edge or settings.crop is not None:
        raise CheckpointError(f"{file}: size is {dict(settings.size or {})}; it has shortest_edge alone, without crops")
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise CheckpointError(f"{file}: crop_pct is {share!r:.40}; it is a number above 0, and 1 at most")
    if edge >= WARPED:
        return replace(settings, size={"height": edge, "width": edge})
    return replace(settings, size={"shortest_edge": int(edge / share)}, crop=(edge, edge))
