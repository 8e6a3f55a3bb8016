"""Which tokens may come next where a text carries timestamps: Whisper's rules, as a logits processor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.generation.processors import Processor


def timestamps(begin: int, first: int, no_timestamps: int, eos: int, latest_start: int | None) -> Processor:
    """Timestamps come in pairs around each segment, never go back, and win where they are likelier than any text.

    `begin` is the length of the prompt, `first` the token of 0.00 s; all tokens from there on are timestamps. Tokens
    below `eos` are text. `latest_start` is the last timestamp, counted from `first`, that a text may begin with.
    """

    def apply(ids: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        out, made = scores.copy(), ids[begin:]
        out[no_timestamps] = -np.inf
        times = made[made >= first]
        just_now = len(made) >= 1 and made[-1] >= first
        before = len(made) < 2 or made[-2] >= first
        if just_now and before:
            out[first:] = -np.inf  # a pair is complete: text follows
        elif just_now:
            out[:eos] = -np.inf  # half a pair: the other half, or the end
        if len(times):
            # The second of a pair may be the same moment; otherwise time goes on.
            out[first : times[-1] + (0 if just_now and not before else 1)] = -np.inf
        if not len(made):
            out[:first] = -np.inf
            if latest_start is not None:
                out[first + latest_start + 1 :] = -np.inf
        most = out[first:].max()
        if np.isfinite(most) and most + np.log(np.exp(out[first:] - most).sum()) > out[:first].max():
            out[:first] = -np.inf
        return out

    return apply
