"""Calls as people make them: options for one format, views in a terminal, one pipeline in several threads."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import isoform as package
from isoform.errors import InputError
from tests.exports import exported
from tests.field.making import isoform, refused
from tests.oracle import tiny


# ------------------------------------------------------------------ an option that is silently not used
@pytest.mark.parametrize(
    ("options", "files"),
    [
        (("--to", "gguf", "--dtype", "f16"), ["model-f16.gguf"]),
        (("--to", "gguf", "--dtype", "bf16"), ["model-bf16.gguf"]),
        (("--to", "gguf", "--dtype", "f16", "--gguf-type", "q8_0"), ["model-q8_0.gguf"]),
        (("--to", "gguf", "--gguf-type", "q8_0", "--gguf-type", "f16"), ["model-f16.gguf", "model-q8_0.gguf"]),
        (("--to", "gguf", "--to", "onnx"), ["model-f32.gguf", "model.onnx"]),
        (("--to", "gguf,onnx", "--dtype", "f16"), ["model-f16.gguf", "model_fp16.onnx"]),
    ],
)
def test_an_option_is_followed(options: tuple[str, ...], files: list[str], tmp_path: Path) -> None:
    ran = isoform("export", tiny("llama"), "--no-check", "--out", tmp_path / "out", *options)
    assert ran.code == 0, ran
    found = [path.name for path in (tmp_path / "out").rglob("*") if path.suffix in (".gguf", ".onnx")]
    assert sorted(found) == files
    if "model-f16.gguf" in files:
        import gguf

        (path,) = (tmp_path / "out").rglob("model-f16.gguf")
        kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors if len(tensor.shape) > 1}
        assert kinds == {"F16"}


@pytest.mark.parametrize(
    "options",
    [
        ("--to", "onnx", "--gguf-type", "q8_0"),
        ("--to", "onnx", "--pre", "llama-bpe"),
        ("--to", "onnx", "--split-max-size", "1G"),
        ("--to", "onnx", "--override", "a=f16"),
        ("--to", "gguf", "--onnx-type", "int8"),
        ("--to", "gguf", "--portable"),
        ("--to", "torchscript", "--weights", "link"),
    ],
)
def test_an_option_of_a_format_that_is_not_written_is_refused(options: tuple[str, ...], tmp_path: Path) -> None:
    said = refused("export", tiny("llama"), "--out", tmp_path / "out", *options)
    assert f"{options[2]}" in said
    assert "which --to does not name" in said


def test_an_object_of_options_of_another_format_is_refused_too(tmp_path: Path) -> None:
    from isoform.exporters import gguf

    with pytest.raises(InputError, match="gguf= is for gguf"):
        package.export(tiny("llama"), tmp_path / "out", to="onnx", gguf=gguf.Options(types=("f16",)))


# ------------------------------------------------------------------ a view made for people
@pytest.mark.parametrize("what", ["models", "bundle", "onnx", "gguf", "checkpoint"])
@pytest.mark.parametrize("columns", [80, 120])
def test_a_view_fits_and_is_not_pythons_notation(what: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = exported("llama", ("onnx", "gguf"), "f32")
    path = {
        "bundle": bundle,
        "onnx": bundle / "onnx" / "model.onnx",
        "gguf": next((bundle / "gguf").glob("*.gguf")),
        "checkpoint": tiny("llama"),
    }
    monkeypatch.setenv("COLUMNS", str(columns))
    ran = isoform("models") if what == "models" else isoform("inspect", path[what])
    assert ran.code == 0, ran
    lines = ran.out.splitlines()
    assert max(map(len, lines)) <= columns
    assert not any(sign in ran.out for sign in ("{'", "[{", "None,", "True,"))
    assert len(lines) < 110
    if what == "models":
        from isoform.support import families

        for family in families():
            assert len([line for line in lines if line.startswith(f"{family['family']}  ")]) == 1


def test_the_same_is_there_for_machines() -> None:
    assert json.loads(isoform("inspect", exported("llama", ("onnx", "gguf"), "f32"), "--json").out)
    assert json.loads(isoform("models", "--json").out)


# ------------------------------------------------------------------ one pipeline, several threads
def in_threads(work: Any, count: int = 12) -> list[Any]:
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(work, range(count)))


WORDS = ["Hello the", "The cat", "a b c"]
GREEDY: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}


@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "torchscript", "llamacpp"])
def test_each_thread_has_the_answer_to_its_own_text(backend: str) -> None:
    with package.pipeline("text-generation", str(tiny("qwen2")), backend=backend) as pipe:
        expected = [pipe(text, **GREEDY) for text in WORDS]

        def work(n: int) -> Any:
            if n % 4 == 3:  # a call that fails leaves the others alone
                with pytest.raises(InputError):
                    pipe("Hello", max_new_tokens=-1)
            parts: list[str] = []
            answer = pipe(WORDS[n % 3], streamer=parts.append, **GREEDY)
            assert answer[0]["generated_text"].endswith("".join(parts))
            return answer

        assert in_threads(work) == [expected[n % 3] for n in range(12)]


def test_each_thread_has_its_own_beams() -> None:
    with package.pipeline("text-generation", str(tiny("qwen2")), backend="llamacpp") as pipe:
        expected = [pipe(text, num_beams=3, **GREEDY) for text in WORDS]
        assert in_threads(lambda n: pipe(WORDS[n % 3], num_beams=3, **GREEDY)) == [expected[n % 3] for n in range(12)]


@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "torchscript"])
@pytest.mark.parametrize("name", ["whisper", "moonshine", "wav2vec2_ctc"])
def test_each_thread_has_the_answer_to_its_own_recording(name: str, backend: str, tmp_path: Path) -> None:
    sounds = [0.1 * np.random.default_rng(n).standard_normal(24000).astype(np.float32) for n in range(2)]
    soundfile.write(tmp_path / "a.wav", sounds[0], 16000, subtype="FLOAT")
    options: dict[str, Any] = {} if name == "wav2vec2_ctc" else {"max_new_tokens": 4}
    with package.pipeline("automatic-speech-recognition", str(tiny(name)), backend=backend) as pipe:
        given = [str(tmp_path / "a.wav"), sounds[1]]
        expected = [pipe(one, **options) for one in given]
        assert in_threads(lambda n: pipe(given[n % 2], **options), 6) == [expected[n % 2] for n in range(6)]
