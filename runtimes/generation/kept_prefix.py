"""A decoder of one row that keeps its KV cache from one text to the next, and is fed only what is new."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.session import Rewinds, rewinds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

    from isoform.runtimes.session import Decoder

PIECE = 512  # tokens of a prompt that go in between two looks at whether to stop


class Stopped(Exception):
    """A prompt was stopped between two of its pieces; what has gone in is kept."""


class PrefixDecoder:
    """`Decoder` of one row over token ids. After `begin`, the next step takes a whole prompt.

    Of that prompt, the tokens that the cache begins with already are not computed again: the cache is rewound to the
    end of what both have in common. Where a model's states cannot be rewound, the prompt is computed anew, and
    `anew` says why. `reused` and `stepped` count tokens since `begin`.
    """

    def __init__(self, make: Callable[[], Decoder], stopped: Callable[[], bool] = lambda: False) -> None:
        """`make` gives a decoder of one row that has not begun. `stopped` is asked between the pieces of a prompt."""
        self._make, self._stopped = make, stopped
        self._decoder: Decoder | None = None
        self._held: list[int] | None = []  # the ids in the cache; None where they are not those of one row
        self._whole = True  # whether the next step takes a whole prompt
        self.reused = self.stepped = 0
        self.anew: str | None = None

    @property
    def held(self) -> int:
        """How many tokens the cache holds."""
        return len(self._held or ())

    @property
    def rewinds(self) -> Rewinds:
        """See `session.rewinds`."""
        return rewinds(self._ready())

    def begin(self, anew: str | None = None) -> None:
        """Take a whole prompt in the next step; `anew`: why it is computed without the cache."""
        self._whole, self.reused, self.stepped, self.anew = True, 0, 0, None
        if anew is not None and self._held:
            self.anew = anew
            self.forget()

    def forget(self) -> None:
        """Give the cache back."""
        self._decoder, self._held = None, []

    def __len__(self) -> int:
        return 1 if self._decoder is None else len(self._decoder)

    def step(
        self,
        tokens: NDArray[Any] | Mapping[str, NDArray[Any]],
        *,
        mask: NDArray[Any] | None = None,
        positions: NDArray[Any] | None = None,
        last: int | None = 1,
    ) -> NDArray[np.float32]:
        """See `Decoder.step`; the first one after `begin` takes the whole prompt."""
        plain = isinstance(tokens, np.ndarray) and tokens.shape[:1] == (1,) and mask is None and positions is None
        try:
            if plain and last == 1 and self._whole and isinstance(tokens, np.ndarray):
                self._whole = False
                return self._prompt(tokens)
            if self._whole:
                self.forget()
            self._whole = False
            logits = self._ready().step(tokens, mask=mask, positions=positions, last=last)
        except Stopped:
            raise
        except BaseException:  # the decoder is of no further use
            self.forget()
            raise
        if plain and isinstance(tokens, np.ndarray) and self._held is not None:
            self._held += tokens[0].tolist()
            self.stepped += tokens.shape[1]
        else:
            self._held = None
        return logits

    def select(self, rows: NDArray[np.int64]) -> None:
        """See `Decoder.select`; the next text begins with an empty cache."""
        self._held = None
        self._ready().select(rows)

    def join(self, other: Decoder) -> None:
        """Refused: the cache that is kept is of one row."""
        raise InputError("rows cannot join a decoder that keeps the cache of one conversation")

    def rewind(self, counts: ArrayLike) -> None:
        """See `Decoder.rewind`."""
        self._ready().rewind(counts)
        if self._held is not None:
            del self._held[len(self._held) - int(np.max(counts)) :]

    def _ready(self) -> Decoder:
        if self._decoder is None:
            self._decoder, self._held = self._make(), []
        return self._decoder

    def _prompt(self, tokens: NDArray[Any]) -> NDArray[np.float32]:
        """Feed what the cache does not begin with; the last token always, for its logits."""
        ids: list[int] = tokens[0].tolist()
        self.reused = self._rewound(ids)
        decoder = self._ready()
        assert self._held is not None
        piece = len(ids) if getattr(decoder, "reads_prompts_whole", False) else PIECE
        logits = np.empty((0, 0), np.float32)
        for start in range(self.reused, len(ids), piece):
            if self._stopped():
                raise Stopped
            part = ids[start : start + piece]
            logits = decoder.step(np.array([part], np.int64))
            self._held += part
            self.stepped += len(part)
        return logits

    def _rewound(self, ids: Sequence[int]) -> int:
        """Rewind the cache to what it has in common with a prompt -> how many tokens that are."""
        if self._decoder is None or not self._held:
            self.forget()
            return 0
        same = 0
        for same, (mine, new) in enumerate(zip(self._held, ids[:-1], strict=False), 1):
            if mine != new:
                same -= 1
                break
        beyond = len(self._held) - same
        if beyond and same:
            try:
                self._decoder.rewind(beyond)
            except InputError as error:
                self.anew, same = str(error), 0
            else:
                del self._held[same:]
        if not same:
            self.forget()
        return same
