"""Every pipeline of texts answers the same from the checkpoint and from its bundle, on every backend.

The torch backend's answers are compared with those of transformers in `tests/runtimes/pipelines/`; here all others are
compared with the torch backend's. A text encoder needs no line here but its row in `tests/oracle/__init__.py`; a task
of text encoders needs one line in `ASKED`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import isoform
from isoform.formats import FORMAT_OF
from isoform.manifest import Manifest
from isoform.reference.model import open_model
from tests.exports import exported, portable
from tests.oracle import (
    DECODER_HEADS,
    ENCODERS,
    SEQUENCE_HEADS,
    SEQUENCE_TO_SEQUENCE,
    TABLES,
    TEXT_ENCODERS,
    listed,
    original,
    tiny,
)

TEXTS = ["The small cat reads a large red book in the old house.", "a naïve café", "every teacher knows this: " * 5]
QUESTIONS = [{"question": "what reads the book?", "context": text + " The small cat."} for text in TEXTS]
ASKED: dict[str, list[Any]] = {
    "feature-extraction": TEXTS,
    "fill-mask": [f"{text} [MASK] ." for text in TEXTS],
    "question-answering": QUESTIONS,
    "text-classification": TEXTS,
    "text2text-generation": TEXTS,
    "token-classification": TEXTS,
}
"""What each task of a text encoder is asked; rows of unlike length, so that a batch is padded. [MASK] stands for the
tokenizer's own mask."""

EXPERTS = ("mixtral_seqcls",)
"""ONNX Runtime's kernel for experts is none that OpenVINO takes."""
WRITTEN: dict[str, dict[str, Any]] = {
    "text2text-generation": {"num_beams": 2, "max_new_tokens": 6, "min_length": 0, "no_repeat_ngram_size": 2},
}
"""The settings of the tasks that write texts."""

FLOAT32: dict[str, Any] = {"rtol": 2e-4, "atol": 2e-5}  # a few layers, summed in another order
GELU: dict[str, Any] = {"rtol": 0, "atol": 2e-2}  # llama.cpp's GELU is a table of half precision; states are up to 4


def flat(answer: Any) -> Iterator[Any]:
    """Numbers and words of an answer in their order."""
    if isinstance(answer, dict):
        for key, value in answer.items():
            yield key
            yield from flat(value)
    elif isinstance(answer, list | tuple | np.ndarray):
        for value in answer:
            yield from flat(value)
    else:
        yield answer


def assert_same(found: Any, expected: Any, tolerance: dict[str, Any]) -> None:
    one, other = list(flat(found)), list(flat(expected))
    numbers = [isinstance(value, float | np.floating) for value in other]
    assert [x for x, number in zip(one, numbers, strict=True) if not number] == [
        x for x, number in zip(other, numbers, strict=True) if not number
    ]
    np.testing.assert_allclose(
        [x for x, number in zip(one, numbers, strict=True) if number],
        [x for x, number in zip(other, numbers, strict=True) if number],
        **tolerance,
    )


def answers(source: Path, task: str, backend: str, size: int) -> Any:
    asked = ASKED[task]
    if task == "fill-mask":
        mask = json.loads((source / "tokenizer_config.json").read_text())["mask_token"]
        asked = [text.replace("[MASK]", mask) for text in asked]
    with isoform.pipeline(task, source, backend=backend, threads=1, batch_size=size) as pipe:
        return pipe(asked, **WRITTEN.get(task, {}))


WITHOUT_TABLES = [name for name in listed(TABLES) if original(name) not in ("tapas_qa", "tapas_sqa_b")]
"""Models of tables that answer about texts too; the others are in runtimes/pipelines/text/."""
GENERATING = {name: n for names in SEQUENCE_TO_SEQUENCE.values() for n, name in enumerate(names)}
"""Encoder-decoders that write texts, with their place in the family."""


@pytest.mark.parametrize(
    "name",
    [
        *ENCODERS,
        *WITHOUT_TABLES,
        *(pytest.param(name, marks=(pytest.mark.nightly,) if n else ()) for name, n in GENERATING.items()),
    ],
)
def test_a_bundle_answers_as_its_checkpoint_does(name: str) -> None:
    task, bundle = open_model(tiny(name)).task.name, exported(name)
    expected = answers(tiny(name), task, "torch", 1)
    assert_same(answers(tiny(name), task, "torch", 3), expected, FLOAT32)
    written = {artifact.format for artifact in Manifest.read(bundle).artifacts}
    for backend, form in FORMAT_OF.items():
        if form in written:
            tolerance = GELU if form == "gguf" else FLOAT32
            standard = backend == "openvino" and (name in GENERATING or name in EXPERTS)
            assert_same(answers(portable(name) if standard else bundle, task, backend, 3), expected, tolerance)


@pytest.mark.parametrize("backend", ["torchscript", "onnxruntime"])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if n == 0 else (pytest.mark.nightly,))
        for names in (*TEXT_ENCODERS.values(), WITHOUT_TABLES, *DECODER_HEADS.values(), *SEQUENCE_HEADS.values())
        for n, name in enumerate(names)
    ],
)
def test_a_checkpoint_answers_the_same_on_every_backend(
    name: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOFORM_CACHE", str(tmp_path))  # the form that a backend needs is exported first
    task = open_model(tiny(name)).task.name
    assert_same(answers(tiny(name), task, backend, 2), answers(tiny(name), task, "torch", 2), FLOAT32)
