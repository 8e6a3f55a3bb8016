"""Transcripts as subtitle files."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoform.errors import InputError
from isoform.runtimes.pipelines.audio.subtitles import LINE, LONGEST, Cue, join_words, subtitles

SEGMENTS: dict[str, Any] = {
    "text": " Ever tried. Ever failed.",
    "chunks": [
        {"text": " Ever tried.", "timestamp": (0.0, 1.5)},
        {"text": " Ever <failed> & more -->", "timestamp": (3661.0004, None)},
    ],
}
SRT = """1
00:00:00,000 --> 00:00:01,500
Ever tried.

2
01:01:01,000 --> 01:01:04,250
Ever <failed> & more -->
"""
VTT = """WEBVTT

00:00:00.000 --> 00:00:01.500
Ever tried.

01:01:01.000 --> 01:01:04.250
Ever &lt;failed&gt; &amp; more --&gt;
"""


def test_segments_are_cues() -> None:
    assert subtitles(SEGMENTS, "srt", words=False, end=3664.25) == SRT
    assert subtitles(SEGMENTS, "vtt", words=False, end=3664.25) == VTT
    assert "01:01:01,000 --> 01:01:03,000" in subtitles(SEGMENTS, "srt", words=False)


def test_words_are_joined_at_sentences_pauses_and_full_lines() -> None:
    spoken = [(" Ever", 0.0, 0.3), (" tried.", 0.3, 0.9), (" Ever", 1.0, 1.2), (" failed", 3.0, 3.4)]
    assert join_words([Cue(start, end, text) for text, start, end in spoken]) == [
        Cue(0.0, 0.9, "Ever tried."),
        Cue(1.0, 1.2, "Ever"),
        Cue(3.0, 3.4, "failed"),
    ]
    assert join_words([Cue(0, 1, "NO"), Cue(1, 2, "SPACES")]) == [Cue(0, 2, "NO SPACES")]
    assert join_words([]) == []


@given(st.lists(st.tuples(st.text("abc .", min_size=1, max_size=9), st.floats(0, 2), st.floats(0, 2)), max_size=40))
def test_cues_follow_one_another_and_hold_every_word(drawn: list[tuple[str, float, float]]) -> None:
    words, now = [], 0.0
    for text, gap, length in drawn:
        words.append(Cue(now + gap, now + gap + length, " " + text))
        now = words[-1].end
    cues = join_words(words)
    assert "".join(c.text for c in cues).replace(" ", "") == "".join(w.text for w in words).replace(" ", "")
    for one, other in pairwise(cues):
        assert one.start <= one.end <= other.start
    for cue in cues:
        assert cue.end - cue.start <= LONGEST + 1e-9
        assert len(cue.text) <= 2 * LINE


def test_long_segments_are_wrapped() -> None:
    text = "word " * 30
    shown = subtitles({"chunks": [{"text": text, "timestamp": (0, 9)}]}, "srt", words=False)
    lines = shown.splitlines()[2:]
    assert all(len(line) <= LINE for line in lines)
    assert re.sub(r"\s+", " ", " ".join(lines)).strip() == text.strip()
    two = subtitles({"chunks": [{"text": "a" * 30 + " " + "b" * 30, "timestamp": (0, 9)}]}, "srt", words=False)
    assert two.splitlines()[2:4] == ["a" * 30, "b" * 30]


def test_what_has_no_times_is_refused() -> None:
    with pytest.raises(InputError, match="ask for them with return_timestamps"):
        subtitles({"text": "a"}, "srt", words=False)
    with pytest.raises(InputError, match="subtitles as 'ass'"):
        subtitles(SEGMENTS, "ass", words=False)  # type: ignore[arg-type]
    assert subtitles({"chunks": []}, "srt", words=True) == ""
