"""keypoint-detection: the places of a picture that are told apart from what is around them, with descriptors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.runtimes.pipelines.base import InputPiece
from isoform.runtimes.pipelines.vision.picture_encoder import SizedPictures
from isoform.steps import load_step

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.session import Session

SELECT = "select_keypoints"  # the host step


@dataclass(frozen=True, slots=True, kw_only=True)
class KeypointDetectionOptions:
    """The parameters of a call."""

    timeout: float | None = None


class KeypointDetection(SizedPictures):
    """`pipe("street.jpg")` -> {"keypoints": [[x, y], …], "scores": […], "descriptors": array (n, C)}.

    Places are in the picture's own pixels, whole numbers as transformers' post-processing gives them.
    """

    task: ClassVar[str] = "keypoint-detection"
    outputs: ClassVar[tuple[str, ...]] = ("scores", "descriptors")
    options: ClassVar[type[KeypointDetectionOptions]] = KeypointDetectionOptions

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        super().__init__(session, folder, **parameters)
        self._selection: Mapping[str, Any] = self.facts["steps"][SELECT]

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
