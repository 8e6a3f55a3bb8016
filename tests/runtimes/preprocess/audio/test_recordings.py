"""Sound from files, bytes and arrays: as transformers' `load_audio` gives it, or one line that says what is wrong."""

from __future__ import annotations

import http.server
import math
import threading
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from isoform.errors import InputError
from isoform.runtimes.preprocess import download
from isoform.runtimes.preprocess.audio import recordings as audio
from isoform.runtimes.preprocess.audio.recordings import audio_blocks, load_audio

RATE = 16000
RESAMPLED = 1e-6  # full scale is 1: float32's rounding in a filter of some hundred taps
FORMATS = (
    ("wav", "PCM_U8"),
    ("wav", "PCM_16"),
    ("wav", "PCM_24"),
    ("wav", "PCM_32"),
    ("wav", "FLOAT"),
    ("wav", "DOUBLE"),
    ("flac", "PCM_24"),
    ("ogg", "VORBIS"),
    ("ogg", "OPUS"),
    ("mp3", "MPEG_LAYER_III"),
)


def tone(count: int, channels: int = 1) -> NDArray[np.float32]:
    """(N, channels): another tone in each channel."""
    time = np.arange(count)[:, None] / 48000
    return (0.4 * np.sin(2 * np.pi * time * (300 + 70 * np.arange(channels)))).astype(np.float32)


def written(path: Path, samples: NDArray[np.float32], rate: int, **options: Any) -> Path:
    soundfile.write(path, samples, rate, **options)
    return path


# ------------------------------------------------------------------ what is read
@pytest.mark.parametrize(("suffix", "subtype"), FORMATS)
def test_every_format_is_read_as_transformers_reads_it(suffix: str, subtype: str, tmp_path: Path) -> None:
    from transformers.audio_utils import load_audio as theirs

    path = written(tmp_path / f"a.{suffix}", tone(48000, 2), 48000, subtype=subtype)
    expected = theirs(str(path), RATE, backend="soundfile")
    for source in (path, str(path), path.read_bytes()):
        found = load_audio(source, RATE)
        assert found.dtype == np.float32
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=RESAMPLED)


@pytest.mark.parametrize(
    ("rate", "channels", "count"), [(8000, 22, 8123), (44100, 1, 44101), (16000, 2, 5), (11025, 1, 1)]
)
def test_rates_and_channels_are_those_of_transformers(rate: int, channels: int, count: int, tmp_path: Path) -> None:
    from transformers.audio_utils import load_audio as theirs

    path = written(tmp_path / "a.wav", tone(count, channels), rate)
    expected = theirs(str(path), RATE, backend="soundfile")
    np.testing.assert_allclose(load_audio(path, RATE), expected, rtol=0, atol=RESAMPLED)
    assert expected.shape == (math.ceil(count * RATE / rate),)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5000), st.sampled_from([8000, 16000, 22050, 48000, 96000]), st.integers(1, 900))
def test_blocks_join_to_the_whole(count: int, rate: int, values: int) -> None:
    stream = BytesIO()
    soundfile.write(stream, tone(count, 2), rate, format="WAV", subtype="FLOAT")
    whole = load_audio(stream.getvalue(), RATE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio, "VALUES", values)
        blocks = list(audio_blocks(stream.getvalue(), RATE))
    np.testing.assert_allclose(np.concatenate(blocks), whole, rtol=0, atol=RESAMPLED)
    assert all(block.size for block in blocks)


def test_arrays_in_every_form_are_the_same_sound() -> None:
    samples = tone(4000)[:, 0]
    for source in (
        samples,
        samples.astype(np.float64),
        np.stack([samples, samples]),
        torch.from_numpy(samples),
        {"array": samples, "sampling_rate": RATE},
        {"raw": samples.tolist(), "sampling_rate": RATE},
        {"raw": torch.from_numpy(samples)[None], "sampling_rate": RATE, "path": None},
    ):
        np.testing.assert_array_equal(load_audio(source, RATE), samples)
    stereo = np.stack([samples, np.zeros_like(samples)])
    np.testing.assert_allclose(load_audio(stereo, RATE), samples / 2, rtol=0, atol=1e-7)
    found = load_audio({"array": samples, "sampling_rate": 2 * RATE}, RATE)
    assert found.shape == (2000,)
    assert load_audio(np.zeros(0, np.float32), RATE).shape == (0,)


def test_a_long_recording_is_never_whole_in_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", 48000, 2, "PCM_16") as file:
        for _ in range(30):
            file.write(np.zeros((480000, 2), np.float32))
    for _ in audio_blocks(path, RATE):  # imports
        break
    tracemalloc.start()
    assert sum(block.size for block in audio_blocks(path, RATE)) == 300 * RATE
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6  # five minutes are 115 MB of float32


# ------------------------------------------------------------------ what is refused
def test_files_that_are_no_sound_are_named(tmp_path: Path) -> None:
    text = tmp_path / "text.wav"
    text.write_text("hello, this is text\n" * 20)
    (tmp_path / "empty.wav").write_bytes(b"")
    silent = written(tmp_path / "none.wav", np.zeros((0, 1), np.float32), RATE)
    for source, message in (
        (text, r"text\.wav is no sound that libsndfile can read \(Format not recognised\); give WAV"),
        (tmp_path / "empty.wav", r"empty\.wav is empty"),
        (silent, r"none\.wav holds no sound"),
        (tmp_path / "missing.wav", r"missing\.wav is not there"),
        (tmp_path, "is a folder"),
        ("a" * 5000, r"^a{120}… \(5000 characters\) is not there"),
        ("nul\0byte", "is not there"),
        (b"RIFF", "the sound is no sound that libsndfile can read"),
        (tmp_path / "x.raw", "is not there"),
    ):
        with pytest.raises(InputError, match=message):
            load_audio(source, RATE)
    (tmp_path / "x.raw").write_bytes(b"1234")
    with pytest.raises(InputError, match=r"x\.raw is no sound"):
        load_audio(tmp_path / "x.raw", RATE)


def test_a_truncated_wav_gives_what_is_left_and_a_truncated_flac_is_refused(tmp_path: Path) -> None:
    whole = written(tmp_path / "a.wav", tone(32000), RATE).read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[: len(whole) // 2])
    found = load_audio(tmp_path / "cut.wav", RATE)
    np.testing.assert_array_equal(found, load_audio(tmp_path / "a.wav", RATE)[: found.size])
    assert 15900 < found.size < 16000
    whole = written(tmp_path / "a.flac", tone(32000), RATE).read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut\.flac is (damaged|no sound)"):
        load_audio(tmp_path / "cut.flac", RATE)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_refused(value: float, tmp_path: Path) -> None:
    samples = tone(32000)
    samples[24000] = value
    path = written(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    for source in (path, samples[:, 0]):
        with pytest.raises(InputError, match=rf"holds {value} at 1\.500 seconds, which is no sound"):
            load_audio(source, RATE)


def test_arrays_that_are_no_sound_are_refused() -> None:
    good = tone(100)[:, 0]
    for source, message in (
        (np.zeros((100, 2), np.float32), r"shape \(100, 2\) are neither \(samples,\) nor \(channels, samples\)"),
        (np.zeros((22, 100), np.float32), r"shape \(22, 100\)"),
        (np.zeros((), np.float32), r"shape \(\)"),
        (np.zeros(100, np.int16), r"int16 are not scaled; give floats .* / 32768\)"),
        (np.array(["a"]), "samples are <U1"),
        ({"array": good}, "\"sampling_rate\"; this one has 'array'"),
        ({"sampling_rate": 8000}, 'needs its samples as "array"'),
        ({"array": good, "sampling_rate": 0}, "has 0 samples per second"),
        ({"array": good, "sampling_rate": "8k"}, "sampling rate '8k'"),
        ({"array": [[1.0], [1.0, 2.0]], "sampling_rate": RATE}, "must hold numbers"),
        (7, "a recording is a path"),
    ):
        with pytest.raises(InputError, match=message):
            load_audio(source, RATE)


# ------------------------------------------------------------------ addresses
@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_address_is_fetched_within_a_limit(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    path = written(tmp_path / "a.flac", tone(16000), RATE)
    np.testing.assert_array_equal(load_audio(f"{address}/a.flac", RATE), load_audio(path, RATE))
    with pytest.raises(InputError, match=r"/b\.flac cannot be fetched \(HTTP Error 404"):
        load_audio(f"{address}/b.flac", RATE)
    monkeypatch.setattr(audio, "DOWNLOAD", 1000)
    with pytest.raises(InputError, match=r"/a\.flac is larger than 0 MiB"):
        load_audio(f"{address}/a.flac", RATE)


def test_an_address_may_not_lead_to_a_file() -> None:
    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1/etc/passwd")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(InputError, match="leads to ftp"):
            download.fetch(f"http://127.0.0.1:{server.server_port}/", BytesIO(), 100)
        server.shutdown()
