"""sentence-similarity: embeddings of texts as sentence-transformers makes them, and how near they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.pipelines.base import InputPiece
from isoform.runtimes.pipelines.text.pooling import Recipe, normalize, similarity
from isoform.runtimes.pipelines.text.text_encoder import TextEncoder
from isoform.sentence_modules import SENTENCE

if TYPE_CHECKING:
    from isoform.runtimes.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceSimilarityOptions:
    """The parameters of a call."""

    prompt: str | None = None  # put before every text
    prompt_name: str | None = None  # picks one of the model's own
    normalized: bool = False  # scales embeddings to length 1 where the model does not


@dataclass(frozen=True, slots=True)
class _SimilarityCall:
    """`skip`: tokens of the prompt that pooling leaves out."""

    prompt: str
    skip: int
    normalized: bool


class SentenceSimilarity(TextEncoder):
    """Two kinds of input, two kinds of answer.

    A text gives its embedding, a float32 array (C,); a list of texts gives (N, C), what
    `SentenceTransformer.encode` gives. The Hub's form, {"source_sentence": text, "sentences": [texts]}, gives the list
    of the source's similarities to each sentence, by cosine unless the model's files name another function; a list of
    such objects gives a list of lists.
    A text that is too long is cut, as sentence-transformers does.
    """

    task: ClassVar[str] = "sentence-similarity"
    outputs: ClassVar[tuple[str, ...]] = ("last_hidden_state",)
    options: ClassVar[type[SentenceSimilarityOptions]] = SentenceSimilarityOptions
    takes_objects: ClassVar[bool] = True

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        super().__init__(session, folder, **parameters)
        self.recipe = Recipe.read(self.folder)
        self.modules = self.recipe.modules
        if self.modules.lowercase:
            self.text_tokenizer.lowercase()

    def _shaped(self, answer: Any, inputs: Any, parameters: Mapping[str, Any]) -> Any:
        """The embeddings of a list of texts are one array, unless an error is among them."""
        several = isinstance(answer, list) and bool(answer)
        vectors = several and isinstance(inputs, list | tuple) and all(isinstance(v, np.ndarray) for v in answer)
        return np.stack(answer) if vectors else answer

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, str | Mapping)

    def _takes(self) -> str:
        return 'a text, a list of texts, or {"source_sentence": text, "sentences": [texts]}'

    def begin(self, options: SentenceSimilarityOptions) -> _SimilarityCall:
        """See `Pipeline.begin`."""
        prompt, skip = self._prompt(options), 0
        if prompt and not self.modules.include_prompt:
            (row,) = self.encode([prompt], truncation=True, max_length=self.modules.max_length)
            skip = len(row.ids) - row.special_tokens_mask[-1]  # without the token that ends a text
        return _SimilarityCall(prompt, skip, options.normalized)

    def prepare(self, items: Sequence[Any], call: _SimilarityCall) -> Iterable[Iterable[Any]]:
        """See `BatchPipeline.prepare`."""
        groups = [_texts(item) if isinstance(item, Mapping) else [item] for item in items]
        texts = [text for group in groups for text in group]
        for text in texts:
            if not isinstance(text, str):
                raise InputError(f"{self.task} takes {self._takes()}, not {text!r:.80}")
        prompted = [call.prompt + text for text in texts]
        rows = iter(self.encode(prompted, truncation=True, max_length=self.modules.max_length))
        return [[next(rows) for _ in group] for group in groups]

    def finish(self, item: Any, pieces: Sequence[InputPiece], call: _SimilarityCall) -> Any:
        """See `BatchPipeline.finish`."""
        vectors = [self._vector(piece.output, call.skip) for piece in pieces]
        if isinstance(item, Mapping):
            source, *others = vectors
            return [similarity(self.modules.similarity, source, other) for other in others]
        return normalize(vectors[0]) if call.normalized else vectors[0]

    def _vector(self, output: Mapping[str, Any], skip: int) -> Any:
        """The vector that the graph gives; computed from the states where it gives none, or knows of no prompt."""
        if SENTENCE in output and not skip:
            return output[SENTENCE]
        return self.recipe.apply(output["last_hidden_state"], skip)

    def _prompt(self, options: SentenceSimilarityOptions) -> str:
        if options.prompt is not None:
            return options.prompt
        name = options.prompt_name if options.prompt_name is not None else self.modules.default_prompt
        if name is None:
            return ""
        if name not in self.modules.prompts:
            known = ", ".join(sorted(self.modules.prompts)) or "none"
            raise InputError(f"the model has no prompt {name!r}; it has {known}")
        return self.modules.prompts[name]


def _texts(item: Mapping[str, Any]) -> list[str]:
    """The source and the sentences it is compared with."""
    source, others = item.get("source_sentence"), item.get("sentences")
    if not isinstance(source, str) or not isinstance(others, list | tuple):
        raise InputError(
            f'sentence-similarity compares {{"source_sentence": text, "sentences": [texts]}}; this input has '
            f"{', '.join(map(str, item)) or 'nothing'}"
        )
    return [source, *others]
