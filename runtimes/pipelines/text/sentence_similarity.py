"""sentence-similarity: embeddings of texts as sentence-transformers makes them, and how near they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.pipelines.base import Pipeline
from isoform.runtimes.pipelines.text.pooling import Recipe, normalize

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.session import Session


class SentenceSimilarity(Pipeline):
    """Two kinds of input, two kinds of answer.

    A text gives its embedding, a float32 array (C,); a list of texts gives (N, C), what
    `SentenceTransformer.encode` gives. The Hub's form, {"source_sentence": text, "sentences": [texts]}, gives the list
    of cosine similarities of the source to each sentence; a list of such objects gives a list of lists.
    A text that is too long is cut, as sentence-transformers does.
    """

    task: ClassVar[str] = "sentence-similarity"
    outputs: ClassVar[tuple[str, ...]] = ("last_hidden_state",)

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        super().__init__(session, folder, **parameters)
        self.recipe = Recipe.read(self.folder)
        if self.recipe.lowercase:
            self.tokenizer.lowercase()

    def __call__(self, inputs: Any, *, batch_size: int | None = None, **parameters: Any) -> Any:
        """A text or a list of texts -> embeddings; {"source_sentence", "sentences"} -> similarities."""
        answers = super().__call__(inputs, batch_size=batch_size, **parameters)
        texts = isinstance(inputs, list | tuple) and not any(isinstance(item, Mapping) for item in inputs)
        return np.stack(answers) if texts and answers else answers

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, str | Mapping)

    def _takes(self) -> str:
        return 'a text, a list of texts, or {"source_sentence": text, "sentences": [texts]}'

    def _answer(
        self,
        items: Sequence[Any],
        batch_size: int | None,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalized: bool = False,
    ) -> list[Any]:
        """`prompt` is put before every text; `prompt_name` picks one of the model's own. `normalized` scales the
        embeddings to length 1 where the model does not."""
        texts: list[str] = []
        for item in items:
            texts += _texts(item) if isinstance(item, Mapping) else [item]
        vectors = iter(self._embed(texts, batch_size, self._prompt(prompt, prompt_name)))
        answers: list[Any] = []
        for item in items:
            if isinstance(item, Mapping):
                source, *others = (normalize(next(vectors)) for _ in _texts(item))
                answers.append([float(source @ other) for other in others])
            else:
                vector = next(vectors)
                answers.append(normalize(vector) if normalized else vector)
        return answers

    def _prompt(self, prompt: str | None, name: str | None) -> str:
        if prompt is not None:
            return prompt
        name = name if name is not None else self.recipe.default_prompt
        if name is None:
            return ""
        if name not in self.recipe.prompts:
            known = ", ".join(sorted(self.recipe.prompts)) or "none"
            raise InputError(f"the model has no prompt {name!r}; it has {known}")
        return self.recipe.prompts[name]

    def _embed(self, texts: Sequence[str], batch_size: int | None, prompt: str) -> list[NDArray[np.float32]]:
        for text in texts:
            if not isinstance(text, str):
                raise InputError(f"{self.task} takes {self._takes()}, not {text!r:.80}")
        limit = self.recipe.max_length
        rows = self._encode([prompt + text for text in texts], truncation=True, max_length=limit)
        length = 0
        if prompt and not self.recipe.include_prompt:
            (row,) = self._encode([prompt], truncation=True, max_length=limit)
            length = len(row.ids) - row.special_tokens_mask[-1]  # without the token that ends a text
        return [self.recipe.apply(out["last_hidden_state"], length) for out in self._forward(rows, batch_size)]


def _texts(item: Mapping[str, Any]) -> list[str]:
    """The source and the sentences it is compared with."""
    source, others = item.get("source_sentence"), item.get("sentences")
    if not isinstance(source, str) or not isinstance(others, list | tuple):
        raise InputError(
            f'sentence-similarity compares {{"source_sentence": text, "sentences": [texts]}}; this input has '
            f"{', '.join(map(str, item)) or 'nothing'}"
        )
    return [source, *others]
