"""The tokens of one or several pieces of sound as one text with segments or words, as transformers' `_decode_asr`.

Pieces that overlap are joined where their tokens agree best; timestamps inside the overlap are left aside until then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from isoform.runtimes.pipelines.audio.speech.languages import LANGUAGES
from isoform.runtimes.pipelines.audio.speech.words import words

Span = tuple[float, float]
Timestamps = bool | Literal["word"]


@dataclass(frozen=True, slots=True)
class SpeechVocabulary:
    """What the tokens are. `language` is the English name that words are split by if none is among the tokens."""

    decode: Callable[[Sequence[int]], str]
    special: frozenset[int]
    languages: dict[int, str]  # token -> code
    first_timestamp: int
    end: int
    language: str = "english"


@dataclass(frozen=True, slots=True)
class SoundTokens:
    """What was heard in one piece of sound; `stride` is its length and what it shares with its neighbours, seconds."""

    tokens: Sequence[int]
    times: Sequence[float] | None = None  # of every token, for words
    stride: tuple[float, float, float] | None = None


@dataclass(slots=True)
class _Segment:
    language: str | None
    start: float | None = None
    end: float | None = None
    text: str = ""
    words: list[dict[str, Any]] = field(default_factory=list)


def join(
    pieces: Iterable[SoundTokens],
    vocabulary: SpeechVocabulary,
    *,
    timestamps: Timestamps = False,
    with_language: bool = False,
    precision: float = 0.02,
    window: int = 1500,
) -> dict[str, Any]:
    """`{"text"}`, and "chunks" of {"timestamp", "text"} or words where asked for, each with its "language" if asked.

    `precision` is the seconds between two timestamps and `window` their number in the model's window.
    """
    joiner = _Joiner(vocabulary, timestamps, with_language, precision, window)
    for piece in pieces:
        joiner.add(piece)
    return joiner.result()


class _Joiner:
    def __init__(
        self, vocabulary: SpeechVocabulary, timestamps: Timestamps, with_language: bool, precision: float, window: int
    ) -> None:
        self._vocabulary, self._timestamps, self._with_language = vocabulary, timestamps, with_language
        self._precision, self._window = precision, window
        self._language: str | None = None
        self._done: list[_Segment] = []
        self._segment = _Segment(None)
        self._offset = 0.0  # where the piece begins, seconds
        self._skip = False  # the next timestamp belongs to a pair whose first was left aside
        # Tokens since the last segment ended, by piece, and when each token was said.
        self._held: list[list[int]] = []
        self._held_spans: list[list[Span]] = []

    def add(self, piece: SoundTokens) -> None:
        first, precision = self._vocabulary.first_timestamp, self._precision
        tokens = piece.tokens
        overlap_start: float = first  # tokens below are timestamps in the overlap with the piece before
        overlap_end: int | None = None  # tokens from here on, in that with the piece after
        if piece.stride is not None:
            length, left, right = piece.stride
            self._offset -= left
            if left:
                overlap_start = left / precision + first
            if right:
                for token in reversed(tokens):
                    if token >= first:
                        # Several may lie in the overlap; the last timestamp of all is always left aside.
                        if overlap_end is not None and (token - first) * precision < length - right:
                            break
                        overlap_end = token
        # The sequential algorithm gives the tokens of several windows in a row, whose timestamps begin at 0 again.
        latest = window_start = before_latest = 0.0
        current: list[int] = []
        spans: list[Span] = []
        for n, token in enumerate(tokens):
            if token in self._vocabulary.special:
                if (code := self._vocabulary.languages.get(token)) is not None:
                    self._meet(LANGUAGES[code], current)
            elif token >= first:
                moment = float((token - first) * precision)
                if moment < latest:
                    paired = n >= 2 and not (tokens[n - 1] >= first and tokens[n - 2] >= first)
                    if paired:
                        window_start += precision * self._window
                    else:
                        latest = before_latest
                        window_start += before_latest
                before_latest, latest = latest, moment
                moment = round((token - first) * precision + self._offset + window_start, 2)
                if overlap_end and token >= overlap_end:
                    self._skip = True
                elif self._skip or (self._held and token < overlap_start):
                    self._skip = False
                elif self._segment.start is None:
                    self._segment.start = moment
                elif moment != self._segment.start:  # an empty segment has no end: its start counts again
                    self._segment.end = moment
                    self._held.append(current)
                    self._held_spans.append(spans)
                    self._finish()
                    current, spans = [], []
            else:
                current.append(token)
                if self._timestamps == "word":
                    times = piece.times or ()
                    begin = times[n - 1] if n else 0.0
                    spans.append((round(begin + self._offset, 2), round(times[n] + self._offset, 2)))
        if piece.stride is not None:
            self._offset += length - right
        if current:
            self._held.append(current)
            self._held_spans.append(spans)
        elif not any(self._held):
            self._segment = _Segment(self._language)
            self._held, self._held_spans = [], []

    def _meet(self, language: str, current: list[int]) -> None:
        """A language's token. Without timestamps, another language than before begins a new segment."""
        if self._language and language != self._language and not self._timestamps:
            self._held.append(list(current))
            self._finish()
            current.clear()
        self._segment.language = self._language = language

    def _finish(self) -> None:
        """End the segment with the tokens held."""
        spoken = self._timestamps == "word"
        tokens, spans = merge(self._held, self._held_spans if spoken else None)
        segment, vocabulary = self._segment, self._vocabulary
        segment.text = vocabulary.decode(tokens)
        if spoken:
            language = self._language or vocabulary.language
            extra = {"language": self._language} if self._with_language else {}
            segment.words = [
                {"text": word.text, "timestamp": (spans[word.places[0]][0], spans[word.places[-1]][1]), **extra}
                for word in words(tokens, vocabulary.decode, language=language, end=vocabulary.end)
            ]
        self._done.append(segment)
        self._segment = _Segment(self._language)
        self._held, self._held_spans = [], []

    def result(self) -> dict[str, Any]:
        if self._held:
            self._finish()
        out: dict[str, Any] = {"text": "".join(segment.text for segment in self._done)}
        if self._timestamps == "word":
            out["chunks"] = [word for segment in self._done for word in segment.words]
        elif self._timestamps or self._with_language:
            out["chunks"] = [
                {
                    **({"language": segment.language} if self._with_language else {}),
                    **({"timestamp": (segment.start, segment.end)} if self._timestamps else {}),
                    "text": segment.text,
                }
                for segment in self._done
            ]
        return out


def merge(
    sequences: Sequence[Sequence[int]], spans: Sequence[Sequence[Span]] | None = None
) -> tuple[list[int], list[Span]]:
    """Overlapping sequences of tokens as one: each is laid over the one before where most tokens agree.

    The overlap's left half is kept from the left sequence, its right half from the right one. With `spans`, when each
    token was said, only tokens that do not go back in time agree.
    """
    left = list(sequences[0])
    left_spans = list(spans[0]) if spans else []
    out: list[int] = []
    out_spans: list[Span] = []
    for n in range(1, len(sequences)):
        right = list(sequences[n])
        right_spans = list(spans[n]) if spans else []
        a, b, c, d = _best_overlap(left, right, left_spans, right_spans)
        left_half, right_half = (a + b) // 2, (c + d) // 2
        out += left[:left_half]
        out_spans += left_spans[:left_half]
        left, left_spans = right[right_half:], right_spans[right_half:]
    return out + left, out_spans + left_spans


def _best_overlap(
    left: Sequence[int], right: Sequence[int], left_spans: Sequence[Span], right_spans: Sequence[Span]
) -> tuple[int, int, int, int]:
    """Where left[a:b] and right[c:d] agree best; the end of one and the start of the other if nowhere."""
    best, most = (len(left), len(left), 0, 0), 0.0
    one, other = np.array(left, np.int64), np.array(right, np.int64)
    begins, others = np.array(left_spans, np.float64).reshape(-1, 2), np.array(right_spans, np.float64).reshape(-1, 2)
    for shift in range(1, len(left) + len(right)):
        a, b = max(0, len(left) - shift), min(len(left), len(left) + len(right) - shift)
        c, d = max(0, shift - len(left)), min(len(right), shift)
        same = one[a:b] == other[c:d]
        if left_spans:
            x, y = begins[a:b], others[c:d]
            same &= (x[:, 0] < y[:, 0]) | ((x[:, 0] == y[:, 0]) & (x[:, 1] <= y[:, 1]))
        count = int(same.sum())
        share = count / shift + shift / 10000.0  # a little more for long overlaps
        if count > 1 and share > most:
            best, most = (a, b, c, d), share
    return best
