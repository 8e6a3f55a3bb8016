"""What a user of a task would see: another mask, box, keypoint, depth, cell or span than the reference's.

Numbers may be off and the answer the same, or the other way round, so a form that gives precision up is held to a limit
of its task beside those of its numbers. Every loss is a sum over things that a row holds (masks, boxes, pixels), and
their number: 0 where nothing differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from isoform.reference.classes import class_facts
from isoform.validators.truth.distances import log_softmax

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from isoform.reference.model import Model
    from isoform.signature import Port
    from isoform.validators.cases.case import Row

    Outputs = Mapping[str, NDArray[Any]]
    Lost = Callable[[Row, Outputs, Outputs], tuple[float, int]]

CLEAR = 0.1  # of probability, or of a heat map's height: by less the reference does not prefer its own clearly
BOXES, KEYPOINTS = 20, 100  # of a picture, those with the highest scores
NEAR = 3  # pixels around a keypoint, in which another is the same
RADIUS = 4  # pixels around a keypoint, in which it has the highest score
OVERLAP = 0.5  # intersection over union of two boxes that are the same
DEPTH = 1.25  # a depth is right up to this factor


@dataclass(frozen=True, slots=True)
class TaskLoss:
    """A loss of the answers of a task: the metric of its budget, and what is lost of a row and of how many.

    `counted`: what they are. `whole`: each is lost or not, and not a part of it.
    """

    metric: str
    counted: str
    lost: Lost
    whole: bool = True


def task_loss(model: Model) -> TaskLoss | None:
    """The loss of a model's task, by the roles of its outputs; None where its numbers say it all (texts, labels)."""
    ports: dict[str | None, Port] = {port.role: port for port in reversed(model.signature.results)}
    names = {role: port.name for role, port in ports.items()}
    task = model.task.name
    if "cells" in ports:
        return TaskLoss("cells", "cells", _of_cells(names["cells"], names.get("logits")))
    if "boxes" in ports and "logits" in ports:
        scored = (
            class_facts(model.checkpoint.folder, strict=False).get("image_processor", {}).get("boxes", {}).get("scores")
        )
        if scored is None:  # nothing says what logits mean, so that no pipeline finds boxes either
            return None
        return TaskLoss("boxes", "boxes", _of_boxes(names["logits"], names["boxes"], scored == "softmax"))
    if "masks" in ports:
        classes = names.get("scores") if task == "image-segmentation" else None
        return TaskLoss("masks", "masks" if classes is None else "labels", _of_masks(names["masks"], classes), False)
    if task == "image-segmentation" and "logits" in ports:
        return TaskLoss("masks", "labels", _of_maps(names["logits"]), False)
    if "heatmaps" in ports:
        return TaskLoss("endpoints", "keypoints", _of_heatmaps(names["heatmaps"]), False)
    if "depth" in ports:
        return TaskLoss("depth", "pixels", _of_depths(names["depth"]))
    scores = ports["scores"].axes[1:] if "scores" in ports else ()
    if task == "keypoint-detection" and len(scores) == 3:
        return TaskLoss("keypoints", "keypoints", _of_keypoints(names["scores"]))
    if task == "keypoint-matching" and len(scores) == 2 and scores[0] == scores[1]:
        return TaskLoss("keypoints", "matches", _of_matches(names["scores"]))
    given = {port.name for port in model.signature.results}
    if {"start_logits", "end_logits"} <= given:
        return TaskLoss("spans", "spans", _span_lost)
    return None


# ------------------------------------------------------------------ masks
def _of_masks(masks: str, classes: str | None) -> Lost:
    """Of masks that stand alone, one for each; of those of queries with classes, the map of labels they make."""
    if classes is None:
        return lambda row, got, want: masks_lost(got[masks], want[masks])
    return lambda row, got, want: labels_lost(*(_semantic(x[classes], x[masks]) for x in (got, want)))


def _of_maps(logits: str) -> Lost:
    return lambda row, got, want: labels_lost(*(softmax(x[logits], 0) for x in (got, want)))


def _semantic(classes: NDArray[Any], masks: NDArray[Any]) -> NDArray[np.float64]:
    """The share of each label in a pixel: classes (Q, labels and none), masks (Q, H, W) -> (labels, H, W)."""
    import numpy as np

    scores = np.einsum("qc,qhw->chw", softmax(classes)[:, :-1], chance(masks))
    found: NDArray[np.float64] = scores / np.maximum(scores.sum(0), 1e-12)
    return found


def masks_lost(got: NDArray[Any], want: NDArray[Any]) -> tuple[float, int]:
    """`overlap_lost` of masks as logits; a pixel that the reference hardly decides is as it has it."""
    import numpy as np

    mine, theirs = got > 0, want > 0
    return overlap_lost(np.where(np.abs(2 * chance(want) - 1) < CLEAR, theirs, mine), theirs)


def labels_lost(got: NDArray[Any], want: NDArray[Any]) -> tuple[float, int]:
    """`overlap_lost` of each label that the reference gives to a pixel, of chances (labels, H, W); likewise."""
    import numpy as np

    mine, theirs = got.argmax(0), want.argmax(0)
    other = np.take_along_axis(want, mine[None], 0)[0]
    mine = np.where(want.max(0) - other < CLEAR, theirs, mine)
    labels = np.unique(theirs)
    return overlap_lost(np.stack([mine == n for n in labels]), np.stack([theirs == n for n in labels]))


def overlap_lost(got: NDArray[np.bool_], want: NDArray[np.bool_]) -> tuple[float, int]:
    """1 less the intersection over union, for masks (…, H, W) of which one of the two has a pixel."""
    import numpy as np

    both, either = (np.count_nonzero(x, axis=(-2, -1)) for x in (got & want, got | want))
    there = either > 0
    return float((1 - both[there] / either[there]).sum()), int(np.count_nonzero(there))


# ------------------------------------------------------------------ boxes
def _of_boxes(logits: str, boxes: str, background: bool) -> Lost:
    def found(x: Outputs) -> Detections:
        scores = softmax(x[logits])[:, :-1] if background else chance(x[logits])
        return scores, corners_of(x[boxes])

    return lambda row, got, want: boxes_lost(found(got), found(want))


Detections = tuple["NDArray[Any]", "NDArray[Any]"]
"""Scores (Q, labels) and corners (Q, 4) of the boxes of a picture."""


def boxes_lost(got: Detections, want: Detections) -> tuple[float, int]:
    """How many of the likeliest boxes of each side the other one does not have: none that overlaps them by half and has
    their label with a score that is not clearly lower."""
    import numpy as np

    lost = count = 0
    for (scores, corners), (others, places) in ((want, got), (got, want)):
        best = np.argsort(-scores, axis=None, kind="stable")[:BOXES]
        query, label = np.unravel_index(best, scores.shape)
        near = intersection_over_union(corners[query], places) >= OVERLAP
        likely = scores[query, label][:, None] - CLEAR < others[:, label].T
        lost, count = lost + int(np.count_nonzero(~(near & likely).any(1))), count + len(best)
    return float(lost), count


def corners_of(boxes: NDArray[Any]) -> NDArray[Any]:
    """Boxes (N, 4) as centre and size -> as corners."""
    import numpy as np

    centre, size = boxes[:, :2], boxes[:, 2:]
    return np.concatenate((centre - size / 2, centre + size / 2), -1)


def intersection_over_union(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """Of boxes as corners: (N, 4) and (M, 4) -> (N, M)."""
    import numpy as np

    a, b = one[:, None].astype(np.float64), other[None].astype(np.float64)
    sides = (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).clip(min=0)
    both = sides.prod(-1)
    areas = [(x[..., 2:] - x[..., :2]).clip(min=0).prod(-1) for x in (a, b)]
    either = areas[0] + areas[1] - both
    found: NDArray[np.float64] = np.divide(both, either, out=np.zeros_like(both), where=either > 0)
    return found


# ------------------------------------------------------------------ keypoints and depths
def _of_heatmaps(maps: str) -> Lost:
    return lambda row, got, want: endpoints_lost(got[maps], want[maps])


def endpoints_lost(got: NDArray[Any], want: NDArray[Any]) -> tuple[float, int]:
    """How many pixels the peaks of heat maps (K, H, W) are apart, where the reference's is clearly the higher there."""
    import numpy as np

    width = want.shape[-1]
    mine, theirs = (x.reshape(len(x), -1) for x in (got, want))
    own, other = theirs.argmax(-1), mine.argmax(-1)
    lines = np.arange(len(theirs))
    height = theirs.max(-1) - theirs.mean(-1)
    clear = theirs[lines, own] - theirs[lines, other] >= CLEAR * height
    apart = np.hypot(own // width - other // width, own % width - other % width)
    return float((apart * clear).sum()), len(lines)


def _of_depths(depths: str) -> Lost:
    return lambda row, got, want: depths_lost(got[depths], want[depths])


def depths_lost(got: NDArray[Any], want: NDArray[Any]) -> tuple[float, int]:
    """How many pixels of a depth map are off by more than a factor of `DEPTH` (1 less δ1), where there is a depth."""
    import numpy as np

    there = want > 0
    mine, theirs = got[there].astype(np.float64), want[there].astype(np.float64)
    right = (mine > 0) & (mine < DEPTH * theirs) & (theirs < DEPTH * mine)
    return float(np.count_nonzero(~right)), int(there.sum())


def _of_keypoints(scores: str) -> Lost:
    return lambda row, got, want: keypoints_lost(_peaks(got[scores], 2 * KEYPOINTS), _peaks(want[scores], KEYPOINTS))


def keypoints_lost(got: NDArray[Any], want: NDArray[Any]) -> tuple[float, int]:
    """How many keypoints (N, 2) have none of (M, 2) within `NEAR` pixels."""
    import numpy as np

    if not len(want) or not len(got):
        return float(len(want)), len(want)
    apart = np.linalg.norm(want[:, None].astype(np.float64) - got[None], axis=-1)
    return float(np.count_nonzero(apart.min(1) > NEAR)), len(want)


def _peaks(scores: NDArray[Any], count: int) -> NDArray[np.int64]:
    """The places with the highest scores around them, the highest first: scores of the pixels of cells, (N * N, rows,
    columns) -> (M, 2)."""
    import numpy as np

    side = round(len(scores) ** 0.5)
    rows, columns = scores.shape[1:]
    grid = scores.reshape(side, side, rows, columns).transpose(2, 0, 3, 1).reshape(rows * side, columns * side)
    padded = np.pad(grid, RADIUS, constant_values=-np.inf)
    around = np.lib.stride_tricks.sliding_window_view(padded, (2 * RADIUS + 1, 2 * RADIUS + 1)).max((-2, -1))
    places = np.argwhere(grid == around)
    order = np.argsort(-grid[tuple(places.T)], kind="stable")
    found: NDArray[np.int64] = places[order[:count]]
    return found


def _of_matches(scores: str) -> Lost:
    return lambda row, got, want: matches_lost(got[scores], want[scores])


def matches_lost(got: NDArray[Any], want: NDArray[Any]) -> tuple[float, int]:
    """How many pairs that the reference prefers on both sides the form does not: scores (N, M) of all pairs."""
    import numpy as np

    def matched(x: NDArray[Any]) -> NDArray[np.int64]:
        best = x.argmax(1)
        mutual = x.argmax(0)[best] == np.arange(len(x))
        return np.where(mutual, best, -1)

    mine, theirs = matched(got), matched(want)
    pairs = theirs >= 0
    return float(np.count_nonzero(mine[pairs] != theirs[pairs])), int(pairs.sum())


# ------------------------------------------------------------------ tables and texts
def _of_cells(logits: str, actions: str | None) -> Lost:
    """The cells of a table, and with them the action that is to be done, as one more."""

    def lost(row: Row, got: Outputs, want: Outputs) -> tuple[float, int]:
        import numpy as np

        if row.types.ndim < 2 or not (row.types[:, 1:3] > 0).all(1).any():
            return 0.0, 0  # no table
        inside = np.flatnonzero((row.types[:, 0] == 1) & (row.types[:, 1:3] > 0).all(1))
        _, first = np.unique(row.types[inside, 1:3], axis=0, return_index=True)  # the tokens of a cell have one logit
        mine, theirs = (chance(x[logits].reshape(-1)[inside[first]]) for x in (got, want))
        other = ((mine > 0.5) != (theirs > 0.5)) & (np.abs(mine - theirs) >= CLEAR)
        wrong, count = int(np.count_nonzero(other)), len(first)
        if actions is None:
            return float(wrong), count
        return float(wrong + clearly_other(got[actions], want[actions])), count + 1

    return lost


def softmax(logits: NDArray[Any], axis: int = -1) -> NDArray[np.float64]:
    """Probabilities over an axis, in float64."""
    import numpy as np

    found: NDArray[np.float64] = np.moveaxis(np.exp(log_softmax(np.moveaxis(logits, axis, -1))), -1, axis)
    return found


def chance(logits: NDArray[Any]) -> NDArray[np.float64]:
    """The sigmoid, in float64."""
    import numpy as np

    found: NDArray[np.float64] = 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -60, 60)))
    return found


def clearly_other(got: NDArray[Any], want: NDArray[Any]) -> int:
    """1 where logits choose another entry than the reference, and it prefers its own clearly; else 0."""
    mine, theirs = got.reshape(-1), softmax(want.reshape(-1))
    return int(theirs.max() - theirs[mine.argmax()] >= CLEAR)


def _span_lost(row: Row, got: Outputs, want: Outputs) -> tuple[float, int]:
    """1 where a beginning or an end is another, and the reference prefers its own clearly; of 1."""
    ends = ("start_logits", "end_logits")
    return float(max(clearly_other(got[name], want[name]) for name in ends)), 1
