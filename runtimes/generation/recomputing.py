"""A decoder whose cache is computed anew when its text outgrows a length, beyond which all angles are others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

    from isoform.runtimes.session import Decoder


class RecomputingDecoder:
    """`Decoder` over token ids. The step with which the longest row has more than `beyond` tokens feeds all of them."""

    def __init__(self, make: Callable[[int], Decoder], rows: int, beyond: int) -> None:
        self._make, self._beyond = make, beyond
        self._decoder = make(rows)
        self._ids = self._mask = np.zeros((rows, 0), np.int64)

    def __len__(self) -> int:
        return len(self._decoder)

    def step(
        self,
        tokens: NDArray[Any] | Mapping[str, NDArray[Any]],
        *,
        mask: NDArray[Any] | None = None,
        positions: NDArray[Any] | None = None,
        last: int | None = 1,
    ) -> NDArray[np.float32]:
        """See `Decoder.step`; `positions` are refused, since those of the tokens before are not kept."""
        if not isinstance(tokens, np.ndarray) or positions is not None:
            raise InputError("a cache that is computed anew takes token ids without positions")
        before = self._longest()
        new = np.ones_like(tokens) if mask is None else mask
        self._ids = np.concatenate((self._ids, tokens), 1)
        self._mask = np.concatenate((self._mask, new), 1)
        if not 0 < before <= self._beyond < self._longest():
            return self._decoder.step(tokens, mask=mask, last=last)
        self._decoder = self._make(len(self._ids))
        return self._decoder.step(self._ids, mask=self._mask, last=tokens.shape[1] if last is None else last)

    def select(self, rows: NDArray[np.int64]) -> None:
        """See `Decoder.select`."""
        self._ids, self._mask = self._ids[rows], self._mask[rows]
        self._decoder.select(rows)

    def join(self, other: Decoder) -> None:
        """Refused: the rows of another decoder may have outgrown the length."""
        raise InputError("rows cannot join a decoder whose cache is computed anew")

    def rewind(self, counts: ArrayLike) -> None:
        """Refused: the tokens that stay may have been computed for a longer text."""
        raise InputError("a decoder whose cache is computed anew cannot be rewound")

    def keep_hidden_states(self) -> None:
        """Refused: those of the tokens before would be others after the cache was computed anew."""
        raise InputError(
            "contrastive search (penalty_alpha) compares hidden states, and those of this model change when a text "
            "outgrows its first length; pass penalty_alpha=None"
        )

    def hidden_states(self) -> NDArray[np.float32]:
        """Refused; see `keep_hidden_states`."""
        raise InputError("a decoder whose cache is computed anew keeps no hidden states")

    def _longest(self) -> int:
        return int(self._mask.sum(1).max(initial=0))
