"""begin_text: the tokens that a decoder is fed first: the one that begins every text, then those of a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

INPUTS = ("tokens",)
OUTPUTS = ("tokens",)


def run(inputs: Mapping[str, NDArray[Any]], *, start: int) -> dict[str, NDArray[Any]]:
    """`start` is the token. Shapes: tokens (B, T), T may be 0 -> (B, 1 + T)."""
    import numpy as np

    tokens = np.asarray(inputs["tokens"], np.int64)
    return {"tokens": np.concatenate((np.full((len(tokens), 1), start, np.int64), tokens), 1)}
