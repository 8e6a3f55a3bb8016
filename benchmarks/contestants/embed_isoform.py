"""isoform's pipeline over an ONNX bundle: FOLDER TEXTS."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rounds import Clock, Costs, begin, serve

answers = begin()

import isoform  # noqa: E402

folder, texts = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
pipe = isoform.pipeline("sentence-similarity", folder, backend="onnxruntime", threads=1)


def run() -> Costs:
    clock = Clock()
    vectors = pipe(texts)
    return {"embedding": (len(vectors), clock.read())}


serve(run, answers)
