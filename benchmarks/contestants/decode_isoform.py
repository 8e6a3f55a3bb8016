"""isoform's own loop over an ONNX graph: FILE. The work is `decode` of `texts.py`, and the time between passes."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

from rounds import Clock, Costs, begin, serve

answers = begin()

from texts import NEW, PROMPT  # noqa: E402

from isoform.runtimes.backends.onnxruntime.session import OnnxRuntimeSession  # noqa: E402
from isoform.runtimes.generation.loop import steps  # noqa: E402
from isoform.runtimes.generation.settings import GenerationConfig  # noqa: E402

session = OnnxRuntimeSession(Path(sys.argv[1]), threads=1)
prompt = [(7 * n) % 30000 + 100 for n in range(PROMPT)]


def run() -> Costs:
    clock = Clock()
    tokens = steps(session, [prompt], GenerationConfig(max_new_tokens=NEW))
    next(tokens)
    costs: Costs = {"prefill 128": (PROMPT, clock.read())}
    *_, (row,) = tokens
    costs["decode"] = (len(row.made) - 1, clock.read())
    costs["between"] = between()
    return costs


class Watched:
    """ONNX Runtime's session, and when each of its passes begins and ends."""

    def __init__(self, native: Any) -> None:
        self._native = native
        self.passes: list[tuple[float, float]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)

    def run_with_iobinding(self, binding: Any) -> None:
        start = perf_counter()
        self._native.run_with_iobinding(binding)
        self.passes.append((start, perf_counter()))


def between() -> tuple[int, float]:
    """How often a pass followed another in one more generation, and the wall seconds between them."""
    native = session._session
    session._session = watched = Watched(native)
    for _ in steps(session, [prompt], GenerationConfig(max_new_tokens=NEW)):
        pass
    session._session = native
    passes = watched.passes
    return len(passes) - 1, sum(then[0] - now[1] for now, then in pairwise(passes))


serve(run, answers)
