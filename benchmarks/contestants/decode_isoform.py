"""isoform's own loop over an ONNX graph: FILE PROMPT-LENGTH NEW-TOKENS."""

from __future__ import annotations

import sys
from pathlib import Path

from rounds import Clock, Costs, begin, serve

answers = begin()

from isoform.runtimes.generation import GenerationConfig, steps  # noqa: E402
from isoform.runtimes.onnxruntime_backend import OnnxRuntimeSession  # noqa: E402

file, length, new = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
session = OnnxRuntimeSession(file, threads=1)
prompt = [(7 * n) % 30000 + 100 for n in range(length)]


def run() -> Costs:
    clock = Clock()
    tokens = steps(session, [prompt], GenerationConfig(max_new_tokens=new))
    next(tokens)
    costs: Costs = {"prefill": (length, clock.read())}
    *_, (row,) = tokens
    costs["decode"] = (len(row.made) - 1, clock.read())
    return costs


serve(run, answers)
