"""Recordings on the command line: transcripts, subtitles, and one line for what is no sound."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.cli.test_bad_input import run
from tests.oracle import tiny

ASR = ("run", "automatic-speech-recognition")


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 32000).astype(np.float32), 16000)
    return path


def test_transcripts_and_subtitles(
    recording: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny("wav2vec2_ctc")
    assert run(monkeypatch, *ASR, model, recording, "--json", "-s", "return_timestamps=word") == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert run(monkeypatch, *ASR, model, recording) == 0
    assert capsys.readouterr().out == answer["text"] + "\n"
    assert run(monkeypatch, *ASR, model, recording, "-s", "return_timestamps=word") == 0
    assert f"{answer['chunks'][0]['timestamp'][0]:.2f} –" in capsys.readouterr().out
    assert run(monkeypatch, *ASR, model, recording, "--format", "vtt") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("WEBVTT\n\n00:00:0")
    assert run(monkeypatch, *ASR, model, recording, "--format", "srt") == 0
    assert capsys.readouterr().out.startswith("1\n00:00:0")


def test_what_is_wrong_is_said_in_one_line(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.wav"
    text.write_text("no sound at all")
    model = tiny("wav2vec2_ctc")
    for arguments, message in (
        ((*ASR, model, text), "is no sound that libsndfile can read"),
        ((*ASR, model, tmp_path / "none.wav"), "is not there"),
        ((*ASR, model, recording, "--format", "ass"), "choose from srt, vtt"),
        ((*ASR, model, recording, "--format", "srt", "--json"), "without --json"),
        ((*ASR, model, recording, recording, "--format", "srt"), "of one recording"),
        ((*ASR, model, recording, "-s", "return_timestamps=true"), "times of characters or words"),
        (("run", "audio-classification", tiny("wav2vec2"), text), "is no sound"),
        (("run", "audio-classification", tiny("wav2vec2"), recording, "--format", "srt"), "--format srt is for"),
    ):
        assert run(monkeypatch, *arguments) == 2
        error = capsys.readouterr().err
        assert message in error.replace("\n", " ")
        assert "Traceback" not in error
