"""object-detection: what is in a picture, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import InputError, UnsupportedModel
from isoform.runtimes.pipelines.base import InputPiece
from isoform.runtimes.pipelines.scores import Labels
from isoform.runtimes.pipelines.vision.picture_encoder import SizedPictures

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.session import Session

CORNERS = ("xmin", "ymin", "xmax", "ymax")
Found = tuple["NDArray[np.float32]", "NDArray[np.int64]", "NDArray[np.int64]"]
"""Scores, labels and queries, of as many things."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectDetectionOptions:
    """The parameters of a call."""

    threshold: float = 0.5  # what scores no more than that is left out
    timeout: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.threshold, bool) or not isinstance(self.threshold, int | float):
            raise InputError(f"threshold={self.threshold!r:.60} is no number; give one from 0 to 1")


class ObjectDetection(SizedPictures):
    """`pipe("street.jpg")` -> [{"score": 0.9, "label": "cat", "box": {"xmin", "ymin", "xmax", "ymax"}}, …].

    A box is in whole pixels of the picture itself; a picture without anything gives an empty list, a list of pictures a
    list of lists.
    """

    task: ClassVar[str] = "object-detection"
    outputs: ClassVar[tuple[str, ...]] = ("logits", "pred_boxes")
    options: ClassVar[type[ObjectDetectionOptions]] = ObjectDetectionOptions
    budget: ClassVar[int | None] = 640 * 640  # a picture alone fills a core

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        super().__init__(session, folder, **parameters)
        settings: Mapping[str, Any] = self.facts.get("image_processor", {}).get("boxes", {})
        if settings.get("scores") not in SCORED:
            raise UnsupportedModel(f"{self.folder}: its image processor does not say how boxes are scored")
        self._scored, self._most = SCORED[settings["scores"]], settings.get("most")
        self.labels = Labels(self.config, self.folder)

    def feed(self, batch: list[Any], call: Any) -> dict[str, NDArray[Any]]:
        """See `OneGraph.feed`."""
        feed = super().feed(batch, call)
        if self.session.signature.takes("pixel_mask"):
            feed[self._input("pixel_mask")] = np.stack([self.pictures.mask(*piece.size) for piece in batch])
        return feed

    def finish(self, item: Any, pieces: Sequence[InputPiece], call: ObjectDetectionOptions) -> list[dict[str, Any]]:
        """See `BatchPipeline.finish`."""
        output, (height, width) = pieces[0].output, pieces[0].value.size
        scores, labels, queries = self._scored(output["logits"].astype(np.float32), self._most)
        kept = scores > np.float32(call.threshold)
        corners = corners_of(output["pred_boxes"]) * np.array([width, height, width, height], np.float32)
        return [
            {
                "score": float(score),
                "label": self.labels[int(label)],
                "box": dict(zip(CORNERS, map(int, corners[query]), strict=True)),
            }
            for score, label, query in zip(scores[kept], labels[kept], queries[kept], strict=True)
        ]


def corners_of(boxes: NDArray[Any]) -> NDArray[np.float32]:
    """Boxes (..., 4) of a centre and a size, by their corners."""
    boxes = boxes.astype(np.float32)
    centre, half = boxes[..., :2], np.float32(0.5) * boxes[..., 2:]
    return np.concatenate((centre - half, centre + half), -1)


def best_of_all(logits: NDArray[np.float32], most: int | None) -> Found:
    """The best pairs of a query and a label (Q, L), each by itself, from the best on: as many as queries, or `most`."""
    with np.errstate(over="ignore"):
        scores = np.float32(1) / (np.float32(1) + np.exp(-logits.reshape(-1)))
    best = np.argsort(-scores, kind="stable")[: len(logits) if most is None else most]
    return scores[best], best % logits.shape[1], best // logits.shape[1]


def best_of_each(logits: NDArray[np.float32], most: int | None) -> Found:
    """The best label of each query, in their order; the last of its labels is nothing (Q, L + 1)."""
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    scores = (exponents / exponents.sum(-1, keepdims=True))[:, :-1]
    return scores.max(-1), scores.argmax(-1), np.arange(len(logits))


SCORED = {"sigmoid": best_of_all, "softmax": best_of_each}
"""The fact `boxes.scores` of a processor's class -> what scores logits; `boxes.most`: how many are kept."""
