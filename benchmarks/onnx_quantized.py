"""What each ONNX type costs: size, divergence from float32 on real text, and speed on one thread.

    python -m benchmarks.onnx_quantized CHECKPOINT [--types f32,f16,q8_0,int8,q4a,q4_0,q4w]

A decoder is judged by the KL divergence of its next-token distribution and how often its first choice is the same,
over a prefill and then token by token; an encoder by the cosine of its mean embeddings. The text is the documentation
of modules of Python's standard library. Quantized activations are part of what is measured: the files run as they ship.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from isoform.exporters.onnx import write
from isoform.exporters.onnx.types import CHOICES
from isoform.reference.classes import class_facts
from isoform.reference.model import open_model
from isoform.runtimes.backends.onnxruntime.session import OnnxRuntimeSession
from isoform.runtimes.preprocess.text.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.manifest import Artifact

MODULES = ("argparse", "calendar", "collections", "decimal", "difflib", "fractions", "heapq", "statistics", "textwrap")
LENGTH, STEPS = 128, 16  # tokens in one pass, then tokens one by one
Answer = list["NDArray[np.float64]"]


def passages() -> list[str]:
    """Prose of some hundred words each."""
    found = []
    for name in MODULES:
        module = importlib.import_module(name)
        texts = [inspect.getdoc(module), *(inspect.getdoc(value) for value in vars(module).values())]
        found.append("\n\n".join(dict.fromkeys(text for text in texts if text and text.count(" ") > 20)))
    return [text for text in found if text.count(" ") > 150]


def log_softmax(x: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = x.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(-1, keepdims=True))
    return wide


def decode(session: OnnxRuntimeSession, rows: list[list[int]]) -> tuple[Answer, float, float]:
    """Log-probabilities per row (T, V), and tokens per CPU second of the prefill and of the steps."""
    answers: Answer = []
    seconds = [0.0, 0.0]
    for ids in rows:
        row = np.array([ids])
        decoder, parts = session.decoder(1), []
        for start, end in ((0, LENGTH), *((n, n + 1) for n in range(LENGTH, LENGTH + STEPS))):
            begin = time.process_time()
            parts.append(decoder.step(row[:, start:end], last=None)[0])
            seconds[start > 0] += time.process_time() - begin
        answers.append(log_softmax(np.concatenate(parts)))
    return answers, LENGTH * len(rows) / seconds[0], STEPS * len(rows) / seconds[1]


def embed(session: OnnxRuntimeSession, rows: list[list[int]]) -> tuple[Answer, float]:
    """Mean embeddings of unit length (C,), and tokens per CPU second."""
    answers, begin = [], time.process_time()
    for ids in rows:
        row = np.array([ids])
        known = {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)}
        inputs = {port.name: known[port.name] for port in session.signature.inputs}
        mean = session.run(inputs)[session.signature.outputs[0].name][0].astype(np.float64).mean(0)
        answers.append(mean / np.linalg.norm(mean))
    return answers, sum(map(len, rows)) / (time.process_time() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--types", default="f32,f16,q8_0,int8,q4a,q4_0,q4w", help=CHOICES)
    arguments = parser.parse_args()
    model = open_model(arguments.checkpoint)
    tokenizer = TextTokenizer(model.checkpoint.folder, class_facts(model.checkpoint.folder))
    rows = [row.ids[: LENGTH + STEPS] for row in tokenizer.encode(passages()) if len(row.ids) >= LENGTH + STEPS]
    names = list(dict.fromkeys(["f32", *arguments.types.split(",")]))
    columns = (
        "KL (nats) | same choice | prefill tok/s | decode tok/s" if model.signature.states else "1 - cosine | tok/s"
    )
    print(f"{model.name}, {len(rows)} passages of {LENGTH + STEPS} tokens\n\n| type | MB | {columns} |")
    print("|---" * (columns.count("|") + 3) + "|")
    truth: Answer = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            (artifact,) = write(model, Path(folder), name, lambda text, done, total: None)
            answers, line = judge(Path(folder), artifact, rows, truth)
            truth = truth or answers
            print(f"| {name} | {sum(file.size for file in artifact.files) / 1e6:.0f} | {line} |", flush=True)


def judge(folder: Path, artifact: Artifact, rows: list[list[int]], truth: Answer) -> tuple[Answer, str]:
    """The answers of a type and its cells of the table; without `truth` they are the truth."""
    with OnnxRuntimeSession(folder / artifact.files[0].path, artifact.signature, threads=1) as session:
        if not session.signature.states:
            embeddings, speed = embed(session, rows)
            gap = 1 - np.mean([float(a @ b) for a, b in zip(embeddings, truth or embeddings, strict=True)])
            return embeddings, f"{gap:.1e} | {speed:.0f}"
        answers, prefill, steps = decode(session, rows)
    pairs = list(zip(answers, truth or answers, strict=True))
    loss = np.mean([(np.exp(want) * (want - got)).sum(-1).mean() for got, want in pairs])
    same = np.mean([(got.argmax(-1) == want.argmax(-1)).mean() for got, want in pairs])
    return answers, f"{loss:.4f} | {same:.3f} | {prefill:.0f} | {steps:.1f}"


if __name__ == "__main__":
    main()
