"""The sizes of a drawing, and where its labels stand: near what they name, on the canvas, and not over each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil, sqrt
from typing import TYPE_CHECKING

import numpy as np

from isoform.drawing.marks import Area, Box, Mark, Note, Scene
from isoform.drawing.palette import Colour

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.ImageFont import FreeTypeFont

LONG = 480  # pixels of the longer side at least: a smaller picture is enlarged by a whole number
SHORT = 160  # pixels of either side of the canvas at least: a narrow picture gets an empty margin
FONT = 14  # pixels of a text's height at least


@dataclass(frozen=True, slots=True)
class Canvas:
    """The drawing's size in pixels, how many of them a pixel of the picture has, the text's height, a line's width."""

    width: int
    height: int
    scale: int
    font: int
    line: int

    @classmethod
    def of(cls, width: int, height: int) -> Canvas:
        """For a picture of this size."""
        scale = max(1, ceil(LONG / max(width, height)))
        wide, high = max(width * scale, SHORT), max(height * scale, SHORT)
        font = max(FONT, min(round(sqrt(wide * high) / 27), wide // 10, high // 6))
        return cls(wide, high, scale, font, max(2, font // 6))

    @property
    def outline(self) -> int:
        """The width of the dark edge around a text or a line."""
        return max(1, self.font // 14)

    @property
    def radius(self) -> float:
        """Of the dot of a keypoint."""
        return 1.4 * self.line

    def place(self, x: float, y: float) -> tuple[float, float]:
        """A pixel of the picture, by its middle, on the canvas."""
        return (x + 0.5) * self.scale, (y + 0.5) * self.scale


@dataclass(frozen=True, slots=True)
class Label:
    """A text on the canvas: its upper left corner and size, a swatch of its colour in front of it."""

    text: str
    x: float
    y: float
    width: float
    height: float
    colour: Colour

    def overlap(self, other: Label) -> float:
        """The area that both cover."""
        across = min(self.x + self.width, other.x + other.width) - max(self.x, other.x)
        down = min(self.y + self.height, other.y + other.height) - max(self.y, other.y)
        return max(across, 0) * max(down, 0)


@cache
def font_of(size: int) -> FreeTypeFont:
    """Pillow's own font, so that every machine draws the same."""
    from PIL import ImageFont

    found = ImageFont.load_default(size)
    assert isinstance(found, ImageFont.FreeTypeFont)
    return found


def labels(scene: Scene, canvas: Canvas) -> list[Label]:
    """The labels of all marks, the last ones placed first: they are on top. They keep off filled boxes if they can."""
    filled = [_covered(mark, canvas) for mark in scene.marks if isinstance(mark, Box) and mark.filled]
    placed: list[Label] = []
    for mark in reversed(scene.marks):
        if text := fitted(_text(mark), canvas):
            candidates = [_label(text, x, y, mark.colour, canvas) for x, y in _wanted(mark, text, canvas)]
            placed.append(_freest(candidates, [*placed, *filled]))
    return placed


def _covered(box: Box, canvas: Canvas) -> Label:
    """A filled box as a label without text, for what may not be hidden."""
    left, top, right, bottom = (side * canvas.scale for side in (box.left, box.top, box.right, box.bottom))
    return Label("", left, top, right - left, bottom - top, box.colour)


def _text(mark: Mark) -> str:
    text = mark.text if isinstance(mark, Note) else mark.label if isinstance(mark, Box | Area) else ""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _freest(candidates: Sequence[Label], placed: Sequence[Label]) -> Label:
    """The first that covers no other label, or else the one that covers least."""
    best, least = candidates[0], float("inf")
    for candidate in candidates:
        covered = sum(candidate.overlap(other) for other in placed)
        if covered < least:
            best, least = candidate, covered
        if not covered:
            break
    return best


def _wanted(mark: Mark, text: str, canvas: Canvas) -> Iterator[tuple[float, float]]:
    """Upper left corners for a label, the best first."""
    height, width = label_height(canvas), label_width(text, canvas)
    if isinstance(mark, Box):
        left, top, right, bottom = (side * canvas.scale for side in (mark.left, mark.top, mark.right, mark.bottom))
        if top >= height:
            yield left, top - height
        yield left + canvas.line, top + canvas.line
        yield left, bottom
        yield left + canvas.line, bottom - height - canvas.line
        yield right - width, top - height
        yield right - width, bottom
    elif isinstance(mark, Area):
        x, y = canvas.place(*_inside(mark.mask))
        for n in (0, 1, -1, 2, -2, 3, -3):
            yield x - width / 2, y - height / 2 + n * height
    elif isinstance(mark, Note):
        x, y = mark.x * canvas.scale, mark.y * canvas.scale
        yield x, y - height - canvas.radius
        yield x, y
        yield x - width, y - height
        yield x - width, y
        for n in (2, 3, 4):
            yield x, y - n * height
            yield x, y + n * height


def _inside(mask: NDArray[np.bool_]) -> tuple[float, float]:
    """A pixel in the middle of an area, which may be hollow or in pieces."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return mask.shape[1] / 2, mask.shape[0] / 2
    row = np.sort(rows)[len(rows) // 2]
    inside = columns[rows == row]
    return float(inside[len(inside) // 2]), float(row)


def label_height(canvas: Canvas) -> float:
    return 1.3 * canvas.font + 2 * canvas.outline


def label_width(text: str, canvas: Canvas) -> float:
    """With the swatch."""
    return font_of(canvas.font).getlength(text) + swatch(canvas) + 4 * canvas.outline


def swatch(canvas: Canvas) -> float:
    return 0.5 * canvas.font


def fitted(text: str, canvas: Canvas) -> str:
    """The text, or as much of its beginning as the canvas is wide."""
    if label_width(text, canvas) <= canvas.width:
        return text
    fits, beyond = 0, len(text)
    while beyond - fits > 1:
        middle = (fits + beyond) // 2
        if label_width(f"{text[:middle]}…", canvas) <= canvas.width:
            fits = middle
        else:
            beyond = middle
    return f"{text[:fits].rstrip()}…"


def _label(text: str, x: float, y: float, colour: Colour, canvas: Canvas) -> Label:
    """On the canvas."""
    width, height = label_width(text, canvas), label_height(canvas)
    x, y = max(0.0, min(x, canvas.width - width)), max(0.0, min(y, canvas.height - height))
    return Label(text, x, y, width, height, colour)
