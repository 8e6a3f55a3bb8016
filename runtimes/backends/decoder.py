"""What the decoders of all graph backends do alike: check a step, and take long prompts in pieces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.backends.inputs import checked
from isoform.signature import TOTAL, Signature, State

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOGITS = 2**26  # floats of logits that one pass may give when only the last slot's are asked for: 256 MiB


def states_of(signature: Signature) -> tuple[State, ...]:
    """Raises InputError for a model that decodes nothing."""
    if not signature.states:
        raise InputError("this model keeps no cache and decodes nothing; call run")
    return signature.states


class SteppingDecoder(ABC):
    """A `Decoder` over a graph: subclasses run one pass and keep the cache."""

    def __init__(self, signature: Signature, batch: int) -> None:
        self.states = states_of(signature)
        if batch < 1:
            raise InputError(f"a batch of {batch} rows; at least one is needed")
        self._ports = Signature(signature.given, signature.results, sizes=signature.sizes)
        self._mask = np.zeros((batch, 0), np.int64)  # of the slots so far
        self._at = np.full(batch, -1)  # the position of each row's last token

    def step(
        self,
        input_ids: NDArray[Any],
        attention_mask: NDArray[Any] | None = None,
        position_ids: NDArray[Any] | None = None,
        *,
        all_logits: bool = False,
    ) -> NDArray[np.float32]:
        """See `Decoder.step`. After an error the decoder is of no further use."""
        ids, (batch, past) = np.asarray(input_ids), self._mask.shape
        if ids.ndim != 2 or len(ids) != batch or not ids.shape[1]:
            raise InputError(f"input_ids has shape {ids.shape}; this decoder takes ({batch}, T), T at least 1")
        length = ids.shape[1]
        given = {
            "input_ids": ids,
            "attention_mask": extended(self._mask, length) if attention_mask is None else attention_mask,
            "position_ids": following(self._at, length) if position_ids is None else position_ids,
        }
        arrays = checked(self._ports, {port.name: given.get(port.name, ids) for port in self._ports.inputs})
        mask = arrays["attention_mask"]
        if mask.shape[1] != past + length:
            raise InputError(f"attention_mask spans {mask.shape[1]} slots, not {past} cached and {length} new ones")
        if not np.array_equal(mask[:, :past], self._mask):
            raise InputError(
                f"attention_mask differs in its first {past} columns from the step before; only append to it"
            )
        if "position_ids" in arrays:
            self._at = np.maximum(self._at, np.where(mask[:, past:], arrays["position_ids"], -1).max(1))
        self._mask = mask if attention_mask is None else mask.copy()  # the caller may write into its own
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
        self._mask, self._at = self._mask[order], self._at[order]

    def _piece(self, total: int) -> int:
        """The new slots that one pass may take for the logits of the last; `total` is with the past and all of them."""
        vocabulary = self._ports.outputs[0].axes[-1]
        return max(LOGITS // (len(self._mask) * vocabulary), 1) if isinstance(vocabulary, int) else 512

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

        self.states = states_of(signature)
        ports = tuple(port for port in signature.given if port.role != "tokens")
        switch = signature.port("switch")
        self._switch = "" if switch is None else switch.name
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


def extended(mask: NDArray[Any], length: int) -> NDArray[np.int64]:
    """A mask (B, P) and `length` more tokens in each row -> (B, P + length)."""
    return np.concatenate((mask, np.ones((len(mask), length), np.int64)), 1)


def following(at: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """The next positions (B, length) of rows whose last token stands `at` (B,)."""
    return at[:, None] + np.arange(1, length + 1)


def chosen(rows: Any, count: int) -> NDArray[np.int64]:
    """Numbers of rows, int64 (B',). Raises InputError for one that is none of `count`, and for no rows."""
    order = np.asarray(rows)
    if order.ndim != 1 or not order.size or order.dtype.kind not in "iu" or order.min() < 0 or order.max() >= count:
        raise InputError(f"rows to go on with are {order.tolist()}; this decoder has rows 0 to {count - 1}")
    return order.astype(np.int64)
