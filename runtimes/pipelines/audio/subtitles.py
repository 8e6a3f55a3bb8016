"""Transcripts as subtitles: SubRip (.srt) and WebVTT (.vtt, https://www.w3.org/TR/webvtt1/).

Segments are cues as they come. Words are joined into cues that a reader can follow: two lines of text at most, ending
where a sentence does or where nobody speaks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from isoform.errors import InputError

FORMATS = ("srt", "vtt")
LINE = 42  # characters, as broadcasters have it
LONGEST = 7.0  # seconds of a cue made of words
PAUSE = 0.8  # seconds of silence that end one
LAST = 2.0  # seconds of a last cue whose end is not known
SENTENCE = (".", "!", "?", "…", "。", "！", "？")


@dataclass(frozen=True, slots=True)
class Cue:
    """A text that is shown from `start` to `end`, in seconds."""

    start: float
    end: float
    text: str


def subtitles(answer: Mapping[str, Any], form: Literal["srt", "vtt"], *, words: bool, end: float | None = None) -> str:
    """The transcript of one recording as a subtitle file.

    `answer` is speech recognition's, with "chunks"; `words` says that these are words. `end` is the recording's length,
    for a last chunk without an end. Raises InputError for an answer without chunks.
    """
    if form not in FORMATS:
        raise InputError(f"subtitles as {form!r} are not known; choose from {', '.join(FORMATS)}")
    chunks = answer.get("chunks")
    if not isinstance(chunks, list):
        raise InputError("subtitles need the times of words or segments; ask for them with return_timestamps")
    timed = list(_timed(chunks, end))
    made = join_words(timed) if words else [Cue(c.start, c.end, " ".join(c.text.split())) for c in timed]
    lines = ["WEBVTT", ""] if form == "vtt" else []
    for number, cue in enumerate((cue for cue in made if cue.text), 1):
        if form == "srt":
            lines += [str(number), f"{_time(cue.start, ',')} --> {_time(cue.end, ',')}", _wrapped(cue.text), ""]
        else:
            lines += [f"{_time(cue.start, '.')} --> {_time(cue.end, '.')}", _escaped(_wrapped(cue.text)), ""]
    return "\n".join(lines)


def join_words(words: Sequence[Cue]) -> list[Cue]:
    """Words into cues. A word that brings its own space, or none, keeps to it; others get one between them."""
    spaced = any(word.text[:1].isspace() for word in words)
    cues: list[Cue] = []
    for word in words:
        last = cues[-1] if cues else None
        if last is not None and not _ends(last, word):
            text = last.text + ("" if spaced else " ") + word.text
            cues[-1] = Cue(last.start, max(last.end, word.end), text)
        else:
            cues.append(word)
    return [Cue(cue.start, cue.end, " ".join(cue.text.split())) for cue in cues]


def _ends(cue: Cue, word: Cue) -> bool:
    """Whether the next word begins a new cue."""
    text = cue.text.strip()
    full = len(text) + 1 + len(word.text.strip()) > 2 * LINE or word.end - cue.start > LONGEST
    return full or word.start - cue.end > PAUSE or text.endswith(SENTENCE)


def _timed(chunks: Sequence[Mapping[str, Any]], end: float | None) -> Iterator[Cue]:
    """Chunks with both times; a missing one is the neighbour's, the recording's or `LAST` seconds away."""
    before = 0.0
    for n, chunk in enumerate(chunks):
        first, last = chunk["timestamp"]
        start = before if first is None else float(first)
        if last is None:
            follows = next((c["timestamp"][0] for c in chunks[n + 1 :] if c["timestamp"][0] is not None), None)
            last = next((t for t in (follows, end) if t is not None and t > start), start + LAST)
        before = max(start, float(last))
        yield Cue(start, before, str(chunk["text"]))


def _time(seconds: float, point: str) -> str:
    milliseconds = round(max(seconds, 0.0) * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"


def _wrapped(text: str) -> str:
    """Two lines of about the same length where one would be too long; what is longer still stays in lines of `LINE`."""
    if len(text) <= LINE or " " not in text:
        return text
    if len(text) <= 2 * LINE:
        places = [n for n, letter in enumerate(text) if letter == " "]
        middle = min(places, key=lambda n: abs(n - len(text) / 2))
        if max(middle, len(text) - middle - 1) <= LINE:
            return f"{text[:middle]}\n{text[middle + 1 :]}"
    from textwrap import wrap

    return "\n".join(wrap(text, LINE, break_long_words=False, break_on_hyphens=False))


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
