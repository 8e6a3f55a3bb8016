"""Token ids to text while they are generated."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class TextStream:
    """Ids to text as they come. A piece never ends inside a character, and the pieces joined are the whole text.

    (Except where a model writes bytes that are no UTF-8: then the whole text may show one more replacement character.)
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        # ids[start:given] has been given out and is decoded again before what is new, for the spaces between tokens.
        self._start = self._given = 0

    def push(self, token: int) -> str:
        """The text that a token completes, often a word, sometimes nothing."""
        self._ids.append(token)
        piece = self._piece()
        if not piece or piece.endswith("\ufffd"):
            return ""
        self._start, self._given = self._given, len(self._ids)
        return piece

    def end(self) -> str:
        """What is left when no token follows."""
        piece = self._piece()
        self._ids.clear()
        self._start = self._given = 0
        return piece

    def _piece(self) -> str:
        before = self._decode(self._ids[self._start : self._given])
        return self._decode(self._ids[self._start :])[len(before) :]
