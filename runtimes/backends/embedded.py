"""A decoder over embeddings that is fed token ids: the part before it looks them up, one step at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from isoform.errors import InputError
from isoform.runtimes.session import DeepDecoder, rewinds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from isoform.runtimes.session import Decoder, Rewinds


class EmbeddedDecoder:
    """A `Decoder` whose steps take ids. `embed`: ids (B, T) -> embeddings (B, T, C).

    `placed`: the embeddings (B, P, C) of the first P slots, among which stand features of pictures or sound; the first
    steps are fed these in order, and their ids only count.
    """

    def __init__(
        self,
        inner: Decoder,
        embed: Callable[[NDArray[Any]], NDArray[np.float32]],
        placed: NDArray[np.float32] | None = None,
    ) -> None:
        self._inner, self._embed, self._placed = inner, embed, placed

    def __len__(self) -> int:
        return len(self._inner)

    def step(
        self,
        tokens: NDArray[Any] | Mapping[str, NDArray[Any]],
        *,
        mask: NDArray[Any] | None = None,
        positions: NDArray[Any] | None = None,
        last: int | None = 1,
    ) -> NDArray[np.float32]:
        """See `Decoder.step`."""
        if isinstance(tokens, Mapping):
            return self._inner.step(tokens, mask=mask, positions=positions, last=last)
        return self._inner.step(self._next(tokens), mask=mask, positions=positions, last=last)

    def _next(self, tokens: NDArray[Any]) -> NDArray[np.float32]:
        """The embeddings of the next slots: those placed, as far as they go, then those of the ids."""
        import numpy as np

        if self._placed is None:
            return self._embed(tokens)
        count = tokens.shape[1]
        placed, left = self._placed[:, :count], self._placed[:, count:]
        self._placed = left if left.shape[1] else None
        if placed.shape[1] == count:
            return np.ascontiguousarray(placed)
        return np.concatenate((placed, self._embed(tokens[:, placed.shape[1] :])), 1)

    def select(self, rows: NDArray[np.int64]) -> None:
        """See `Decoder.select`."""
        if self._placed is not None:
            self._placed = self._placed[rows]
        self._inner.select(rows)

    def keep_hidden_states(self) -> None:
        """See `GraphDecoder.keep_hidden_states`."""
        self._deep().keep_hidden_states()

    def hidden_states(self) -> NDArray[np.float32]:
        """See `GraphDecoder.hidden_states`."""
        return self._deep().hidden_states()

    def _deep(self) -> DeepDecoder:
        if not isinstance(self._inner, DeepDecoder):
            raise InputError("the decoder of this model gives no hidden states; use torch, onnxruntime or openvino")
        return self._inner

    def join(self, other: Decoder) -> None:
        """See `Decoder.join`; both must have been fed their prompts."""
        if not isinstance(other, EmbeddedDecoder) or self._placed is not None or other._placed is not None:
            raise InputError("only decoders of one session that were fed their prompts can join")
        self._inner.join(other._inner)

    def rewind(self, counts: ArrayLike) -> None:
        """See `Decoder.rewind`."""
        self._inner.rewind(counts)

    @property
    def rewinds(self) -> Rewinds:
        """See `session.rewinds`."""
        return rewinds(self._inner)
