"""sentence-transformers' vectors of texts by length: FOLDER TEXTS DTYPE THREADS VECTORS."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rounds import Clock, Costs, begin, serve

answers = begin()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from sentence_transformers import SentenceTransformer  # noqa: E402

texts = json.loads(Path(sys.argv[2]).read_text())
torch.set_num_threads(int(sys.argv[4]))
dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[sys.argv[3]]
model = SentenceTransformer(sys.argv[1], device="cpu", model_kwargs={"dtype": dtype})
tokens = {part: sum(len(ids) for ids in model.tokenizer(given)["input_ids"]) for part, given in texts.items()}
np.save(sys.argv[5], model.encode(texts["mixed"], show_progress_bar=False).astype(np.float32))


def seconds(given: list[str], size: int) -> float:
    clock = Clock()
    model.encode(given, batch_size=size, show_progress_bar=False)
    return clock.read()


def run() -> Costs:
    costs: Costs = {}
    for part, given in texts.items():
        costs[part] = (tokens[part], seconds(given, 1 if part == "mixed" or "one by one" in part else 32))
    return costs


serve(run, answers)
