"""split_positions: the positions that a mask leaves visible, and those that it hides, in their order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

INPUTS = ("bool_masked_pos",)
OUTPUTS = ("visible_positions", "masked_positions")


def run(inputs: Mapping[str, NDArray[Any]], *, positions: int) -> dict[str, NDArray[Any]]:
    """A mask (B, positions), true where a position is hidden -> int64 (B, visible) and (B, masked).

    Raises InputError for a mask of another shape, for rows that hide unlike many, all or none.
    """
    mask = np.asarray(inputs[INPUTS[0]])
    if mask.ndim != 2 or mask.shape[1] != positions or not mask.shape[0]:
        raise InputError(
            f"bool_masked_pos has shape {mask.shape}; the model has {positions} positions: give (batch, {positions})"
        )
    mask = mask != 0
    counts = np.unique(mask.sum(1))
    if len(counts) > 1:
        raise InputError(
            f"bool_masked_pos hides from {counts[0]} to {counts[-1]} positions of a row; the rows of a batch must hide "
            "equally many"
        )
    if counts[0] in (0, positions):
        hidden = "none" if counts[0] == 0 else "all"
        raise InputError(f"bool_masked_pos hides {hidden} of the {positions} positions; hide some of them")
    order = np.argsort(mask, 1, kind="stable").astype(np.int64)
    visible = positions - int(counts[0])
    return dict(zip(OUTPUTS, (order[:, :visible], order[:, visible:]), strict=True))
