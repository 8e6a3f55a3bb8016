"""What a step of the decoder is fed: the tokens of every row of its batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PADDING = 0
"""The token fed where no text is: every model has it, unlike some models' own, and nothing reads what it gives."""


class Feed(NamedTuple):
    """One step of the decoder.

    `rows` of its batch go on, in this order, None when all do as they are; then each forgets its last `forget` (B,)
    tokens, None when none does. `ids` (B, T) are their new tokens. `mask` (B, T) is 0 where a row gets none, None where
    all get tokens. `last` says of how many slots there are logits, as in `Decoder.step`.
    """

    rows: NDArray[np.int64] | None
    ids: NDArray[np.int64]
    mask: NDArray[np.int64] | None
    forget: NDArray[np.int64] | None = None
    last: int | None = 1


def pad_left(rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """ids and mask (B, T)."""
    ids, mask = _empty(rows)
    for n, row in enumerate(rows):
        ids[n, ids.shape[1] - len(row) :] = row
        mask[n, ids.shape[1] - len(row) :] = 1
    return ids, mask


def pad_right(rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """ids and mask (B, T)."""
    ids, mask = _empty(rows)
    for n, row in enumerate(rows):
        ids[n, : len(row)] = row
        mask[n, : len(row)] = 1
    return ids, mask


def _empty(rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    shape = len(rows), max(map(len, rows))
    return np.full(shape, PADDING, np.int64), np.zeros(shape, np.int64)
