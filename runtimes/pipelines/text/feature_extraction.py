"""feature-extraction: the last hidden state of every token, or one vector per text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from isoform.errors import InputError
from isoform.runtimes.pipelines.base import InputPiece
from isoform.runtimes.pipelines.nested_lists import given_as
from isoform.runtimes.pipelines.text.pooling import Recipe, normalize, pool
from isoform.runtimes.pipelines.text.text_encoder import TextEncoder
from isoform.runtimes.pipelines.text.tokenizer_options import tokenizer_options
from isoform.sentence_modules import SENTENCE


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureExtractionOptions:
    """The parameters of a call."""

    return_tensors: bool | str = False  # True or "pt": tensors of torch; "np": arrays
    truncation: bool | str | None = None  # cuts a text that is too long for the model
    tokenize_kwargs: Mapping[str, Any] | None = None
    pooling: str | None = None  # "mean", "cls", …, "model" (what modules.json says): [width], not [1, tokens, width]
    normalized: bool = False  # scales the vector to length 1

    def __post_init__(self) -> None:
        if self.truncation is not None and "truncation" in (self.tokenize_kwargs or {}):
            raise InputError("truncation is given twice, also in tokenize_kwargs; give it once")
        if self.normalized and self.pooling is None:
            raise InputError("normalized=True needs pooling=")


class FeatureExtraction(TextEncoder):
    """`pipe("text")` -> a nested list of floats [1, tokens, width], as transformers gives it."""

    task: ClassVar[str] = "feature-extraction"
    outputs: ClassVar[tuple[str, ...]] = ("last_hidden_state",)
    options: ClassVar[type[FeatureExtractionOptions]] = FeatureExtractionOptions

    @cached_property
    def recipe(self) -> Recipe:
        """What the model's modules.json says."""
        return Recipe.read(self.folder)

    def prepare(self, items: Sequence[str], call: FeatureExtractionOptions) -> Iterable[Iterable[Any]]:
        """See `BatchPipeline.prepare`."""
        options = tokenizer_options(call.tokenize_kwargs, "tokenize_kwargs")
        if call.truncation is not None:
            options["truncation"] = call.truncation
        return ([row] for row in self.encode(items, **options))

    def finish(self, item: str, pieces: Sequence[InputPiece], call: FeatureExtractionOptions) -> Any:
        """See `BatchPipeline.finish`."""
        output = pieces[0].output
        states = output["last_hidden_state"]
        if call.pooling == "model":
            states = output[SENTENCE] if SENTENCE in output else self.recipe.apply(states)
        elif call.pooling is not None:
            states = pool(states, call.pooling)
        else:
            states = states[None]
        states = normalize(states) if call.normalized else states
        return given_as(states, call.return_tensors)
