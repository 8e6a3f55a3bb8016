"""openvino-genai's pipeline for embeddings: FOLDER TEXTS PRECISION ("f32", "bf16") BATCH-SIZE."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rounds import Clock, Costs, begin, serve

answers = begin()

import openvino_genai as genai  # noqa: E402

folder, texts, size = sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), int(sys.argv[4])
options = {"INFERENCE_PRECISION_HINT": sys.argv[3], "INFERENCE_NUM_THREADS": 1}
pipe = genai.TextEmbeddingPipeline(
    folder, "CPU", pooling_type=genai.TextEmbeddingPipeline.PoolingType.MEAN, normalize=True, **options
)


def run() -> Costs:
    """Sentences of like length together, as sentence-transformers does it."""
    clock, vectors = Clock(), []
    ordered = sorted(texts, key=len)
    for start in range(0, len(texts), size):
        vectors += pipe.embed_documents(ordered[start : start + size])
    return {"embedding": (len(vectors), clock.read())}


serve(run, answers)
