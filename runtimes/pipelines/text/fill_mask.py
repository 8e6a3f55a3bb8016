"""fill-mask: the likeliest tokens for each mask of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.generation.processors import softmax
from isoform.runtimes.pipelines.base import Pipeline, tokenizer_options

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Encoding


class FillMask(Pipeline):
    """`pipe("It is a [MASK].")` -> [{"score", "token", "token_str", "sequence"}, …], the likeliest first.

    A text with several masks gives a list of such lists, each with the other masks left in place. A list that holds
    one text gives that text's answer, not a list of one: so does transformers.
    """

    task: ClassVar[str] = "fill-mask"
    outputs: ClassVar[tuple[str, ...]] = ("logits",)

    def __call__(self, inputs: Any, *, batch_size: int | None = None, **parameters: Any) -> Any:
        """A text or a list of texts -> candidates for each mask."""
        answers = super().__call__(inputs, batch_size=batch_size, **parameters)
        return answers[0] if isinstance(inputs, list) and len(inputs) == 1 else answers

    def _answer(
        self,
        items: Sequence[str],
        batch_size: int | None,
        *,
        top_k: int | None = None,
        targets: str | Sequence[str] | None = None,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """`top_k` candidates per mask (5 unless set). `targets`: only these; one that is not a token stands for its
        first token. `tokenizer_kwargs`: truncation, max_length."""
        if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
            raise InputError(f"top_k={top_k!r} must be a whole number of at least 1")
        mask = self.tokenizer.token_id("mask_token")
        if mask is None:
            raise InputError("the tokenizer has no mask token, so this model fills no masks")
        wanted = None if targets is None else self._targets(targets)
        rows = self._encode(items, **tokenizer_options(tokenizer_kwargs, "tokenizer_kwargs"))
        for text, row in zip(items, rows, strict=True):
            if mask not in row.ids:
                token = self.tokenizer.special["mask_token"]
                raise InputError(f"no {token} in the text {text!r:.60}; put one where to fill")
        return [
            self._candidates(row, out["logits"], mask, 5 if top_k is None else top_k, wanted)
            for row, out in zip(rows, self._forward(rows, batch_size), strict=True)
        ]

    def _candidates(
        self, row: Encoding, logits: NDArray[np.float32], mask: int, top_k: int, wanted: NDArray[np.int64] | None
    ) -> list[Any]:
        """Shapes: logits (T, V)."""
        ids = np.array(row.ids, np.int64)
        places = np.flatnonzero(ids == mask)
        single = len(places) == 1
        pad = self.tokenizer.token_id("pad_token")
        answer = []
        for place in places:
            scores = softmax(logits[place])
            tokens = np.arange(len(scores)) if wanted is None else wanted
            best = np.argsort(-scores[tokens], kind="stable")[:top_k]
            found = []
            for token in tokens[best].tolist():
                filled = ids.copy()
                filled[place] = token
                found.append(
                    {
                        "score": float(scores[token]),
                        "token": token,
                        "token_str": self.tokenizer.decode([token]),
                        "sequence": self.tokenizer.decode(filled[filled != pad], skip_special_tokens=single),
                    }
                )
            answer.append(found)
        return answer[0] if single else answer

    def _targets(self, targets: str | Sequence[str]) -> NDArray[np.int64]:
        vocabulary, ids = self.tokenizer.vocabulary(), []
        for target in [targets] if isinstance(targets, str) else targets:
            if target in vocabulary:
                ids.append(vocabulary[target])
                continue
            (row,) = self.tokenizer.encode([target], add_special_tokens=False)
            ids += row.ids[:1]
        if not ids:
            raise InputError(f"targets={targets!r} holds no token of the vocabulary; give at least one")
        return np.unique(np.array(ids, np.int64))
