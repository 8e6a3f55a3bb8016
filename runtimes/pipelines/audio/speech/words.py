"""Tokens to words, with the punctuation that belongs to them: the rules of transformers' Whisper tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from isoform.runtimes.pipelines.audio.speech.languages import UNSPACED

BEFORE = "\"'“¡¿([{-"
AFTER = "\"'.。,，!！?？:：”)]}、"
PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
UNKNOWN = "\ufffd"  # what is decoded where a character is not whole


@dataclass(slots=True)
class Word:
    """Text with its space and punctuation, and the places of its tokens."""

    text: str
    places: list[int]


def words(
    tokens: Sequence[int], decode: Callable[[Sequence[int]], str], *, language: str = "english", end: int
) -> list[Word]:
    """`end` is the token that ends a text: tokens below it are text. `language` is an English name."""
    found = _characters(tokens, decode)
    if language not in UNSPACED:
        found = _spaced(found, tokens, end)
    return _punctuated(found)


def _characters(tokens: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[Word]:
    """The smallest runs of tokens that are whole characters."""
    whole = decode(tokens)
    found: list[Word] = []
    places: list[int] = []
    offset = 0
    for n in range(len(tokens)):
        places.append(n)
        text = decode([tokens[place] for place in places])
        broken = offset + text.find(UNKNOWN)
        if UNKNOWN not in text or broken >= len(whole) or whole[broken] == UNKNOWN:
            found.append(Word(text, places))
            places = []
            offset += len(text)
    return found


def _spaced(parts: Sequence[Word], tokens: Sequence[int], end: int) -> list[Word]:
    """Parts joined up to the next space or punctuation mark."""
    found: list[Word] = []
    for part in parts:
        begins = tokens[part.places[0]] >= end or part.text.startswith(" ") or part.text.strip() in PUNCTUATION
        if begins or not found:
            found.append(part)
        else:
            found[-1].text += part.text
            found[-1].places += part.places
    return found


def _punctuated(found: list[Word]) -> list[Word]:
    """Opening marks joined to the word after them, closing marks to the word before."""
    after = len(found) - 1
    for n in range(len(found) - 2, -1, -1):
        mark, word = found[n], found[after]
        if mark.text.startswith(" ") and mark.text.strip() in BEFORE:
            word.text, word.places = mark.text + word.text, mark.places + word.places
            mark.text, mark.places = "", []
        else:
            after = n
    before = 0
    for n in range(1, len(found)):
        word, mark = found[before], found[n]
        if not word.text.endswith(" ") and mark.text in AFTER:
            word.text, word.places = word.text + mark.text, word.places + mark.places
            mark.text, mark.places = "", []
        else:
            before = n
    return [word for word in found if word.text]
