"""What every backend offers: arrays by port name in, arrays by port name out, and a decoder that holds its own cache.

Integer ports take int64 (any integer dtype is accepted), float outputs are float32. `attention_mask` is 1 for a token
and 0 for padding; what comes out at a padded slot is meaningless, though finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from isoform.signature import Signature


class Decoder(Protocol):
    """A batch of B rows being decoded; holds the keys and values of the P slots given so far (P = 0 at first)."""

    def step(
        self,
        input_ids: NDArray[Any],
        attention_mask: NDArray[Any] | None = None,
        position_ids: NDArray[Any] | None = None,
        *,
        all_logits: bool = False,
    ) -> NDArray[np.float32]:
        """Append T slots and return the logits of the last one, or of all T.

        Shapes: input_ids and position_ids (B, T), attention_mask (B, P+T), whose first P columns are those of the step
        before -> (B, V), or (B, T, V) with `all_logits`. A mask left out has tokens in all new slots, and positions
        left out count on from each row's last token: new tokens alone will do, best in the array of the step before.
        """
        ...


class SelectingDecoder(Decoder, Protocol):
    """A decoder that can take its rows apart, as a search by beams needs."""

    def select(self, rows: NDArray[np.int64]) -> None:
        """Go on with these rows, int64 (B',), in this order; one may appear several times.

        The rows of the masks to come are these.
        """
        ...


class Session(Protocol):
    """A loaded artifact. Close it, or use it as a context manager; closing twice is fine."""

    backend: str
    signature: Signature

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Run the whole model once: every input port of the signature by name -> its output ports by name."""
        ...

    def decoder(self, batch: int) -> Decoder:
        """Start decoding `batch` rows with an empty cache; only where the signature has states."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
