"""Answers as COCO's JSON: pictures, annotations with boxes, masks and keypoints, categories.

Lin et al. 2014, https://cocodataset.org/#format-data. Masks are uncompressed RLE, whose counts go down the columns and
begin with the pixels outside; each annotation has its score, and an answer about a page its text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.drawing import answers
from isoform.drawing.marks import Found, Subject
from isoform.drawing.skeleton import JOINTS, LIMBS
from isoform.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

THINGS: dict[str, Callable[[Any, Subject], Iterable[Found]]] = {
    "document-question-answering": lambda answer, subject: (found for found, _ in answers.answered(answer, subject)),
    "image-segmentation": answers.segmented,
    "keypoint-detection": answers.pointed,
    "mask-generation": answers.masked,
    "object-detection": answers.detected,
    "pose-estimation": answers.posed,
}
"""Task -> the things in its answer. A depth or a match is none."""


def check_task(task: str) -> None:
    """InputError for a task whose answers COCO's JSON has no place for."""
    if task not in THINGS:
        raise InputError(f"COCO's JSON has no place for the answers of {task}; it has for {', '.join(THINGS)}")


def coco(task: str, given: Sequence[tuple[str, Subject, Any]]) -> dict[str, Any]:
    """The object of a file about pictures: each is its name, the picture, and the answer."""
    check_task(task)
    categories: dict[str, dict[str, Any]] = {}
    pictures: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, subject, answer) in enumerate(given, 1):
        width, height = subject.pictures[0].size
        pictures.append({"id": number, "file_name": name, "width": width, "height": height})
        for found in THINGS[task](answer, subject):
            category = categories.setdefault(found.label, {"id": len(categories) + 1, "name": found.label})
            if task == "pose-estimation" and "keypoints" not in category:
                category |= {"keypoints": list(JOINTS), "skeleton": [[a + 1, b + 1] for a, b in LIMBS]}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category["id"],
                    **dict(_annotated(found, len(JOINTS) if task == "pose-estimation" else 0)),
                }
            )
    return {"images": pictures, "annotations": annotations, "categories": list(categories.values())}


def _annotated(found: Found, joints: int) -> Iterator[tuple[str, Any]]:
    """The keys of an annotation; `joints` points are there at least, those that were not found as zeros."""
    box = found.box
    if found.mask is not None:
        box = _around(found.mask)
        yield "segmentation", rle(found.mask)
    elif found.points:
        places = np.array(list(found.points.values()))
        box = (*places.min(0).tolist(), *places.max(0).tolist())
    left, top, right, bottom = box or (0.0, 0.0, 0.0, 0.0)
    yield "bbox", [left, top, right - left, bottom - top]
    yield "area", float(found.mask.sum()) if found.mask is not None else (right - left) * (bottom - top)
    yield "iscrowd", 0
    if found.points or joints:
        count = max(joints, max(found.points, default=-1) + 1)
        triples = [(*found.points[n], 2) if n in found.points else (0, 0, 0) for n in range(count)]
        yield "keypoints", [value for triple in triples for value in triple]
        yield "num_keypoints", len(found.points)
    if found.score is not None:
        yield "score", found.score
    if found.text:
        yield "text", found.text


def _around(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return 0.0, 0.0, 0.0, 0.0
    return float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1)


def rle(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask as runs of equal pixels, down the columns."""
    pixels = mask.T.reshape(-1)
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    bounds = np.concatenate(([0], changes, [pixels.size]))
    counts = np.diff(bounds).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if pixels.size and pixels[0] else counts}
