"""How far a text has come with the words that it must hold, by transformers' rules (`ConstraintListState`).

One set of words is followed at a time, and a token that leaves it sends it back to those that are pending. The tokens
of the prompt count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from isoform.runtimes.generation.settings import Words


@dataclass(slots=True, eq=False)
class Progress:
    """`pending` sets of words, `met` ones, and the `current` one with the `path` of tokens into it."""

    pending: list[Words]
    longest: int  # tokens of the longest word of all
    met: int = 0
    current: Words | None = None
    path: list[int] = field(default_factory=list)
    is_complete: bool = False

    @classmethod
    def of(cls, words: Sequence[Words], ids: Sequence[int]) -> Progress:
        """The progress of a text."""
        return cls(list(words), max(map(_height, words))).after(ids)

    def after(self, ids: Sequence[int]) -> Progress:
        """The progress when these tokens have followed."""
        progress = replace(self, pending=list(self.pending), path=list(self.path))
        for token in ids:
            progress.add(token)
        return progress

    @property
    def bank(self) -> int:
        """A number that grows with every token that leads on."""
        begun = 0 if self.current is None else self.longest - _height(self.current) + len(self.path)
        return self.met * self.longest + begun

    @property
    def left(self) -> int:
        """How many tokens are needed at least."""
        rest = min((len(word) - len(self.path) for word in _followed(self.current or (), self.path)), default=0)
        return rest + sum(min(map(len, words)) for words in self.pending)

    def leading(self) -> list[int]:
        """The tokens that lead on."""
        if self.current is not None:
            return _next(self.current, self.path)
        return [token for words in self.pending for token in _next(words, ())]

    def with_token(self, token: int) -> Progress:
        """The progress with this token; `path` is shared, as it is among transformers' copies."""
        copy = replace(self, pending=list(self.pending))
        copy.add(token)
        return copy

    def add(self, token: int) -> None:
        if self.is_complete:
            return
        if self.current is not None:
            if token not in _next(self.current, self.path):
                self.pending.append(self.current)
                self.current = None
                return
            self.path.append(token)
        else:
            found = next((n for n, words in enumerate(self.pending) if token in _next(words, ())), None)
            if found is None:
                return
            self.current, self.path = self.pending.pop(found), [token]
        if not _next(self.current, self.path):
            self.met, self.current = self.met + 1, None
            self.is_complete = not self.pending


def _height(words: Words) -> int:
    return max(map(len, words))


def _followed(words: Words, path: Sequence[int]) -> list[tuple[int, ...]]:
    """The words that begin with the path."""
    return [word for word in words if word[: len(path)] == tuple(path)]


def _next(words: Words, path: Sequence[int]) -> list[int]:
    """The tokens that may follow the path, in the order of the words."""
    return list(dict.fromkeys(word[len(path)] for word in _followed(words, path) if len(word) > len(path)))
