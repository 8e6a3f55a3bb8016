"""What is drawn over a picture, in the picture's pixels: x to the right, y down, from the upper left corner."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from isoform.drawing.palette import Colour

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Subject:
    """The pictures (RGB) that an answer is about, and the words of a page with boxes in thousandths of it."""

    pictures: tuple[Image, ...]
    words: tuple[tuple[str, tuple[int, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class Box:
    left: float
    top: float
    right: float
    bottom: float
    colour: Colour
    label: str = ""
    dashed: bool = False
    filled: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Area:
    """Pixels (H, W), true where the colour lies over the picture."""

    mask: NDArray[np.bool_]
    colour: Colour
    label: str = ""


@dataclass(frozen=True, slots=True)
class Dot:
    x: float
    y: float
    colour: Colour


@dataclass(frozen=True, slots=True)
class Line:
    start: tuple[float, float]
    end: tuple[float, float]
    colour: Colour


@dataclass(frozen=True, slots=True)
class Note:
    """A text whose lower left corner is at a point, or near it where there is no room."""

    text: str
    x: float
    y: float
    colour: Colour


Mark = Box | Area | Dot | Line | Note


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture and the marks over it, the later ones on top."""

    picture: Image
    marks: list[Mark] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Found:
    """A thing in a picture, for files that hold things: the box as left, top, right, bottom; points by their number."""

    label: str
    score: float | None = None
    box: tuple[float, float, float, float] | None = None
    mask: Any = None  # bool (H, W)
    points: dict[int, tuple[float, float]] = field(default_factory=dict)
    text: str = ""
