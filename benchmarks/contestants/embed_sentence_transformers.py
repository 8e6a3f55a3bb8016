"""sentence-transformers: BACKEND FOLDER TEXTS BATCH-SIZE [DTYPE]; the ONNX backend takes Optimum's O3 graph."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rounds import Clock, Costs, begin, serve

answers = begin()

import torch  # noqa: E402
from sentence_transformers import SentenceTransformer  # noqa: E402

backend, folder, texts, size = sys.argv[1], sys.argv[2], json.loads(Path(sys.argv[3]).read_text()), int(sys.argv[4])
torch.set_num_threads(1)
options: dict[str, Any] = {"dtype": getattr(torch, sys.argv[5])} if len(sys.argv) > 5 else {}
if backend == "onnx":
    import onnxruntime

    session = onnxruntime.SessionOptions()
    session.intra_op_num_threads = session.inter_op_num_threads = 1
    options = {"file_name": "onnx/model_O3.onnx", "provider": "CPUExecutionProvider", "session_options": session}
model = SentenceTransformer(folder, backend=backend, device="cpu", model_kwargs=options)


def run() -> Costs:
    clock = Clock()
    vectors = model.encode(texts, batch_size=size, show_progress_bar=False)
    return {"embedding": (len(vectors), clock.read())}


serve(run, answers)
