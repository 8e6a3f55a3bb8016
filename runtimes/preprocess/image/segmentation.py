"""Pictures for models that segment them: resized by both edges, to whole steps of pixels where a class does so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from isoform.errors import CheckpointError
from isoform.runtimes.preprocess.image.processor import FILES, ImageProcessor


class SegmentationProcessor(ImageProcessor):
    """Pictures (PIL, or arrays of 2 or 3 axes) to float32 arrays (C, H, W).

    The facts of its class say in which steps sides are rounded up (`divisor`), and whether `max_size` limits the longer
    edge. Pictures of several sizes are run apart, so that nothing is padded.
    """

    also: ClassVar[tuple[str, ...]] = (
        *("class_info_file", "metadata", "num_labels", "num_text", "repo_path"),  # names and texts of a training
        *("do_reduce_labels", "ignore_index", "ignore_label", "reduce_labels"),  # of the maps that a training is given
        *("max_size", "size_divisor"),
        "size_divisibility",  # of old files, which transformers does not read either
    )

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Raises CheckpointError for a file that is missing or wrong, UnsupportedModel for what is not known."""
        super().__init__(folder, facts)
        kind: Mapping[str, Any] = facts.get("image_processor", {})
        others = self.settings.others
        divisor = others.get("size_divisor")
        divisor = kind.get("divisor", 0) if divisor is None else divisor
        longest = others.get("max_size") if kind.get("limited") else None
        for name, value in (("size_divisor", divisor), ("max_size", longest)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**15):
                raise CheckpointError(f"{folder}/{FILES[1]}: {name} is {value!r:.40}, which is no number of pixels")
        size = self.settings.size
        if size is not None and longest is not None and "longest_edge" not in size:
            size = {**size, "longest_edge": longest}
        # None of these classes crops, whatever its file says.
        self.settings = replace(self.settings, size=size, crop=None)
        self.divisor = int(divisor) if kind.get("divisor") else 0

    def _target(self, height: int, width: int) -> tuple[int, int]:
        new = super()._target(height, width)
        if self.divisor:
            return tuple(-(-side // self.divisor) * self.divisor for side in new)  # type: ignore[return-value]
        return new
