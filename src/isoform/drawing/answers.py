"""The answers of the tasks that can be drawn, read by the form that each task has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.drawing.marks import Found, Subject
from isoform.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMS: dict[str, str] = {
    "depth-estimation": '{"predicted_depth": array (height, width), "depth": picture}',
    "document-question-answering": '[{"score", "answer", "start", "end"}, …]',
    "image-segmentation": '[{"score", "label", "mask": picture}, …]',
    "keypoint-detection": '{"keypoints": [[x, y], …], "scores", "descriptors"}',
    "keypoint-matching": '[{"keypoint_image_0": {"x", "y"}, "keypoint_image_1": {"x", "y"}, "score"}, …]',
    "mask-generation": '{"masks": [array (height, width), …], "scores"}',
    "object-detection": '[{"score", "label", "box": {"xmin", "ymin", "xmax", "ymax"}}, …]',
    "pose-estimation": '[{"keypoints": [[x, y], …], "scores", "labels"}, …]',
}
"""Task -> the form of its answer about one picture (or one pair of pictures)."""


class Reader:
    """Takes an answer of one task apart. Raises InputError where it does not have the task's form."""

    def __init__(self, task: str) -> None:
        self.task = task

    def wrong(self, found: Any) -> InputError:
        return InputError(
            f"{self.task} answers {FORMS[self.task]}, not {found!r:.80}; give the answer about one picture"
        )

    def listed(self, answer: Any) -> Sequence[Any]:
        if not isinstance(answer, list | tuple):
            raise self.wrong(answer)
        return answer

    def get(self, one: Any, *keys: str) -> Any:
        """What lies under the keys, one inside the other."""
        found = one
        for key in keys:
            if not isinstance(found, Mapping) or key not in found:
                raise self.wrong(one)
            found = found[key]
        return found

    def number(self, value: Any) -> float:
        try:
            found = float(value)
        except (TypeError, ValueError):
            raise self.wrong(value) from None
        if not np.isfinite(found):
            raise InputError(f"{self.task}: {value!r:.40} is no place and no score; the model gave no finite number")
        return found

    def array(self, value: Any, axes: int) -> NDArray[Any]:
        """A list, an array or a tensor with so many axes."""
        try:
            found = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
        except (TypeError, ValueError):
            raise self.wrong(value) from None
        if found.ndim != axes or found.dtype.kind not in "biuf":
            raise self.wrong(value)
        return found

    def mask(self, value: Any, subject: Subject) -> NDArray[np.bool_]:
        """The pixels of a mask, which is as large as the picture."""
        found = self.array(value, 2) > 0
        width, height = subject.pictures[0].size
        if found.shape != (height, width):
            raise InputError(
                f"{self.task}: a mask of {found.shape[1]} x {found.shape[0]} is not of this picture, which has {width} "
                f"x {height}"
            )
        return found

    def points(self, value: Any) -> NDArray[np.floating]:
        found = self.array(value, 2) if np.size(value) else np.zeros((0, 2))
        if found.shape[1] != 2 or not np.isfinite(found).all():
            raise self.wrong(value)
        return found.astype(np.float64)


def detected(answer: Any, subject: Subject) -> Iterator[Found]:
    """object-detection."""
    read = Reader("object-detection")
    for one in read.listed(answer):
        sides = tuple(read.number(read.get(one, "box", side)) for side in ("xmin", "ymin", "xmax", "ymax"))
        yield Found(str(read.get(one, "label")), read.number(read.get(one, "score")), sides)  # type: ignore[arg-type]


def segmented(answer: Any, subject: Subject) -> Iterator[Found]:
    """image-segmentation; a segment of a semantic one has no score."""
    read = Reader("image-segmentation")
    for one in read.listed(answer):
        score = read.get(one, "score")
        mask = read.mask(read.get(one, "mask"), subject)
        yield Found(str(read.get(one, "label")), None if score is None else read.number(score), mask=mask)


def masked(answer: Any, subject: Subject) -> Iterator[Found]:
    """mask-generation."""
    read = Reader("mask-generation")
    masks, scores = read.get(answer, "masks"), read.get(answer, "scores")
    if len(masks) != len(scores):
        raise read.wrong(answer)
    for mask, score in zip(masks, scores, strict=True):
        yield Found("object", read.number(score), mask=read.mask(mask, subject))


def posed(answer: Any, subject: Subject) -> Iterator[Found]:
    """pose-estimation; the score is the mean of the points'."""
    read = Reader("pose-estimation")
    for one in read.listed(answer):
        points = read.points(read.get(one, "keypoints"))
        scores, labels = read.array(read.get(one, "scores"), 1), read.array(read.get(one, "labels"), 1)
        if not len(points) == len(scores) == len(labels):
            raise read.wrong(one)
        places = {int(label): (float(x), float(y)) for label, (x, y) in zip(labels, points, strict=True)}
        yield Found("person", read.number(scores.mean()) if len(scores) else None, points=places)


def pointed(answer: Any, subject: Subject) -> Iterator[Found]:
    """keypoint-detection: all points of the picture are one thing."""
    read = Reader("keypoint-detection")
    points = read.points(read.get(answer, "keypoints"))
    yield Found("keypoints", points={n: (float(x), float(y)) for n, (x, y) in enumerate(points)})


def matched(answer: Any) -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
    """keypoint-matching: the places in both pictures."""
    read = Reader("keypoint-matching")
    for one in read.listed(answer):
        yield tuple(  # type: ignore[misc]
            tuple(read.number(read.get(one, f"keypoint_image_{n}", axis)) for axis in ("x", "y")) for n in (0, 1)
        )


def depth(answer: Any) -> NDArray[np.floating]:
    """depth-estimation: (height, width)."""
    read = Reader("depth-estimation")
    found = read.get(answer, "predicted_depth")
    axes = len(getattr(found, "shape", ())) or 2
    values = read.array(found, axes).squeeze()
    if values.ndim != 2 or not values.size:
        raise read.wrong(answer)
    return values.astype(np.float64)


def answered(answer: Any, subject: Subject) -> Iterator[tuple[Found, list[tuple[float, float, float, float]]]]:
    """document-question-answering: each answer with the box around its words, and the boxes of these."""
    read = Reader("document-question-answering")
    width, height = subject.pictures[0].size
    for one in read.listed(answer):
        text, start, end = (read.get(one, key) for key in ("answer", "start", "end"))
        if not text:  # no answer on this page
            continue
        words = subject.words[int(read.number(start)) : int(read.number(end)) + 1]
        if len(words) != int(end) - int(start) + 1:
            raise InputError(
                f"{read.task}: the answer {text!r:.40} is of the words {start} to {end}, and the page has "
                f"{len(subject.words)}; give the word_boxes that the question was asked with"
            )
        boxes = [
            (a * width / 1000, b * height / 1000, c * width / 1000, d * height / 1000) for _, (a, b, c, d) in words
        ]
        around = (
            *(min(box[n] for box in boxes) for n in (0, 1)),
            *(max(box[n] for box in boxes) for n in (2, 3)),
        )
        yield Found("answer", read.number(read.get(one, "score")), around, text=str(text)), boxes  # type: ignore[arg-type]
