"""The areas of a scene as one translucent picture with opaque edges."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from isoform.drawing.marks import Area, Scene

if TYPE_CHECKING:
    from PIL.Image import Image

THROUGH = 115  # of 255: how dense an area is, so that the picture is seen through it


def overlay(scene: Scene, scale: int, line: int) -> Image | None:
    """RGBA, `scale` times as large as the picture, with edges of `line` pixels; None where there are no areas."""
    from PIL import Image as images
    from PIL import ImageFilter

    areas = [mark for mark in scene.marks if isinstance(mark, Area)]
    if not areas:
        return None
    height, width = (scale * side for side in areas[0].mask.shape)
    whole = images.new("RGBA", (width, height), (0, 0, 0, 0))
    inner = ImageFilter.MinFilter(2 * max(1, line // 2) + 1)
    for area in areas:
        mask = images.fromarray(area.mask.astype(np.uint8) * 255).resize((width, height), images.Resampling.NEAREST)
        kept = np.asarray(mask.filter(inner))
        density = np.where(kept > 0, THROUGH, np.asarray(mask)).astype(np.uint8)
        layer = images.new("RGBA", (width, height), (*area.colour, 0))
        layer.putalpha(images.fromarray(density))
        whole.alpha_composite(layer)
    return whole
