"""Classifier-free guidance: the logits after a prompt move away from those after a negative prompt.

Sanchez et al. 2023, https://arxiv.org/abs/2306.17806; the numbers are those of transformers'
`UnbatchedClassifierFreeGuidanceLogitsProcessor`. Both texts get the same new tokens, each in a decoder of its own, so
that a step costs two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.generation.feed import pad_left
from isoform.runtimes.generation.processors import log_softmax
from isoform.runtimes.session import Rewinds, rewinds

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from isoform.runtimes.session import Decoder


class GuidedDecoder:
    """A `Decoder` over two: its logits are log-probabilities, b + scale · (a - b), of the prompts' and the others'."""

    def __init__(self, guided: Decoder, other: Decoder, scale: float, negatives: Sequence[Sequence[int]]) -> None:
        """`negatives`: what the other decoder reads where the guided one reads the prompts, a row for each."""
        self._guided, self._other, self._scale = guided, other, np.float32(scale)
        self._negatives: Sequence[Sequence[int]] | None = negatives

    def __len__(self) -> int:
        return len(self._guided)

    @property
    def rewinds(self) -> Rewinds:
        """See `session.rewinds`."""
        return rewinds(self._guided)

    def step(
        self,
        tokens: NDArray[Any] | Mapping[str, NDArray[Any]],
        *,
        mask: NDArray[Any] | None = None,
        positions: NDArray[Any] | None = None,
        last: int | None = 1,
    ) -> NDArray[np.float32]:
        """See `Decoder.step`; the first one has nothing but the prompts."""
        ours = log_softmax(self._guided.step(tokens, mask=mask, positions=positions, last=last))
        if self._negatives is not None:
            tokens, mask = pad_left(self._negatives)
            self._negatives, mask = None, None if mask.all() else mask
        theirs = log_softmax(self._other.step(tokens, mask=mask, positions=positions, last=last))
        logits: NDArray[np.float32] = self._scale * (ours - theirs) + theirs
        return logits

    def select(self, rows: NDArray[np.int64]) -> None:
        """See `Decoder.select`."""
        self._guided.select(rows)
        self._other.select(rows)

    def join(self, other: Decoder) -> None:
        """See `Decoder.join`."""
        if not isinstance(other, GuidedDecoder) or other._scale != self._scale:
            raise InputError("only rows that are guided alike can join")
        self._guided.join(other._guided)
        self._other.join(other._other)

    def rewind(self, counts: ArrayLike) -> None:
        """See `Decoder.rewind`."""
        self._guided.rewind(counts)
        self._other.rewind(counts)


def negative_prompts(
    given: Sequence[Sequence[int]] | None, prompts: Sequence[Sequence[int]], context: int | None
) -> list[list[int]]:
    """The negative prompt of every prompt: one for all, one for each, or the last token of each where none is given."""
    if given is None:
        return [list(prompt[-1:]) for prompt in prompts]
    if len(given) not in (1, len(prompts)):
        raise InputError(f"{len(given)} negative prompts for {len(prompts)} prompts; give one for all, or one for each")
    found = [list(row) for row in (given if len(given) == len(prompts) else [given[0]] * len(prompts))]
    for row in found:
        if not row:
            raise InputError("the negative prompt is empty; leave it out to guide away from each prompt's last token")
        if context is not None and len(row) > context:
            raise InputError(
                f"the negative prompt has {len(row)} tokens, and the model {context} positions; shorten it"
            )
    return found
