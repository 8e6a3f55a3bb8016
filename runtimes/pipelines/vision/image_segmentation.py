"""image-segmentation: which pixels of a picture belong to what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import InputError, UnsupportedModel
from isoform.runtimes.pipelines.base import InputPiece
from isoform.runtimes.pipelines.scores import Labels
from isoform.runtimes.pipelines.vision import segments
from isoform.runtimes.pipelines.vision.picture_encoder import SizedPictures
from isoform.runtimes.preprocess.text.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.session import Session

SUBTASKS = ("panoptic", "instance", "semantic")
PIXELS = 2 * 640 * 640
"""Of pictures in a batch, unless the call says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSegmentationOptions:
    """The parameters of a call. `subtask`: "panoptic", "instance" or "semantic"; the first that the model can do.

    `threshold`: what a segment's score must be above. `mask_threshold`: what a pixel needs to belong to a mask before
    others overlap it; a segment that keeps `overlap_mask_area_threshold` of that, or less, is left out.
    """

    subtask: str | None = None
    threshold: float = 0.9
    mask_threshold: float = 0.5
    overlap_mask_area_threshold: float = 0.5
    timeout: float | None = None

    def __post_init__(self) -> None:
        if self.subtask is not None and self.subtask not in SUBTASKS:
            raise InputError(f"subtask={self.subtask!r:.60} is not one of {', '.join(SUBTASKS)}")
        for name in ("threshold", "mask_threshold", "overlap_mask_area_threshold"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
                raise InputError(f"{name}={value!r:.60} is no number")


@dataclass(frozen=True, slots=True)
class _Call:
    subtask: str
    least: segments.Thresholds
    task: NDArray[np.int64] | None  # the token ids of the text that names the task, (1, length)
    timeout: float | None


class ImageSegmentation(SizedPictures):
    """`pipe("street.jpg")` -> [{"score": 0.98, "label": "car", "mask": picture}, …]; a list gives a list of those.

    A mask is gray (mode L) in the picture's own size, 255 where the segment is. A semantic segment has no score (None).
    """

    task: ClassVar[str] = "image-segmentation"
    outputs: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[type[ImageSegmentationOptions]] = ImageSegmentationOptions
    budget: ClassVar[int | None] = PIXELS

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        super().__init__(session, folder, **parameters)
        self.labels = Labels(self.config, self.folder)
        found: Mapping[str, Any] | None = self.facts.get("image_processor", {}).get("segments")
        if found is None:
            raise UnsupportedModel(f"{self.folder}: its image processor does not say how masks become segments")
        self.rules = segments.Rules.read(found)
        signature = session.signature
        self.masks, self.classes = signature.output("masks"), signature.output("scores")
        self.maps = signature.output("logits")
        if (self.masks is None or self.classes is None) and self.maps is None:
            raise UnsupportedModel(
                f"{self.folder}: {self.task} needs masks with scores of classes, or logits of classes for each pixel"
            )
        self.subtasks = SUBTASKS if self.masks is not None else SUBTASKS[-1:]
        self.names = signature.port("task")
        self.tokenizer_of_tasks = None if self.names is None else TextTokenizer(self.folder, self.facts)

    def begin(self, options: ImageSegmentationOptions) -> _Call:
        """See `Pipeline.begin`."""
        subtask = options.subtask or self.subtasks[0]
        if subtask not in self.subtasks:
            raise InputError(f"subtask={subtask!r}: this model can do {', '.join(self.subtasks)}")
        least = segments.Thresholds(options.threshold, options.mask_threshold, options.overlap_mask_area_threshold)
        return _Call(subtask, least, self._named(subtask), options.timeout)

    def _named(self, subtask: str) -> NDArray[np.int64] | None:
        """The token ids of a task's text, filled up with the token of padding, as transformers' pipeline does it."""
        if self.names is None or self.tokenizer_of_tasks is None:
            return None
        length = self.names.axes[1]
        assert isinstance(length, int)
        (row,) = self.tokenizer_of_tasks.encode([f"the task is {subtask}"])
        ids = list(row.ids)
        if len(ids) > length:
            raise InputError(f"the task's text has {len(ids)} tokens, the model reads {length}; check its tokenizer")
        return np.array([[*ids, *[self.tokenizer_of_tasks.pad_id] * (length - len(ids))]], np.int64)

    def feed(self, batch: list[Any], call: _Call) -> dict[str, NDArray[Any]]:
        """See `OneGraph.feed`."""
        given = super().feed(batch, call)
        if self.names is not None and call.task is not None:
            given[self.names.name] = np.repeat(call.task, len(batch), 0)
        return given

    def finish(self, item: Any, pieces: Sequence[InputPiece], call: _Call) -> list[dict[str, Any]]:
        """See `BatchPipeline.finish`."""
        from PIL import Image

        found = self._segments(pieces[0].output, pieces[0].value.size, call)
        return [
            {
                "score": one.score,
                "label": self.labels[one.label],
                "mask": Image.fromarray(one.mask.astype(np.uint8) * np.uint8(255)),
            }
            for one in found
        ]

    def _segments(self, output: Mapping[str, Any], size: tuple[int, int], call: _Call) -> list[segments.Segment]:
        if self.masks is None or self.classes is None:
            assert self.maps is not None
            return segments.by_class(output[self.maps.name], size)
        classes, masks = output[self.classes.name], output[self.masks.name]
        if call.subtask == "semantic":
            return segments.semantic(classes, masks, size, self.rules)
        judge = segments.panoptic if call.subtask == "panoptic" else segments.instances
        return judge(classes, masks, size, self.rules, call.least)
