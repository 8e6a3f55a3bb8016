"""text-classification: the label of a text or of a pair of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.generation.processors import softmax
from isoform.runtimes.pipelines.base import Pipeline

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FUNCTIONS = ("sigmoid", "softmax", "none")


class TextClassification(Pipeline):
    """`pipe("Good!")` -> [{"label": "POSITIVE", "score": 0.99}]; a list gives one such object per text.

    {"text": …, "text_pair": …} classifies a pair. With `top_k` (None: all) an answer is a list of labels.
    """

    task: ClassVar[str] = "text-classification"
    outputs: ClassVar[tuple[str, ...]] = ("logits",)

    def __call__(self, inputs: Any, *, batch_size: int | None = None, **parameters: Any) -> Any:
        """A text, a pair, or a list of either -> labels. One text alone gives a list, as in transformers."""
        answer = super().__call__(inputs, batch_size=batch_size, **parameters)
        return [answer] if isinstance(inputs, str) and "top_k" not in parameters else answer

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, str | Mapping)

    def _takes(self) -> str:
        return 'a text, {"text", "text_pair"}, or a list of either'

    def _answer(
        self,
        items: Sequence[Any],
        batch_size: int | None,
        *,
        top_k: int | Literal[""] | None = "",
        function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None,
        truncation: bool | str = False,
        max_length: int | None = None,
        padding: Any = None,
    ) -> list[Any]:
        """`function_to_apply` defaults to what the model was trained for: none for regression, sigmoid for one label
        or several at once, softmax otherwise."""
        if function_to_apply is not None and str(function_to_apply).lower() not in _FUNCTIONS:
            raise InputError(f"function_to_apply={function_to_apply!r} is not one of {', '.join(_FUNCTIONS)}")
        singles = [n for n, item in enumerate(items) if not _pair(item)]
        pairs = [n for n, item in enumerate(items) if _pair(item)]
        rows: list[Any] = [None] * len(items)
        options: dict[str, Any] = {"truncation": truncation, "max_length": max_length}
        texts = [items[n]["text"] if isinstance(items[n], Mapping) else items[n] for n in singles]
        for n, row in zip(singles, self._encode(texts, **options), strict=True):
            rows[n] = row
        first, second = [items[n]["text"] for n in pairs], [items[n]["text_pair"] for n in pairs]
        for n, row in zip(pairs, self._encode(first, second, **options) if pairs else [], strict=True):
            rows[n] = row
        function = function_to_apply and str(function_to_apply).lower()
        return [self._labels(out["logits"], function, top_k) for out in self._forward(rows, batch_size)]

    def _labels(self, logits: NDArray[np.float32], function: str | None, top_k: int | Literal[""] | None) -> Any:
        kind = self.config.get("problem_type")
        if function is None:
            many = kind == "multi_label_classification" or (len(logits) == 1 and kind != "regression")
            function = "none" if kind == "regression" else "sigmoid" if many else "softmax"
        scores = logits
        if function != "none":
            scores = softmax(logits) if function == "softmax" else np.float32(1) / (np.float32(1) + np.exp(-logits))
        if top_k == "":
            best = int(scores.argmax())
            return {"label": self._label(best), "score": float(scores[best])}
        order = sorted(range(len(scores)), key=lambda n: scores[n], reverse=True)
        return [{"label": self._label(n), "score": float(scores[n])} for n in order[:top_k]]


def _pair(item: Any) -> bool:
    """Whether an item is a pair; InputError when it is neither that nor a text."""
    if isinstance(item, str):
        return False
    if not isinstance(item, Mapping) or not isinstance(item.get("text"), str):
        raise InputError(f'text-classification takes a text or {{"text": …, "text_pair": …}}, not {item!r:.80}')
    return item.get("text_pair") is not None
