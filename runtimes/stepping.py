"""What the decoders of all graph backends do alike: check a step, and take long prompts in pieces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.inputs import checked
from isoform.signature import TOTAL, USE_CACHE, CacheLayout, Signature

if TYPE_CHECKING:
    from numpy.typing import NDArray

_INT64 = np.dtype(np.int64)
LOGITS = 2**26  # floats of logits that one pass may give when only the last slot's are asked for: 256 MiB


def cache_of(signature: Signature) -> CacheLayout:
    """Raises InputError for a model that decodes nothing."""
    if signature.cache is None:
        raise InputError("this model keeps no cache and decodes nothing; call run")
    return signature.cache


class SteppingDecoder(ABC):
    """A `Decoder` over a graph: subclasses run one pass and keep the cache."""

    def __init__(self, signature: Signature, batch: int) -> None:
        self.cache = cache_of(signature)
        if batch < 1:
            raise InputError(f"a batch of {batch} rows; at least one is needed")
        past = {port.name for port in self.cache.ports("past_key_values", 0)}
        self._ports = Signature(tuple(port for port in signature.inputs if port.name not in past), signature.outputs)
        self._names = [port.name for port in self._ports.inputs]
        self._usual = set(self._names) == {"input_ids", "attention_mask", "position_ids"}
        self._append(np.zeros((batch, 0), np.int64))

    def step(
        self,
        input_ids: NDArray[Any],
        attention_mask: NDArray[Any],
        position_ids: NDArray[Any],
        *,
        all_logits: bool = False,
    ) -> NDArray[np.float32]:
        """See `Decoder.step`. After an error the decoder is of no further use."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        if self._is_plain(input_ids, attention_mask, position_ids):
            self._append(attention_mask)
            return self._pass(given, attention_mask.shape[1] - 1, 1, all_logits=all_logits, needed=True)
        arrays = checked(self._ports, {name: given.get(name, input_ids) for name in self._names})
        ids, mask, (batch, past) = arrays["input_ids"], arrays["attention_mask"], self._mask.shape
        length = ids.shape[1]
        if ids.shape[0] != batch or length == 0:
            raise InputError(f"input_ids has shape {ids.shape}; this decoder takes ({batch}, T), T at least 1")
        if mask.shape[1] != past + length:
            raise InputError(f"attention_mask spans {mask.shape[1]} slots, not {past} cached and {length} new ones")
        if mask[:, :past].tobytes() != self._known:
            raise InputError(
                f"attention_mask differs in its first {past} columns from the step before; only append to it"
            )
        self._append(mask)
        piece = length if all_logits else self._piece(past + length)
        if length <= piece:
            return self._pass(arrays, past, length, all_logits=all_logits, needed=True)
        for start in range(0, length, piece):
            end = min(start + piece, length)
            feeds = {
                port.name: np.ascontiguousarray(
                    mask[:, : past + end] if TOTAL in port.axes else arrays[port.name][:, start:end]
                )
                for port in self._ports.inputs
            }
            logits = self._pass(feeds, past + start, end - start, all_logits=all_logits, needed=end == length)
        return logits

    def select(self, rows: NDArray[np.int64]) -> None:
        """See `Decoder.select`."""
        order = chosen(rows, len(self._mask))
        self._reorder(order, self._mask.shape[1])
        self._append(self._mask[order])

    def _piece(self, total: int) -> int:
        """The new slots that one pass may take for the logits of the last; `total` is with the past and all of them."""
        vocabulary = self._ports.outputs[0].axes[-1]
        return max(LOGITS // (len(self._mask) * vocabulary), 1) if isinstance(vocabulary, int) else 512

    def _is_plain(self, ids: Any, mask: Any, positions: Any) -> bool:
        """Whether this is one token per row in arrays as they should be: nearly every step is, and `checked` is slow.

        So is all Python between two passes, which leave nothing of it in the processor's caches.
        """
        batch, past = self._mask.shape
        return (
            self._usual
            and type(ids) is type(mask) is type(positions) is np.ndarray
            and ids.dtype is mask.dtype is positions.dtype is _INT64
            and ids.shape == positions.shape == (batch, 1)
            and mask.shape == (batch, past + 1)
            and mask[:, :past].tobytes() == self._known
        )

    def _append(self, mask: NDArray[np.int64]) -> None:
        self._mask, self._known = mask, mask.tobytes()

    @abstractmethod
    def _pass(
        self, feeds: dict[str, NDArray[Any]], past: int, length: int, *, all_logits: bool, needed: bool
    ) -> NDArray[np.float32]:
        """One pass over `length` slots after `past`; extends the cache.

        Returns (B, V) of the last slot, or (B, T, V) with `all_logits`; anything when the logits are not `needed`.
        """

    @abstractmethod
    def _reorder(self, rows: NDArray[np.int64], past: int) -> None:
        """Make the cache, of `past` slots, that of these rows of it."""


class MemoryDecoder(ABC):
    """The decoder of an encoder-decoder model, whose rows attend to a memory each.

    Its rows have no padding: token t of a step stands at position P + t. Subclasses run one pass and keep the caches.
    """

    def __init__(self, signature: Signature, memory: Mapping[str, NDArray[Any]]) -> None:
        """`memory` has what the signature's ports take from an encoder, by name."""
        import numpy as np

        self.cache = cache_of(signature)
        cached = {port.name for port in self.cache.ports("past_key_values", 0)} | {USE_CACHE, "input_ids"}
        ports = tuple(port for port in signature.inputs if port.name not in cached)
        self._signature = signature
        self._memory = checked(Signature(ports, ()), {port.name: memory[port.name] for port in ports})
        self._rows = len(next(iter(self._memory.values())))
        self._places = np.arange(self._rows)  # the row of the memory that each row attends to
        self._past = 0
        if self._rows < 1:
            raise InputError("the memory has no rows; encode something first")

    def step(self, input_ids: NDArray[Any], *, all_logits: bool = False) -> NDArray[np.float32]:
        """Append T tokens to each of the B rows. Shapes: input_ids (B, T) -> (B, V) of the last, or (B, T, V)."""
        ids = np.ascontiguousarray(input_ids, np.int64)
        if ids.ndim != 2 or len(ids) != self._rows or not ids.shape[1]:
            raise InputError(f"input_ids has shape {ids.shape}; this decoder takes ({self._rows}, T), T at least 1")
        logits = self._pass(ids, all_logits=all_logits)
        self._past += ids.shape[1]
        return logits

    def select(self, rows: NDArray[np.int64]) -> None:
        """Go on with these rows, in this order; one may appear several times."""
        order = chosen(rows, self._rows)
        if np.array_equal(order, np.arange(self._rows)):
            return
        places = self._places[order]
        # Rows side by side may share a row of the memory, if it has no mask and the same number share each.
        shared = places[np.flatnonzero(np.diff(places, prepend=-1))]
        count, left = divmod(len(order), len(shared))
        if left or not self._past or len(self._memory) > 1 or (np.repeat(shared, count) != places).any():
            shared, count = places, 1
        kept = None if np.array_equal(shared, np.arange(len(self))) else shared
        if kept is not None:
            self._memory = {name: array[kept] for name, array in self._memory.items()}
        self._reorder(order, kept)
        self._rows, self._places = len(order), np.repeat(np.arange(len(shared)), count)

    def __len__(self) -> int:
        """The rows of the memory."""
        return len(next(iter(self._memory.values())))

    @abstractmethod
    def _pass(self, ids: NDArray[np.int64], *, all_logits: bool) -> NDArray[np.float32]:
        """One pass after `_past` slots; extends the cache. Returns (B, V) of the last slot, or (B, T, V)."""

    @abstractmethod
    def _reorder(self, rows: NDArray[np.int64], shared: NDArray[np.int64] | None) -> None:
        """Make the cache of the tokens that of these rows, and that of the memory that of `shared` unless it stays.

        `_memory` has those rows already.
        """


def chosen(rows: Any, count: int) -> NDArray[np.int64]:
    """Numbers of rows, int64 (B',). Raises InputError for one that is none of `count`, and for no rows."""
    order = np.asarray(rows)
    if order.ndim != 1 or not order.size or order.dtype.kind not in "iu" or order.min() < 0 or order.max() >= count:
        raise InputError(f"rows to go on with are {order.tolist()}; this decoder has rows 0 to {count - 1}")
    return order.astype(np.int64)
