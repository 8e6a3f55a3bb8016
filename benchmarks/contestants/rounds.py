"""How a contestant is asked for a round: one per line of standard input, answered by a line of JSON.

Whatever else it prints goes to standard error. Times are CPU seconds of the process, user and system, all threads,
unless a part is named as wall time.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable

Costs = dict[str, tuple[int, float]]
"""What a round did: by name a count of items, and the seconds that these took."""


NOTES: list[str] = []
"""What a table says of this contestant beside its name."""


def serve(run: Callable[[], Costs], answers: int) -> None:
    """Run a round per line, until there are no more; `answers` is what `begin` gave."""
    with os.fdopen(answers, "w") as stream:
        print("ready", *NOTES, file=stream, flush=True)
        for _ in sys.stdin:
            costs = run()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
            print(json.dumps({"costs": costs, "peak": peak}), file=stream, flush=True)
        stream.flush()
        os._exit(0)  # threads of a library may outlive its model


def answer(text: str, answers: int) -> None:
    """Print the only line of a process that is timed as a whole, and end it."""
    os.write(answers, (json.dumps(text) + "\n").encode())
    os._exit(0)


def begin() -> int:
    """Keep standard output for the answers; call it before anything can print."""
    answers = os.dup(1)
    os.dup2(2, 1)
    return answers


class Clock:
    """Seconds since it was made or last read: CPU seconds, or those of the wall."""

    def __init__(self, wall: bool = False) -> None:
        self._time = time.perf_counter if wall else time.process_time
        self._last = self._time()

    def read(self) -> float:
        now = self._time()
        passed, self._last = now - self._last, now
        return passed
