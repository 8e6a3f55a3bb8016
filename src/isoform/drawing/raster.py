"""A scene as a picture of Pillow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from isoform.drawing.layout import Canvas, Label, font_of, labels, swatch
from isoform.drawing.marks import Box, Dot, Line, Scene
from isoform.drawing.overlay import THROUGH, overlay
from isoform.drawing.palette import INK, NOTHING, PAPER, Colour

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

DASH = 4  # widths of a line: as long are its dashes and gaps


def raster(scene: Scene) -> Image:
    """RGB; a small picture is enlarged, so that what is written on it can be read."""
    from PIL import Image as images
    from PIL import ImageDraw as drawing

    canvas = Canvas.of(*scene.picture.size)
    picture = images.new("RGB", (canvas.width, canvas.height), NOTHING)
    enlarged = scene.picture.resize([canvas.scale * side for side in scene.picture.size], images.Resampling.NEAREST)
    picture.paste(enlarged, (0, 0))
    if (areas := overlay(scene, canvas.scale, canvas.line)) is not None:
        picture.paste(areas.convert("RGB"), (0, 0), areas.getchannel("A"))
    pen = drawing.Draw(picture, "RGBA")
    for mark in scene.marks:
        if isinstance(mark, Box):
            _box(pen, mark, canvas)
        elif isinstance(mark, Line):
            _line(pen, mark, canvas)
    for mark in scene.marks:
        if isinstance(mark, Dot):
            _dot(pen, mark, canvas)
    for label in labels(scene, canvas):
        _label(pen, label, canvas)
    return picture


def _box(pen: ImageDraw, box: Box, canvas: Canvas) -> None:
    left, right = sorted(_within(side * canvas.scale, canvas.width) for side in (box.left, box.right))
    top, bottom = sorted(_within(side * canvas.scale, canvas.height) for side in (box.top, box.bottom))
    if box.filled:
        pen.rectangle((left, top, right, bottom), fill=(*box.colour, THROUGH))
    for start, end in (
        *(((left, y), (right, y)) for y in (top, bottom)),
        *(((x, top), (x, bottom)) for x in (left, right)),
    ):
        _stroke(pen, start, end, box.colour, canvas, dashed=box.dashed)


def _within(value: float, size: int) -> float:
    return max(0.0, min(value, size - 1.0))


def _line(pen: ImageDraw, line: Line, canvas: Canvas) -> None:
    _stroke(pen, canvas.place(*line.start), canvas.place(*line.end), line.colour, canvas)


def _stroke(
    pen: ImageDraw,
    start: tuple[float, float],
    end: tuple[float, float],
    colour: Colour,
    canvas: Canvas,
    *,
    dashed: bool = False,
) -> None:
    """A line with a dark edge, which is seen on every background."""
    for ink, width in ((INK, canvas.line + 2 * canvas.outline), (colour, canvas.line)):
        for a, b in _dashes(start, end, DASH * canvas.line) if dashed else ((start, end),):
            pen.line((*a, *b), fill=ink, width=width)


def _dashes(
    start: tuple[float, float], end: tuple[float, float], length: float
) -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
    across, down = end[0] - start[0], end[1] - start[1]
    whole = max((across**2 + down**2) ** 0.5, 1e-9)
    at = 0.0
    while at < whole:
        a, b = at / whole, min(at + length, whole) / whole
        yield (
            (start[0] + a * across, start[1] + a * down),
            (start[0] + b * across, start[1] + b * down),
        )
        at += 2 * length


def _dot(pen: ImageDraw, dot: Dot, canvas: Canvas) -> None:
    (x, y), r = canvas.place(dot.x, dot.y), canvas.radius
    pen.ellipse((x - r, y - r, x + r, y + r), fill=dot.colour, outline=INK, width=canvas.outline)


def _label(pen: ImageDraw, label: Label, canvas: Canvas) -> None:
    edge = canvas.outline
    x, y = label.x + edge, label.y + edge
    pen.rectangle((label.x, label.y, label.x + label.width, label.y + label.height), fill=(*INK, THROUGH))
    pen.rectangle((x, y, x + swatch(canvas), label.y + label.height - edge), fill=label.colour, outline=INK, width=edge)
    font = font_of(canvas.font)
    middle = label.y + label.height / 2
    pen.text(
        (x + swatch(canvas) + edge, middle),
        label.text,
        fill=PAPER,
        font=font,
        anchor="lm",
        stroke_width=edge,
        stroke_fill=INK,
    )
