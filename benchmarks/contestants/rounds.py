"""How a contestant is asked for a round: one per line of standard input, answered by a line of JSON.

Whatever else it prints goes to standard error. Times are CPU seconds of the process, user and system, all threads.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable

Costs = dict[str, tuple[int, float]]
"""What a round did: by name a count of tokens, and the CPU seconds that these took."""


def serve(run: Callable[[], Costs], answers: int) -> None:
    """Run a round per line, until there are no more; `answers` is what `begin` gave."""
    with os.fdopen(answers, "w") as stream:
        print("ready", file=stream, flush=True)
        for _ in sys.stdin:
            costs = run()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
            print(json.dumps({"costs": costs, "peak": peak}), file=stream, flush=True)


def begin() -> int:
    """Keep standard output for the answers; call it before anything can print."""
    answers = os.dup(1)
    os.dup2(2, 1)
    return answers


class Clock:
    """CPU seconds since it was made or last read."""

    def __init__(self) -> None:
        self._last = time.process_time()

    def read(self) -> float:
        now = time.process_time()
        passed, self._last = now - self._last, now
        return passed
