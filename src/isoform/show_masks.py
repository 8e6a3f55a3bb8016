"""Masks as people read them on a terminal, a line each, and as JSON holds them: pictures of one bit as data URLs."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Any


def are_masks(value: Any) -> bool:
    """Whether this is an array of masks (..., H, W)."""
    dtype = getattr(value, "dtype", None)
    return dtype is not None and str(dtype) == "bool" and value.ndim > 1


def plain(masks: Any) -> Any:
    """A mask (H, W) as a data URL of a PNG file, white inside; more of them as lists."""
    if masks.ndim > 2:
        return [plain(mask) for mask in masks]
    from PIL import Image

    file = BytesIO()
    Image.fromarray(masks).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def lines(answer: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The name of each mask, its score, how much of the picture it covers, and where it begins and ends."""
    import numpy as np

    for n, (masks, scores) in enumerate(zip(answer["masks"], answer["scores"], strict=True), 1):
        several = masks.ndim > 2
        pairs = zip(masks, scores, strict=True) if several else [(masks, scores)]
        for m, (mask, score) in enumerate(pairs, 1):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            place = f"{columns[0]}, {rows[0]} – {columns[-1]}, {rows[-1]}" if len(rows) else "–"
            yield f"{n}.{m}" if several else str(n), f"{score:.4f}", f"{mask.mean():.1%}", place
