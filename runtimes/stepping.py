"""What the decoders of all graph backends do alike: check a step, and take long prompts in pieces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from isoform.errors import InputError
from isoform.runtimes.inputs import checked
from isoform.signature import TOTAL, CacheLayout, Signature

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LOGITS = 2**26  # floats of logits that one pass may give when only the last slot's are asked for: 256 MiB


def cache_of(signature: Signature) -> CacheLayout:
    """Raises InputError for a model that decodes nothing."""
    if signature.cache is None:
        raise InputError("this model keeps no cache and decodes nothing; call run")
    return signature.cache


class SteppingDecoder(ABC):
    """A `Decoder` over a graph: subclasses run one pass and keep the cache."""

    def __init__(self, signature: Signature, batch: int) -> None:
        import numpy as np

        self.cache = cache_of(signature)
        if batch < 1:
            raise InputError(f"a batch of {batch} rows; at least one is needed")
        past = {port.name for port in self.cache.ports("past_key_values", 0)}
        self._ports = Signature(tuple(port for port in signature.inputs if port.name not in past), signature.outputs)
        self._names = [port.name for port in self._ports.inputs]
        self._mask = np.zeros((batch, 0), np.int64)

    def step(
        self,
        input_ids: NDArray[Any],
        attention_mask: NDArray[Any],
        position_ids: NDArray[Any],
        *,
        all_logits: bool = False,
    ) -> NDArray[np.float32]:
        """See `Decoder.step`. After an error the decoder is of no further use."""
        import numpy as np

        given = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        arrays = (
            given if self._is_plain(given) else checked(self._ports, {n: given.get(n, input_ids) for n in self._names})
        )
        ids, mask, (batch, past) = arrays["input_ids"], arrays["attention_mask"], self._mask.shape
        length = ids.shape[1]
        if ids.shape[0] != batch or length == 0:
            raise InputError(f"input_ids has shape {ids.shape}; this decoder takes ({batch}, T), T at least 1")
        if mask.shape[1] != past + length:
            raise InputError(f"attention_mask spans {mask.shape[1]} slots, not {past} cached and {length} new ones")
        if (mask[:, :past] != self._mask).any():
            raise InputError(
                f"attention_mask differs in its first {past} columns from the step before; only append to it"
            )
        self._mask = mask
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

    def _piece(self, total: int) -> int:
        """The new slots that one pass may take for the logits of the last; `total` is with the past and all of them."""
        vocabulary = self._ports.outputs[0].axes[-1]
        return max(LOGITS // (len(self._mask) * vocabulary), 1) if isinstance(vocabulary, int) else 512

    def _is_plain(self, given: Mapping[str, Any]) -> bool:
        """Whether this is one token per row in arrays as they should be: nearly every step is, and `checked` slow."""
        import numpy as np

        batch, past = self._mask.shape
        sizes = {"attention_mask": past + 1}
        return given.keys() == set(self._names) and all(
            type(array) is np.ndarray
            and array.shape == (batch, sizes.get(name, 1))
            and array.dtype == np.int64
            and array.flags.c_contiguous
            for name, array in given.items()
        )

    @abstractmethod
    def _pass(
        self, feeds: dict[str, NDArray[Any]], past: int, length: int, *, all_logits: bool, needed: bool
    ) -> NDArray[np.float32]:
        """One pass over `length` slots after `past`; extends the cache.

        Returns (B, V) of the last slot, or (B, T, V) with `all_logits`; anything when the logits are not `needed`.
        """
