"""The assistant model of a pipeline: opened where it is given by name, and fitted to the vocabulary of the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from isoform.errors import InputError
from isoform.runtimes.generation.draft import DraftModel, OtherVocabulary

if TYPE_CHECKING:
    from isoform.runtimes.generation.speculative import Assistant
    from isoform.runtimes.pipelines.base import Pipeline


@runtime_checkable
class Encodes(Protocol):
    """A pipeline over an encoder and a decoder."""

    def encoded(self, pieces: Sequence[Any]) -> Any:
        """What the encoder makes of pieces."""
        ...


class Fitted(Protocol):
    """An assistant for one pipeline."""

    def reading(self, pieces: Sequence[Any]) -> Assistant:
        """It for a batch of the pipeline's pieces, which its encoder reads where it has one."""
        ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """A `Fitted` decoder: it reads nothing but the text."""

    assistant: Assistant

    def reading(self, pieces: Sequence[Any]) -> Assistant:
        """See `Fitted.reading`."""
        return self.assistant


@dataclass(frozen=True, slots=True)
class Reading:
    """A `Fitted` encoder-decoder of the model's vocabulary. `encoded` gives what its encoder makes of pieces."""

    session: Any
    encoded: Callable[[Sequence[Any]], Any]
    context: int | None
    vocabulary: int | None

    def reading(self, pieces: Sequence[Any]) -> Assistant:
        """See `Fitted.reading`."""
        states = self.encoded(pieces)
        return DraftModel(
            lambda rows: self.session.decoder(states.select(list(rows))),
            context=self.context,
            vocabulary=self.vocabulary,
        )


class Assistants:
    """The assistants of one pipeline. Those that it opened are kept until it closes; any thread may ask for one."""

    def __init__(self, pipe: Pipeline) -> None:
        self._pipe, self._lock = pipe, Lock()
        self._opened: list[tuple[Any, Any, Pipeline]] = []  # by model and tokenizer
        self._fitted: list[tuple[Pipeline, Fitted]] = []

    def find(self, model: Any, tokenizer: Any = None) -> Fitted | None:
        """The assistant for a folder, a Hub id, a module or a pipeline; None for None."""
        from isoform.runtimes.pipelines.base import Pipeline

        if model is None:
            if tokenizer is not None:
                raise InputError("assistant_tokenizer= comes without assistant_model=; give both, or neither")
            return None
        with self._lock:
            if not isinstance(model, Pipeline):
                model = self._open(model, tokenizer)
            elif tokenizer is not None:
                raise InputError("assistant_model= is a pipeline with a tokenizer; leave assistant_tokenizer out")
            for pipe, fitted in self._fitted:
                if pipe is model:
                    return fitted
            fitted = self._fit(model)
            self._fitted.append((model, fitted))
            return fitted

    def _open(self, model: Any, tokenizer: Any) -> Pipeline:
        for name, with_, pipe in self._opened:
            with suppress(ValueError):  # what a comparison of arrays says
                if (name is model or name == model) and (with_ is tokenizer or with_ == tokenizer):
                    return pipe
        beside = self._pipe.origin.beside
        if beside is None:
            raise InputError(
                f"assistant_model={model!r:.60} cannot be opened by this pipeline; give a pipeline of isoform"
            )
        try:
            opened: Pipeline = beside(model, tokenizer)
        except InputError as error:
            raise InputError(f"assistant_model: {error}") from None
        self._opened.append((model, tokenizer, opened))
        return opened

    def _fit(self, other: Pipeline) -> Fitted:
        """What guesses for the pipeline with the model of another one."""
        session, tokens = other.session, other.session.signature.port("tokens")
        reads = isinstance(self._pipe, Encodes)
        if not session.signature.states or tokens is None or isinstance(other, Encodes) != reads:
            kind = "an encoder-decoder" if reads else "a decoder"
            raise InputError(
                f"assistant_model= is for {other.task}, and guesses no text of {self._pipe.task}; give {kind}"
            )
        mine, theirs = self._pipe.text_tokenizer, other.text_tokenizer
        same = mine.vocabulary() == theirs.vocabulary()
        if isinstance(other, Encodes):
            if not same:
                raise InputError(
                    "assistant_model= has another vocabulary, so that its encoder cannot read what the model's does; "
                    "give one with the model's tokenizer"
                )
            return Reading(session, other.encoded, other.context, self._pipe.vocabulary)
        draft = DraftModel(
            lambda rows: session.decoder(len(rows)), context=other.context, vocabulary=self._pipe.vocabulary
        )
        if same:
            return Fixed(draft)

        def ids(tokenizer: Any, text: str) -> list[int]:
            (row,) = tokenizer.encode([text], add_special_tokens=False)
            return list(row.ids)

        other_words = OtherVocabulary(
            DraftModel(draft.decoder, context=draft.context),
            encode=partial(ids, mine),
            decode=partial(mine.decode, skip_special_tokens=True),
            their_encode=partial(ids, theirs),
            their_decode=partial(theirs.decode, skip_special_tokens=True),
        )
        return Fixed(other_words)

    def close(self) -> None:
        """Close what was opened here."""
        for _, _, pipe in self._opened:
            pipe.close()
        self._opened.clear()
        self._fitted.clear()
