"""Contrastive search: likely tokens whose hidden states are unlike those of the text so far (arXiv:2202.06417).

The ids are those of transformers' `_contrastive_search` (until 4.56) for the row alone. The model is fed every
candidate, one in each row of the batch, so that a token costs a step of `top_k` rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.generation.processors import Processor, log_softmax, nothing_but_numbers, softmax, some_token
from isoform.runtimes.session import DeepDecoder

if TYPE_CHECKING:
    from numpy.typing import NDArray


def deepened(decoder: object, backend: str) -> DeepDecoder:
    """The decoder, which keeps hidden states from now on."""
    if not isinstance(decoder, DeepDecoder):
        raise InputError(
            f"contrastive search (penalty_alpha) compares hidden states, and {backend} does not give them; use torch, "
            "onnxruntime or openvino, or pass penalty_alpha=None"
        )
    decoder.keep_hidden_states()
    return decoder


class Candidates:
    """The candidates for the next token of one text, and the directions of its hidden states so far."""

    def __init__(self, chain: Sequence[Processor], alpha: float, count: int) -> None:
        self._chain, self._alpha, self._count = chain, np.float32(alpha), count
        self._context = np.zeros((0, 0), np.float32)
        self._shares = np.zeros(0, np.float32)
        self._logs = np.zeros(0, np.float32)
        self.tokens: list[int] = []

    def begin(self, ids: Sequence[int], logits: NDArray[np.float32], hidden: NDArray[np.float32]) -> None:
        """Find candidates after a prompt. ids (L,), logits (V,), hidden (L, C)."""
        self._context = _directions(hidden)
        self._find(ids, logits)

    def choose(self, hidden: NDArray[np.float32]) -> tuple[int, float]:
        """The number of the best candidate, and the log-probability of its token; hidden (candidates, C)."""
        directions = _directions(hidden)
        likeness = (self._context @ directions.T).max(0)
        scores = (1 - self._alpha) * self._shares - self._alpha * likeness
        scores[np.isneginf(self._logs[self.tokens])] = -np.inf  # fewer may come than are candidates
        best = int(scores.argmax())
        self._context = np.concatenate((self._context, directions[best, None]))
        return best, float(self._logs[self.tokens[best]])

    def go_on(self, ids: Sequence[int], logits: NDArray[np.float32]) -> None:
        """Find candidates after the token that was chosen last."""
        self._find(ids, logits)

    def _find(self, ids: Sequence[int], logits: NDArray[np.float32]) -> None:
        scores, so_far = logits, np.array(ids, np.int64)
        for process in self._chain:
            scores = process(so_far, scores)
        nothing_but_numbers(scores)
        some_token(scores.max())
        shares = softmax(scores)
        self.tokens = np.argsort(-shares, kind="stable")[: self._count].tolist()
        self._shares, self._logs = shares[self.tokens], log_softmax(scores)


def _directions(hidden: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths: NDArray[np.float32] = np.linalg.norm(hidden, axis=-1, keepdims=True)
    return hidden / lengths
