"""A page as a model reads it: words with boxes, cut into windows of tokens, each token with the box of its word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.errors import CheckpointError, InputError
from isoform.runtimes.preprocess.document.tesseract import EDGE, Words

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Encoding

PAIRS = "word_boxes"
"""The key of an input that holds its words with their boxes; `words` and `boxes` hold them apart."""


@dataclass(frozen=True, slots=True, eq=False)
class Page:
    """The words with their boxes, and the pixels (C, H, W) of the picture, where the model is to see it."""

    words: Words
    pixels: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Tokens of a page that run together: their encoding, and a box for each (T, 4)."""

    row: Encoding
    boxes: NDArray[np.int64]
    page: Page

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True, slots=True)
class SpecialBoxes:
    """The boxes of tokens that are of no word. A token that is neither of the three gets the separator's."""

    cls: tuple[int, ...]
    sep: tuple[int, ...]
    pad: tuple[int, ...]

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> SpecialBoxes:
        """Of the model's facts, whose "tokenizer" has "boxes". Raises CheckpointError for what is no box."""
        stated = (facts.get("tokenizer") or {}).get("boxes") or {}
        found = {name: stated.get(name, (0, 0, 0, 0)) for name in ("cls", "sep", "pad")}
        for name, box in found.items():
            if problem := wrong_box(box):
                raise CheckpointError(f"tokenizer_config.json: {name}_token_box is {box!r:.60}, {problem}")
        return cls(**{name: tuple(box) for name, box in found.items()})

    def of(self, row: Encoding, words: Words, ids: Mapping[str, int | None], place: int) -> NDArray[np.int64]:
        """The box of each token (T, 4). `place`: the number of the text that the words are; others are a question."""
        special = {ids["pad"]: self.pad, ids["sep"]: self.sep, ids["cls"]: self.cls}
        boxes = [
            special.get(token, self.sep) if word is None else words[word][1] if text == place else self.pad
            for token, text, word in zip(row.ids, row.sequence_ids, row.word_ids, strict=True)
        ]
        return np.array(boxes, np.int64).reshape(-1, 4)


def given_words(item: Mapping[str, Any]) -> Words | None:
    """The words that an input brings, or None. Raises InputError for what is no word or no box."""
    if PAIRS in item and item[PAIRS] is not None:
        pairs = item[PAIRS]
        if not isinstance(pairs, Sequence) or isinstance(pairs, str):
            raise InputError(f"{PAIRS}={pairs!r:.60} is no list of pairs [word, [left, top, right, bottom]]")
    elif item.get("words") is not None or item.get("boxes") is not None:
        words, boxes = item.get("words"), item.get("boxes")
        if not isinstance(words, Sequence) or not isinstance(boxes, Sequence) or isinstance(words, str):
            raise InputError("words= and boxes= are lists of one length, a box for each word")
        if len(words) != len(boxes):
            raise InputError(f"{len(words)} words came with {len(boxes)} boxes; give one for each")
        pairs = list(zip(words, boxes, strict=True))
    else:
        return None
    return [_pair(n, pair) for n, pair in enumerate(pairs)]


def _pair(n: int, pair: Any) -> tuple[str, tuple[int, int, int, int]]:
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2 or not isinstance(pair[0], str):
        raise InputError(f"{PAIRS}[{n}] is {pair!r:.60}, no pair [word, [left, top, right, bottom]]")
    word, box = pair
    if problem := wrong_box(box):
        raise InputError(f"{PAIRS}[{n}]: the box of {word!r:.40} is {box!r:.60}, {problem}")
    left, top, right, bottom = (int(edge) for edge in box)
    return word, (left, top, right, bottom)


def wrong_box(box: Any) -> str:
    """What is wrong with a box in thousandths of a page; "" for nothing."""
    edges = box.tolist() if isinstance(box, np.ndarray) else box
    if not isinstance(edges, Sequence) or isinstance(edges, str) or len(edges) != 4:
        return "not left, top, right and bottom"
    if not all(isinstance(edge, int | float | np.number) and np.isfinite(edge) for edge in edges):
        return "not four numbers"
    if not all(0 <= edge <= EDGE for edge in edges):
        return f"which is not inside 0 to {EDGE}; give thousandths of the page's width and height, not pixels"
    return "" if all(edge == int(edge) for edge in edges) else "not of whole numbers; round them"
