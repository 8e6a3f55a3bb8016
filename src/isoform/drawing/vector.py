"""A scene as SVG, with the picture inside."""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

from isoform.drawing.layout import Canvas, Label, labels, swatch
from isoform.drawing.marks import Box, Dot, Line, Scene
from isoform.drawing.overlay import THROUGH, overlay
from isoform.drawing.palette import INK, NOTHING, PAPER, Colour
from isoform.drawing.raster import DASH

if TYPE_CHECKING:
    from PIL.Image import Image


def vector(scene: Scene) -> str:
    """The text of an SVG file, which needs no other file."""
    canvas = Canvas.of(*scene.picture.size)
    wide, high = (canvas.scale * side for side in scene.picture.size)
    size = f'width="{canvas.width}" height="{canvas.height}"'
    text = f'font-family="sans-serif" font-size="{canvas.font}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {canvas.width} {canvas.height}" {text}>',
        f'<rect {size} fill="{_hex(NOTHING)}"/>',
        _image(scene.picture, wide, high),
    ]
    if (areas := overlay(scene, 1, max(1, canvas.line // canvas.scale))) is not None:
        lines.append(_image(areas, canvas.scale * areas.width, canvas.scale * areas.height))
    lines += [_mark(mark, canvas) for mark in scene.marks if isinstance(mark, Box | Line)]
    lines += [_dot(mark, canvas) for mark in scene.marks if isinstance(mark, Dot)]
    lines += [_label(label, canvas) for label in labels(scene, canvas)]
    return "\n".join((*lines, "</svg>", ""))


def _hex(colour: Colour) -> str:
    return "#" + "".join(f"{part:02x}" for part in colour)


def _image(picture: Image, width: int, height: int) -> str:
    content = BytesIO()
    picture.save(content, "PNG")
    data = b64encode(content.getvalue()).decode()
    return (
        f'<image width="{width}" height="{height}" preserveAspectRatio="none" image-rendering="pixelated" '
        f'href="data:image/png;base64,{data}"/>'
    )


def _mark(mark: Box | Line, canvas: Canvas) -> str:
    """The dark edge, then the mark itself."""
    if isinstance(mark, Box):
        x, right = sorted(side * canvas.scale for side in (mark.left, mark.right))
        y, bottom = sorted(side * canvas.scale for side in (mark.top, mark.bottom))
        shape = f'rect x="{x:g}" y="{y:g}" width="{right - x:g}" height="{bottom - y:g}"'
        fill = f'fill="{_hex(mark.colour)}" fill-opacity="{THROUGH / 255:.2f}"' if mark.filled else 'fill="none"'
        dashes = f' stroke-dasharray="{DASH * canvas.line}"' if mark.dashed else ""
    else:
        (x, y), (u, v) = canvas.place(*mark.start), canvas.place(*mark.end)
        shape, fill, dashes = f'line x1="{x:g}" y1="{y:g}" x2="{u:g}" y2="{v:g}"', "", ""
    edge = f'<{shape} fill="none" stroke="{_hex(INK)}" stroke-width="{canvas.line + 2 * canvas.outline}"{dashes}/>'
    return f'{edge}<{shape} {fill} stroke="{_hex(mark.colour)}" stroke-width="{canvas.line}"{dashes}/>'


def _dot(dot: Dot, canvas: Canvas) -> str:
    x, y = canvas.place(dot.x, dot.y)
    return (
        f'<circle cx="{x:g}" cy="{y:g}" r="{canvas.radius:g}" fill="{_hex(dot.colour)}" stroke="{_hex(INK)}" '
        f'stroke-width="{canvas.outline}"/>'
    )


def _label(label: Label, canvas: Canvas) -> str:
    edge, wide = canvas.outline, swatch(canvas)
    ground = (
        f'<rect x="{label.x:g}" y="{label.y:g}" width="{label.width:g}" height="{label.height:g}" '
        f'fill="{_hex(INK)}" fill-opacity="{THROUGH / 255:.2f}"/>'
    )
    box = (
        f'<rect x="{label.x + edge:g}" y="{label.y + edge:g}" width="{wide:g}" height="{label.height - 2 * edge:g}" '
        f'fill="{_hex(label.colour)}" stroke="{_hex(INK)}" stroke-width="{edge}"/>'
    )
    at = f'x="{label.x + wide + 2 * edge:g}" y="{label.y + label.height / 2:g}" dominant-baseline="central"'
    return (
        f'{ground}{box}<text {at} fill="{_hex(PAPER)}" stroke={quoteattr(_hex(INK))} stroke-width="{2 * edge}" '
        f'stroke-linejoin="round" paint-order="stroke">{escape(label.text)}</text>'
    )
