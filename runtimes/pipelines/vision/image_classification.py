"""image-classification: what is in a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.generation.processors import softmax
from isoform.runtimes.pipelines.vision.pictures import Pictures

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FUNCTIONS = ("sigmoid", "softmax", "none")


class ImageClassification(Pictures):
    """`pipe("cat.jpg")` -> [{"label": "tabby", "score": 0.9}, …], the five likeliest; a list gives a list of those."""

    task: ClassVar[str] = "image-classification"
    outputs: ClassVar[tuple[str, ...]] = ("logits",)

    def _answer(
        self,
        items: Sequence[Any],
        batch_size: int | None,
        *,
        top_k: int | None = 5,
        function_to_apply: str | None = None,
        timeout: float | None = None,
    ) -> list[list[dict[str, Any]]]:
        """`top_k` None gives all. `function_to_apply` ("softmax", "sigmoid", "none") defaults to what the model was
        trained for: none for regression, sigmoid for one label or several at once, softmax otherwise."""
        function = function_to_apply and str(function_to_apply).lower()
        if function is not None and function not in _FUNCTIONS:
            raise InputError(f"function_to_apply={function_to_apply!r} is not one of {', '.join(_FUNCTIONS)}")
        if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
            raise InputError(f"top_k={top_k!r} is no whole number of at least 1; None gives all labels")
        return [self._labels(out["logits"], function, top_k) for out in self._outputs(items, batch_size, timeout)]

    def _labels(self, logits: NDArray[np.float32], function: str | None, top_k: int | None) -> list[dict[str, Any]]:
        if function is None:
            kind = self.config.get("problem_type")
            many = kind == "multi_label_classification" or len(logits) == 1
            function = "none" if kind == "regression" else "sigmoid" if many else "softmax"
        scores = logits
        if function != "none":
            scores = softmax(logits) if function == "softmax" else np.float32(1) / (np.float32(1) + np.exp(-logits))
        order = sorted(range(len(scores)), key=lambda n: scores[n], reverse=True)
        return [{"label": self._label(n), "score": float(scores[n])} for n in order[:top_k]]
