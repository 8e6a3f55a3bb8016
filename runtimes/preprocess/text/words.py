"""Words of a text as TAPAS cuts them before WordPiece, and the token that stands for a text without words.

Like BERT's words, but that a special token counts only between spaces, that letters are composed first (NFC), and that
a text of nothing but punctuation, "n/a", "nan" or "?" is the token of an empty cell.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from typing import Any

_UNSAID = ("n/a", "nan", "?")
"""What an empty cell of a table may say."""

_CHINESE = (
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F)),
    *((0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)
"""Blocks of ideographs, each of which is a word; of other scripts of the East none is."""


class Words:
    """Texts as words with a space between them, which WordPiece cuts no further than TAPAS does."""

    def __init__(self, rules: Mapping[str, Any], special: Collection[str], added: Iterable[str]) -> None:
        """`rules`: "lowercase", "strip_accents" (None: as lowercase), "chinese", and "empty", the token of an empty
        text. `special` tokens are kept between spaces, `added` ones (which the vocabulary lacks) everywhere."""
        self._lower, self._chinese, self._empty = rules["lowercase"], rules["chinese"], rules["empty"]
        accents = rules["strip_accents"]
        self._strips = self._lower if accents is None else accents
        self._special = frozenset(special)
        longest_first = sorted(added, key=len, reverse=True)
        self._added = frozenset(longest_first)
        self._cuts = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None

    def spelled(self, text: str) -> str:
        """The words of a text, with a space between them."""
        pieces = [text] if self._cuts is None else self._cuts.split(text)
        return " ".join(word for piece in pieces if piece for word in self._words(piece))

    def _words(self, piece: str) -> Iterable[str]:
        if piece in self._added or piece in self._special:
            return [piece]
        if is_empty(piece):
            return [self._empty]
        cleaned = "".join(map(self._cleaned, piece))
        found = (self._cut(word) for word in unicodedata.normalize("NFC", cleaned).split())
        return (word for words in found for word in words.split())

    def _cleaned(self, letter: str) -> str:
        """A letter, with spaces around it where it is a word; spaces as such, and nothing for what is invisible."""
        if letter in " \t\n\r":
            return " "
        code, kind = ord(letter), unicodedata.category(letter)
        if code == 0xFFFD or kind[0] == "C":
            return ""
        if kind == "Zs":
            return " "
        is_word = self._chinese and any(first <= code <= last for first, last in _CHINESE)
        return f" {letter} " if is_word else letter

    def _cut(self, word: str) -> str:
        """A word with spaces around its punctuation."""
        if word in self._special:
            return word
        if self._lower:
            word = word.lower()
        if self._strips:
            letters = unicodedata.normalize("NFD", word)
            word = "".join(letter for letter in letters if unicodedata.category(letter) != "Mn")
        return word if word in self._special else "".join(f" {x} " if is_punctuation(x) else x for x in word)


def is_empty(text: str) -> bool:
    """Whether a text has no letter and no digit, or says that a cell is empty."""
    text = text.lower().strip()
    return text in _UNSAID or not re.search(r"[^\W_]", text)


def is_punctuation(letter: str) -> bool:
    """As BERT counts it: all of ASCII that is no letter, digit or space, and what Unicode calls so."""
    ascii_mark = 33 <= ord(letter) <= 126 and not letter.isalnum()
    return ascii_mark or unicodedata.category(letter)[0] == "P"
