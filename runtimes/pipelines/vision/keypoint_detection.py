"""keypoint-detection: the places of a picture that are told apart from what is around them, with descriptors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.runtimes.pipelines.base import Batches, InputPiece
from isoform.runtimes.pipelines.batching import neighbours
from isoform.runtimes.pipelines.vision.picture_encoder import TOGETHER, PictureEncoder
from isoform.runtimes.preprocess.image.sized import Sized, sized
from isoform.steps import load_step

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.session import Session

SELECT = "select_keypoints"  # the host step


@dataclass(frozen=True, slots=True, kw_only=True)
class KeypointDetectionOptions:
    """The parameters of a call."""

    timeout: float | None = None


class KeypointDetection(PictureEncoder):
    """`pipe("street.jpg")` -> {"keypoints": [[x, y], …], "scores": […], "descriptors": array (n, C)}.

    Places are in the picture's own pixels, whole numbers as transformers' post-processing gives them.
    """

    task: ClassVar[str] = "keypoint-detection"
    outputs: ClassVar[tuple[str, ...]] = ("scores", "descriptors")
    options: ClassVar[type[KeypointDetectionOptions]] = KeypointDetectionOptions

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        super().__init__(session, folder, **parameters)
        self._selection: Mapping[str, Any] = self.facts["steps"][SELECT]

    def prepare(self, items: Sequence[Any], call: KeypointDetectionOptions) -> Iterable[Iterable[Sized]]:
        """See `BatchPipeline.prepare`."""
        return ([one] for one in sized(self.pictures, items, call.timeout))

    def batches(self, pieces: Iterator[InputPiece], size: int | None, count: int) -> Batches:
        """See `BatchPipeline.batches`."""
        size = size or TOGETHER
        return Batches(-(-count // size), neighbours(pieces, size, kind=lambda piece: piece.value.pixels.shape))

    def feed(self, batch: list[Sized], call: KeypointDetectionOptions) -> dict[str, NDArray[Any]]:
        """See `OneGraph.feed`."""
        return super().feed([one.pixels for one in batch], call)

    def finish(self, item: Any, pieces: Sequence[InputPiece], call: KeypointDetectionOptions) -> dict[str, Any]:
        """See `BatchPipeline.finish`."""
        (piece,) = pieces
        found = load_step(SELECT).run(piece.output, **self._selection)
        places = in_picture(found["keypoints"], piece.value.pixels.shape[-2:], piece.value.size)
        return {
            "keypoints": places.tolist(),
            "scores": found["scores"].tolist(),
            "descriptors": found["descriptors"],
        }


def in_picture(places: NDArray[np.float32], read: Sequence[int], size: Sequence[int]) -> NDArray[np.int32]:
    """Places (..., 2) of x and y in pixels of what the model read, in those of the picture: sizes are height and width.

    In float32 and cut to whole numbers, as transformers does it.
    """
    relative = places / np.array(read[::-1], np.float32)
    return (relative * np.array(size[::-1], np.float32)).astype(np.int32)
