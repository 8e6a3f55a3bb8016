"""Encodings of a vocabulary whose last pieces the model does not know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Encoding


class KnownPieces:
    """An `Encoding` in whose ids those from `known` on are `unknown`. SentencePiece cuts a text by all its pieces, and
    the model's vocabulary may lack some of them."""

    def __init__(self, encoding: Encoding, known: int, unknown: int) -> None:
        self._encoding, self._known, self._unknown = encoding, known, unknown

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoding, name)

    def __len__(self) -> int:
        return len(self._encoding)

    @property
    def ids(self) -> list[int]:
        return [index if index < self._known else self._unknown for index in self._encoding.ids]

    @property
    def overflowing(self) -> list[KnownPieces]:
        return [KnownPieces(one, self._known, self._unknown) for one in self._encoding.overflowing]
