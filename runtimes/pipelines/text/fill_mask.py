"""fill-mask: the likeliest tokens for each mask of a text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.generation.processors import softmax
from isoform.runtimes.pipelines.base import InputPiece
from isoform.runtimes.pipelines.scores import whole
from isoform.runtimes.pipelines.text.text_encoder import TextEncoder
from isoform.runtimes.pipelines.text.tokenizer_options import tokenizer_options

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Encoding


@dataclass(frozen=True, slots=True, kw_only=True)
class FillMaskOptions:
    """The parameters of a call."""

    top_k: int | None = None  # candidates per mask, 5 unless set
    targets: str | Sequence[str] | None = None  # only these; one that is not a token stands for its first token
    tokenizer_kwargs: Mapping[str, Any] | None = None  # truncation, max_length

    def __post_init__(self) -> None:
        whole("top_k", self.top_k, none="5")


@dataclass(frozen=True, slots=True)
class _FillMaskCall:
    mask: int
    top_k: int
    wanted: NDArray[np.int64] | None
    tokenizing: dict[str, Any]


class FillMask(TextEncoder):
    """`pipe("It is a [MASK].")` -> [{"score", "token", "token_str", "sequence"}, …], the likeliest first.

    A text with several masks gives a list of such lists, each with the other masks left in place. A list that holds
    one text gives that text's answer, not a list of one: so does transformers.
    """

    task: ClassVar[str] = "fill-mask"
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    options: ClassVar[type[FillMaskOptions]] = FillMaskOptions

    def _shaped(self, answer: Any, inputs: Any, parameters: Mapping[str, Any]) -> Any:
        """A list of one text gives that text's answer."""
        return answer[0] if isinstance(inputs, list) and len(inputs) == 1 else answer

    def begin(self, options: FillMaskOptions) -> _FillMaskCall:
        """See `Pipeline.begin`."""
        mask = self.text_tokenizer.token_id("mask_token")
        if mask is None:
            raise InputError("the tokenizer has no mask token, so this model fills no masks")
        wanted = None if options.targets is None else self._targets(options.targets)
        tokenizing = tokenizer_options(options.tokenizer_kwargs, "tokenizer_kwargs")
        return _FillMaskCall(mask, 5 if options.top_k is None else options.top_k, wanted, tokenizing)

    def prepare(self, items: Sequence[str], call: _FillMaskCall) -> Iterable[Iterable[Any]]:
        """See `BatchPipeline.prepare`."""
        rows = self.encode(items, **call.tokenizing)
        for text, row in zip(items, rows, strict=True):
            if call.mask not in row.ids:
                token = self.text_tokenizer.special["mask_token"]
                raise InputError(f"no {token} in the text {text!r:.60}; put one where to fill")
        return ([row] for row in rows)

    def finish(self, item: str, pieces: Sequence[InputPiece], call: _FillMaskCall) -> list[Any]:
        """See `BatchPipeline.finish`."""
        return self._candidates(pieces[0].value, pieces[0].output["logits"], call.mask, call.top_k, call.wanted)

    def _candidates(
        self, row: Encoding, logits: NDArray[np.float32], mask: int, top_k: int, wanted: NDArray[np.int64] | None
    ) -> list[Any]:
        """Shapes: logits (T, V)."""
        ids = np.array(row.ids, np.int64)
        places = np.flatnonzero(ids == mask)
        single = len(places) == 1
        pad = self.text_tokenizer.token_id("pad_token")
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
                        "token_str": self.text_tokenizer.decode([token]),
                        "sequence": self.text_tokenizer.decode(filled[filled != pad], skip_special_tokens=single),
                    }
                )
            answer.append(found)
        return answer[0] if single else answer

    def _targets(self, targets: str | Sequence[str]) -> NDArray[np.int64]:
        vocabulary, ids = self.text_tokenizer.vocabulary(), []
        for target in [targets] if isinstance(targets, str) else targets:
            if target in vocabulary:
                ids.append(vocabulary[target])
                continue
            (row,) = self.text_tokenizer.encode([target], add_special_tokens=False)
            ids += row.ids[:1]
        if not ids:
            raise InputError(f"targets={targets!r} holds no token of the vocabulary; give at least one")
        self._check_ids(ids)
        return np.unique(np.array(ids, np.int64))
