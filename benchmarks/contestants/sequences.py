"""What every encoder-decoder is given: WORK is THREADS:BEAMS:NEW:FILE, the ids of the texts as JSON.

All texts of a round go in as one batch. Each gets NEW tokens, the end of text put off, from so many beams.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from rounds import Clock, Costs, serve

_threads, _beams, _new, _file = sys.argv[1].split(":", 3)
THREADS, BEAMS, NEW = int(_threads), int(_beams), int(_new)
TEXTS: list[list[int]] = json.loads(Path(_file).read_text(encoding="utf-8"))


def run(generate: Callable[[], int], answers: int) -> None:
    """Rounds of `generate`, which returns how many tokens each text got."""

    def once() -> Costs:
        seconds, wall = Clock(), Clock(wall=True)
        made = generate()
        if made != NEW:
            raise ValueError(f"{made} tokens were made instead of {NEW}")
        count = len(TEXTS) * NEW
        return {"tokens": (count, seconds.read()), "wall": (count, wall.read())}

    serve(once, answers)
