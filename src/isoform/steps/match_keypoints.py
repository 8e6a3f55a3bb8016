"""match_keypoints: the keypoints of two pictures that belong together, each the other's best.

Sarlin et al. 2020, https://arxiv.org/abs/1911.11763.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

INPUTS = ("assignment",)
OUTPUTS = ("matches", "matching_scores")


def run(inputs: Mapping[str, NDArray[Any]], *, threshold: float) -> dict[str, NDArray[Any]]:
    """Pairs whose mass is over `threshold`, and over 0.

    Shapes: assignment (B, N, N), from the first picture's keypoints to the second's -> matches (B, 2, N), for each
    keypoint of each picture the number of the other's, or -1; matching_scores (B, 2, N), 0 where there is none.
    """
    import numpy as np

    mass = np.asarray(inputs["assignment"], np.float32)
    if not mass.size:
        shape = mass.shape[0], 2, mass.shape[2]
        return {"matches": np.full(shape, -1, np.int64), "matching_scores": np.zeros(shape, np.float32)}
    forth, back = mass.argmax(2), mass.argmax(1)
    own = np.arange(mass.shape[1])
    first, second = own == _of(back, forth), own == _of(forth, back)
    scores = np.where(first, mass.max(2), np.float32(0))
    scores = np.where(scores > np.float32(threshold), scores, np.float32(0))
    others = np.where(second, _of(scores, back), np.float32(0))
    matched = first & (scores > 0)
    matches = np.where(matched, forth, -1), np.where(second & _of(matched, back), back, -1)
    return {"matches": np.stack(matches, 1), "matching_scores": np.stack((scores, others), 1)}


def _of(values: NDArray[Any], numbers: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    return np.take_along_axis(values, numbers, 1)
