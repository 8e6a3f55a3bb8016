"""feature-extraction: the last hidden state of every token, or one vector per text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from isoform.errors import InputError
from isoform.runtimes.pipelines.base import Pipeline, tokenizer_options
from isoform.runtimes.pipelines.nested_lists import nested
from isoform.runtimes.pipelines.text.pooling import Recipe, normalize, pool


class FeatureExtraction(Pipeline):
    """`pipe("text")` -> a nested list of floats [1, tokens, width], as transformers gives it."""

    task: ClassVar[str] = "feature-extraction"
    outputs: ClassVar[tuple[str, ...]] = ("last_hidden_state",)

    def _answer(
        self,
        items: Sequence[str],
        batch_size: int | None,
        *,
        return_tensors: bool | str = False,
        truncation: bool | str | None = None,
        tokenize_kwargs: Mapping[str, Any] | None = None,
        pooling: str | None = None,
        normalized: bool = False,
    ) -> list[Any]:
        """`return_tensors`: float32 arrays instead of lists. `truncation` cuts a text that is too long for the model.

        `pooling` ("mean", "cls", …, or "model" for what the model's modules.json says) gives [width] instead of
        [1, tokens, width]; `normalized` scales it to length 1.
        """
        options = tokenizer_options(tokenize_kwargs, "tokenize_kwargs")
        if truncation is not None:
            if "truncation" in options:
                raise InputError("truncation is given twice, also in tokenize_kwargs; give it once")
            options["truncation"] = truncation
        if normalized and pooling is None:
            raise InputError("normalized=True needs pooling=")
        rows = self._encode(items, **options)
        recipe = Recipe.read(self.folder) if pooling == "model" else None
        answers: list[Any] = []
        for out in self._forward(rows, batch_size):
            states = out["last_hidden_state"]
            if recipe is not None:
                states = recipe.apply(states)
            elif pooling is not None:
                states = pool(states, pooling)
            else:
                states = states[None]
            states = normalize(states) if normalized else states
            answers.append(states if return_tensors else nested(states))
        return answers
