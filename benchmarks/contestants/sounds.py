"""The rounds of a transcriber: FOLDER THREADS BEAMS SOUND …, the sound as samples at 16 kHz (.npy)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from rounds import Clock, Costs, serve

RATE = 16000
WORDS = 20
"""That 30 s of speech have at least; fewer are no transcript."""


def run(transcribe: Callable[[Any], str], answers: int) -> None:
    """Each round is the whole sound; costs are seconds of sound by CPU time and by wall time."""
    samples = np.load(sys.argv[4])

    def round_() -> Costs:
        clock, wall = Clock(), Clock(wall=True)
        text = transcribe(samples.copy())
        if len(text.split()) < WORDS * len(samples) // (30 * RATE):
            sys.exit(f"no transcript: {text!r:.200}")
        seconds = len(samples) // RATE
        return {"speech": (seconds, clock.read()), "wall": (seconds, wall.read())}

    serve(round_, answers)
