"""Segments of a picture, of the masks and class scores of queries, in the picture's own pixels.

The arithmetic is that of transformers' image processors, in float32: masks are resized before they are compared.
Axis letters: Q queries, K classes, h and w of a mask, H and W of the picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.runtimes.generation.processors import softmax
from isoform.runtimes.pipelines.scores import sigmoid
from isoform.runtimes.preprocess.image.interpolation import bilinear, bilinear_rows, smoothed

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Segment:
    """A class, its score (None where it has none) and where it is: (H, W)."""

    label: int
    score: float | None
    mask: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """`score`: what a query needs at least; `mask`: what a pixel needs to be counted for its mask before others overlap
    it; `overlap`: how much of that is left of a segment."""

    score: float
    mask: float
    overlap: float


@dataclass(frozen=True, slots=True)
class Rules:
    """How a class of image processors makes segments.

    `smooth`: masks are resized with smoothing. `scaled`: the side of a square that masks are resized to first, or 0.
    `instances`: an instance is the best query of a pixel ("classes"), or a mask of its own ("masks").
    """

    smooth: bool = False
    scaled: int = 0
    instances: str = "classes"

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> Rules:
        """Of the facts of a processor."""
        return cls(bool(facts.get("smooth")), int(facts.get("scaled", 0)), str(facts.get("instances", "classes")))

    def first(self, masks: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mask logits (Q, h, w) of the size at which they are judged."""
        return bilinear(masks, self.scaled, self.scaled) if self.scaled else masks

    def resized(self, masks: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        return (smoothed if self.smooth else bilinear)(masks, *size)


def panoptic(
    classes: NDArray[np.float32], masks: NDArray[np.float32], size: tuple[int, int], rules: Rules, least: Thresholds
) -> list[Segment]:
    """Each pixel belongs to one query, the likeliest there. Class logits (Q, K + 1), mask logits (Q, h, w)."""
    chances = softmax(classes)
    labels, scores = chances.argmax(-1), chances.max(-1)
    kept = (labels != classes.shape[-1] - 1) & (scores > np.float32(least.score))
    if not kept.any():
        return []
    found = rules.resized(_chances(rules.first(masks)[kept]), size)
    return _apart(found, scores[kept], labels[kept], least)


def instances(
    classes: NDArray[np.float32], masks: NDArray[np.float32], size: tuple[int, int], rules: Rules, least: Thresholds
) -> list[Segment]:
    """The likeliest pairs of a query and a class, as many as there are queries, best first."""
    count = classes.shape[-1] - 1
    chances = softmax(classes)[:, :-1].reshape(-1)
    best = np.argsort(-chances, kind="stable")[: len(classes)]
    scores, labels, queries = chances[best], best % count, best // count
    if rules.instances == "masks":
        return _masks(scores, labels, rules.first(masks)[queries], size, least)
    kept = scores > np.float32(least.score)
    if not kept.any():
        return []
    # As transformers has it, logits and not chances are compared here.
    return _apart(rules.resized(masks[queries[kept]], size), scores[kept], labels[kept], least)


def semantic(
    classes: NDArray[np.float32], masks: NDArray[np.float32], size: tuple[int, int], rules: Rules
) -> list[Segment]:
    """The likeliest class of each pixel, by the sum of all queries."""
    chances, found = softmax(classes)[:, :-1], _chances(rules.first(masks))
    return by_class((chances.T @ found.reshape(len(found), -1)).reshape(-1, *found.shape[1:]), size)


def _chances(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # exp of much is infinite, and 1 / infinity is the 0 that is meant
        return sigmoid(logits)


def by_class(scores: NDArray[np.float32], size: tuple[int, int]) -> list[Segment]:
    """The class with the greatest score of each pixel: (K, h, w) -> segments without scores, by class."""
    if scores.shape[1:] == size or len(scores) < 4 or sum(size) <= 128:
        labels = bilinear(scores, *size).argmax(0)
    else:
        labels = np.concatenate([_greatest(rows) for rows in bilinear_rows(scores, *size)], 0)
    return [Segment(int(label), None, labels == label) for label in np.unique(labels)]


def _greatest(scores: NDArray[np.float32]) -> NDArray[np.intp]:
    """argmax(0), the first of equal ones, without turning the array around."""
    best, labels = scores[0].copy(), np.zeros(scores.shape[1:], np.intp)
    for n in range(1, len(scores)):
        better = scores[n] > best
        np.copyto(best, scores[n], where=better)
        labels[better] = n
    return labels


def _apart(
    found: NDArray[np.float32], scores: NDArray[np.float32], labels: NDArray[np.intp], least: Thresholds
) -> list[Segment]:
    """Each pixel to the query whose mask, times its score, is greatest; a query that keeps too little is left out.

    `found` (queries, H, W) is changed.
    """
    found *= scores[:, None, None]
    owner = _greatest(found)
    segments = []
    for n, label in enumerate(labels):
        mask = owner == n
        area, before = int(mask.sum()), int((found[n] >= np.float32(least.mask)).sum())
        if area and before and float(np.float32(area) / np.float32(before)) > least.overlap:
            segments.append(Segment(int(label), round(float(scores[n]), 6), mask))
    return segments


def _masks(
    scores: NDArray[np.float32],
    labels: NDArray[np.intp],
    masks: NDArray[np.float32],
    size: tuple[int, int],
    least: Thresholds,
) -> list[Segment]:
    """Masks of their own, each judged by its own mean; where several overlap the last one is on top."""
    inside = masks > 0
    chances = _chances(masks)
    sums = [np.sum(chance[here], dtype=np.float32) for chance, here in zip(chances, inside, strict=True)]
    counts = inside.reshape(len(inside), -1).sum(1).astype(np.float32) + np.float32(1e-6)
    judged = scores * (np.array(sums, np.float32) / counts)
    rows, columns = (_nearest(old, new) for old, new in zip(masks.shape[1:], size, strict=True))
    top = np.full(size, -1, np.intp)
    chosen: list[int] = []
    for n in range(len(scores)):
        mask = inside[n][rows][:, columns]
        if mask.any() and float(judged[n]) >= least.score:
            top[mask] = len(chosen)
            chosen.append(n)
    return [Segment(int(labels[n]), round(float(judged[n]), 6), top == k) for k, n in enumerate(chosen)]


def _nearest(old: int, new: int) -> NDArray[np.intp]:
    """Of each new place the old one that torch's interpolation takes without mixing any."""
    places = np.arange(new, dtype=np.float32) * (np.float32(old) / np.float32(new))
    return np.minimum(places.astype(np.intp), old - 1)
