"""What every backend offers: arrays by port name in, arrays by port name out, and a decoder that holds its own states.

Integer ports take int64 (any integer dtype is accepted), float outputs are float32. A mask is 1 for a token and 0 for
padding; what comes out at a padded slot is meaningless, though finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from isoform.signature import Signature

Rewinds = Literal["rows", "together", "never"]
"""How a decoder forgets tokens: as many of each row as is said, equally many of all rows, or not at all."""


class Decoder(Protocol):
    """B rows that are being decoded, and the states of their slots so far (none at first).

    A slot holds a token or padding. Where a token stands in its row follows from the mask alone, so padding may lie
    anywhere in a row. A decoder whose signature has no port for a mask takes no padding: its rows are of one length.
    After an error a decoder is of no further use.
    """

    def __len__(self) -> int:
        """The number of rows."""
        ...

    def step(
        self,
        tokens: NDArray[Any] | Mapping[str, NDArray[Any]],
        *,
        mask: NDArray[Any] | None = None,
        positions: NDArray[Any] | None = None,
        last: int | None = 1,
    ) -> NDArray[np.float32]:
        """Append T slots to every row.

        `tokens`: ids (B, T); embeddings (B, T, C) where the model takes those; or arrays by port name, where it takes
        several for each slot. `mask` (B, T) is that of the new slots; without it, all hold tokens. `positions`:
        (B, T), or the shape of their port; without them, they count on from the last token of each row.

        Returns the logits (B, V) of the last slot; those of the `last` slots (B, last, V); of all for None.

        A loop is fastest with nothing but tokens (B, 1), in the array of the step before.
        """
        ...

    def select(self, rows: NDArray[np.int64]) -> None:
        """Go on with these rows, int64 (B',), in this order; one may appear several times."""
        ...

    def join(self, other: Decoder) -> None:
        """Append the rows of another decoder of the same session, which is of no further use then.

        Without a port for a mask, both must have as many slots. Raises InputError for what does not fit.
        """
        ...

    def rewind(self, counts: ArrayLike) -> None:
        """Forget the last tokens of each row: so many of all, or by row, (B,).

        Without a port for a mask, all rows forget equally many. Raises InputError for more than a row holds, and for a
        state that cannot be rewound (recurrent, or a window of the last slots).
        """
        ...


def rewinds(decoder: Decoder) -> Rewinds:
    """How a decoder forgets tokens, which its attribute of this name says; one without it does not."""
    found: Rewinds = getattr(decoder, "rewinds", "never")
    return found


@runtime_checkable
class DeepDecoder(Protocol):
    """What a `Decoder` has besides whose model gives the hidden states of its last layer, which become logits."""

    def keep_hidden_states(self) -> None:
        """Keep them from now on; before the first step. Raises InputError where this form of the model gives none."""
        ...

    def hidden_states(self) -> NDArray[np.float32]:
        """Those of the slots of the last step, (B, T, C)."""
        ...


@runtime_checkable
class Session(Protocol):
    """A loaded artifact. Close it, or use it as a context manager; closing twice is fine."""

    backend: str
    signature: Signature

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Run the whole model once: every input port of the signature by name -> its output ports by name."""
        ...

    def decoder(self, rows: int | Mapping[str, NDArray[Any]]) -> Decoder:
        """Start decoding so many rows; only where the signature has states. Any number of decoders may be alive.

        Where the model reads what is the same in every step, such as encoder states: those arrays by port name, with a
        row for each to decode.
        """
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
