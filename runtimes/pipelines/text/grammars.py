"""The grammars of a pipeline: the model's vocabulary is read once, and a grammar that comes again is kept."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any

from isoform.runtimes.generation.grammar import Grammar, GrammarOptions, Vocabulary, after_a_space

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isoform.runtimes.pipelines.base import Pipeline

KEPT = 16  # grammars


class Grammars:
    """Makes the grammar of a call; any thread may ask."""

    def __init__(self, pipe: Pipeline, *, begins: bool) -> None:
        """`begins`: new text is a text from its beginning, not one that goes on."""
        self._pipe, self._begins, self._lock = pipe, begins, Lock()
        self._vocabularies: dict[tuple[int, ...], Vocabulary] = {}
        self._made: dict[tuple[Any, ...], Grammar] = {}

    def find(self, options: Any, ends: Sequence[int] | None) -> Grammar | None:
        """The grammar of a call's options, None for any text. `ends` are the tokens that end a text.

        Raises InputError for one that is not understood, or that no text follows.
        """
        names = GrammarOptions.__dataclass_fields__
        given = {name: getattr(options, name) for name in names}
        source = GrammarOptions(**given).source()
        if source is None:
            return None
        key = (source, tuple(ends or ()))
        with self._lock:
            if key not in self._made:
                name = next(name for name in names if given[name] is not None)
                vocabulary = self._vocabulary(key[1])
                grammar = Grammar(source, vocabulary, name)
                if self._begins and self._loses_space(vocabulary):
                    grammar = Grammar(after_a_space(source), vocabulary, name)
                while len(self._made) >= KEPT:
                    del self._made[next(iter(self._made))]
                self._made[key] = grammar
            return self._made[key]

    def _vocabulary(self, ends: tuple[int, ...]) -> Vocabulary:
        if ends not in self._vocabularies:
            self._vocabularies.clear()
            self._vocabularies[ends] = Vocabulary(self._pipe.text_tokenizer.backend, self._pipe.vocabulary, ends)
        return self._vocabularies[ends]

    def _loses_space(self, vocabulary: Vocabulary) -> bool:
        """Whether the first token of a text holds a space that its text does not show."""
        tokenizer = self._pipe.text_tokenizer
        ids = tokenizer.encode(["a"], add_special_tokens=False)[0].ids
        return vocabulary.native.decode_bytes(ids).startswith(b" ") and not tokenizer.decode(ids).startswith(" ")
