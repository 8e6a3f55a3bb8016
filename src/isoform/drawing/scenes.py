"""What is drawn of an answer: marks over the picture, by the answer's task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.drawing import answers
from isoform.drawing.marks import Area, Box, Dot, Found, Line, Mark, Note, Scene, Subject
from isoform.drawing.palette import NOTHING, Colour, colour_of, depth_colours, is_dashed
from isoform.drawing.skeleton import LIMBS
from isoform.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

FAR = 50  # times the least depth
LABELLED = 40  # masks of things without names that get their scores written on them, at most


def scene(task: str, subject: Subject, answer: Any) -> Scene:
    """Raises InputError for a task that draws nothing, or an answer that is not of its form."""
    check_task(task)
    wanted = 2 if task == "keypoint-matching" else 1
    if len(subject.pictures) != wanted:
        raise InputError(f"{task} is drawn over {wanted} picture{'s' * (wanted > 1)}, not {len(subject.pictures)}")
    return SCENES[task](answer, subject)


def check_task(task: str) -> None:
    """InputError for a task that draws nothing."""
    if task not in SCENES:
        raise InputError(f"{task} has nothing to draw; these have: {', '.join(SCENES)}")


def _scored(found: Found) -> str:
    return found.label if found.score is None else f"{found.label} {found.score:.2f}"


def _classes(things: Iterable[Found]) -> dict[str, int]:
    """A number for each label, in the order of their coming."""
    return {label: n for n, label in enumerate(dict.fromkeys(found.label for found in things))}


def _boxes(answer: Any, subject: Subject) -> Scene:
    found = list(answers.detected(answer, subject))
    number = _classes(found)
    found.sort(key=lambda one: one.score or 0)  # the surest on top
    marks: list[Mark] = [
        Box(*one.box, colour_of(number[one.label]), _scored(one), is_dashed(number[one.label]))
        for one in found
        if one.box is not None
    ]
    return Scene(subject.pictures[0], marks)


def _segments(answer: Any, subject: Subject) -> Scene:
    """Each label has a colour, and each segment where one label has several."""
    found = list(answers.segmented(answer, subject))
    number = _classes(found)
    of_things = len(number) < len(found)
    marks: list[Mark] = [
        Area(one.mask, colour_of(n if of_things else number[one.label]), _scored(one)) for n, one in enumerate(found)
    ]
    return Scene(subject.pictures[0], marks)


def _masks(answer: Any, subject: Subject) -> Scene:
    """The largest first, so that what lies in it is seen."""
    found = sorted(answers.masked(answer, subject), key=lambda one: -int(one.mask.sum()))
    named = len(found) <= LABELLED
    marks: list[Mark] = [
        Area(one.mask, colour_of(n), f"{one.score:.2f}" if named else "") for n, one in enumerate(found)
    ]
    return Scene(subject.pictures[0], marks)


def _poses(answer: Any, subject: Subject) -> Scene:
    marks: list[Mark] = []
    for n, one in enumerate(answers.posed(answer, subject)):
        colour, points = colour_of(n), one.points
        marks += [Line(points[a], points[b], colour) for a, b in LIMBS if a in points and b in points]
        marks += [Dot(x, y, colour) for x, y in points.values()]
        if points:
            x, y = min(points.values(), key=lambda point: point[1])
            marks.append(Note(f"{one.score:.2f}", x, y, colour))
    return Scene(subject.pictures[0], marks)


def _points(answer: Any, subject: Subject) -> Scene:
    (found,) = answers.pointed(answer, subject)
    marks: list[Mark] = [Dot(x, y, colour_of(0)) for x, y in found.points.values()]
    marks.append(Note(_counted(len(found.points), "keypoint"), 0, subject.pictures[0].height, colour_of(0)))
    return Scene(subject.pictures[0], marks)


def _matches(answer: Any, subject: Subject) -> Scene:
    pairs, marks = list(answers.matched(answer)), list[Mark]()
    across = subject.pictures[0].width
    for n, ((x, y), (u, v)) in enumerate(pairs):
        ends, colour = ((x, y), (u + across, v)), colour_of(n)
        marks += [Line(*ends, colour), *(Dot(*end, colour) for end in ends)]
    joined = _side_by_side(subject.pictures)
    marks.append(Note(_counted(len(pairs), "match"), 0, joined.height, colour_of(0)))
    return Scene(joined, marks)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}{'es' if what.endswith('ch') else 's'}"


def _side_by_side(pictures: Sequence[Image]) -> Image:
    from PIL import Image as images

    joined = images.new("RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)), NOTHING)
    left = 0
    for picture in pictures:
        joined.paste(picture, (left, 0))
        left += picture.width
    return joined


def _depths(answer: Any, subject: Subject) -> Scene:
    """The depths in colours, from the least to the greatest, with a bar below that says which is which.

    Where the greatest is more than `FAR` times the least, as under an open sky, the colours go by the logarithm.
    """
    from PIL import Image as images

    values = answers.depth(answer)
    known = np.isfinite(values)
    low, high = (float(f(values[known])) if known.any() else 0.0 for f in (np.min, np.max))
    far = 0 < FAR * low < high
    scaled, first, last = (
        (np.log(np.where(known, values, low)), np.log(low), np.log(high)) if far else (values, low, high)
    )
    colours = depth_colours((scaled - first) / ((last - first) or 1))
    colours[~known] = NOTHING
    width, height = subject.pictures[0].size
    below = max(height // 12, 1)
    picture = images.new("RGB", (width, height + below))
    picture.paste(images.fromarray(colours).resize((width, height), images.Resampling.BILINEAR), (0, 0))
    bar = depth_colours(np.linspace(0, 1, width)[None].repeat(below, 0))
    picture.paste(images.fromarray(bar), (0, height))
    ends: list[tuple[str, float, Colour]] = [
        (f"{low:.4g}", 0, colour_of(1)),
        (f"{high:.4g}{', by logarithm' * far}", width, colour_of(2)),
    ]
    return Scene(picture, [Note(text, x, height + below, colour) for text, x, colour in ends])


def _page(answer: Any, subject: Subject) -> Scene:
    """The words of each answer, the best on top."""
    marks: list[Mark] = []
    for n, (found, boxes) in reversed(list(enumerate(answers.answered(answer, subject)))):
        marks += [Box(*box, colour_of(n), filled=True) for box in boxes]
        marks.append(Note(f"{found.text} {found.score:.2f}", boxes[0][0], boxes[0][1], colour_of(n)))
    return Scene(subject.pictures[0], marks)


SCENES: dict[str, Callable[[Any, Subject], Scene]] = {
    "depth-estimation": _depths,
    "document-question-answering": _page,
    "image-segmentation": _segments,
    "keypoint-detection": _points,
    "keypoint-matching": _matches,
    "mask-generation": _masks,
    "object-detection": _boxes,
    "pose-estimation": _poses,
}
"""Task -> what its answer looks like."""
