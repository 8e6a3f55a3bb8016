"""Rows of a tensor as the bytes of ggml's types, several types in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from isoform.errors import CheckpointError, UnsupportedExport
from isoform.exporters.gguf.types import FLOATS, LARGEST_HALF, nbytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHUNK = 2**17  # elements converted at a time: few enough for the cache of a core


class Buffers:
    """Memory that is used again: fresh pages cost more than filling them. Safe to share between threads."""

    def __init__(self) -> None:
        self._free: list[NDArray[np.uint8]] = []
        self._all: set[int] = set()

    def take(self, size: int) -> NDArray[np.uint8]:
        """Some `size` bytes."""
        import numpy as np

        while self._free:
            try:
                block = self._free.pop()
            except IndexError:
                break
            if block.nbytes >= size:
                return block[:size]
            self._all.discard(id(block))
        block = np.empty(max(size, 4 * CHUNK), np.uint8)
        self._all.add(id(block))
        return block[:size]

    def give(self, part: NDArray[np.uint8]) -> None:
        """Take back what `take` gave; anything else is let be."""
        if id(part.base) in self._all:
            self._free.append(part.base)  # type: ignore[arg-type]


def convert(
    key: str, rows: NDArray[Any], kinds: Sequence[str], importance: NDArray[np.float32] | None, buffers: Buffers
) -> dict[str, NDArray[np.uint8]]:
    """Rows (n, columns) as the bytes of each of ggml's types, rounded to nearest even from float32.

    `importance` (columns,) weighs the columns where a type has a choice. Rows that are stored in a type already are not
    copied; the other results are memory of `buffers`. Raises CheckpointError for values that are not finite.
    """
    import numpy as np

    if rows.dtype == np.float64:
        rows = rows.astype(np.float32)
    flat, columns = np.ascontiguousarray(rows).reshape(-1), rows.shape[1]
    made: dict[str, NDArray[np.uint8]] = {}
    for kind in (kind for kind in kinds if kind in FLOATS):
        made[kind] = _float(key, flat, kind, buffers)
    quantized = [kind for kind in kinds if kind not in FLOATS]
    if not quantized:
        return made
    from isoform.exporters.gguf.floats import widen
    from isoform.exporters.gguf.quantize import kernel

    sizes = {kind: nbytes((1, columns), kind) for kind in quantized}
    made |= {kind: buffers.take(len(rows) * sizes[kind]) for kind in quantized}
    step = max(1, CHUNK // columns)
    scratch = buffers.take(4 * columns * min(step, len(rows)))
    for start in range(0, len(rows), step):
        stop = min(start + step, len(rows))
        wide = scratch[: 4 * columns * (stop - start)].view(np.float32)  # in the cache while every type reads it
        widen(flat[start * columns : stop * columns], wide, compiled=True)
        for kind in quantized:
            if not kernel(kind)(wide, made[kind][start * sizes[kind] : stop * sizes[kind]], importance):
                raise CheckpointError(f"{key} holds values that are not finite, which cannot be quantized; mend it")
    buffers.give(scratch)
    return made


def _float(key: str, flat: NDArray[Any], kind: str, buffers: Buffers) -> NDArray[np.uint8]:
    """Values as the bytes of F32, F16 or BF16; the values themselves where they are stored so."""
    import numpy as np

    from isoform.exporters.gguf.floats import STORED, convert_floats, largest

    if STORED[flat.dtype.name] == kind:
        made, most = flat.view(np.uint8), largest(flat)
    else:
        made = buffers.take(flat.size * (4 if kind == "F32" else 2))
        most = convert_floats(flat, kind, made)
    if not most < float("inf"):
        raise CheckpointError(f"{key} holds values that are not finite, which no model computes with; mend it")
    if kind == "F16" and most >= LARGEST_HALF:
        raise UnsupportedExport(f"{key} holds {most:g}, which float16 cannot; take f32, bf16 or q8_0")
    return made
