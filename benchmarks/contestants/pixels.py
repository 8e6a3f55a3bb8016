"""The rounds of an image model: batches of 8 of the pixels (B, 3, 224, 224) in the file that is the last argument."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from rounds import Clock, Costs, serve

SIZE = 8


def run(forward: Callable[[Any], Any], answers: int) -> None:
    """`forward` takes float32 arrays and gives an array with a row for each picture."""
    pixels = np.load(sys.argv[-1])

    def round_() -> Costs:
        clock, count = Clock(), 0
        for start in range(0, len(pixels), SIZE):
            answer = forward(pixels[start : start + SIZE])
            if not np.isfinite(answer).all():
                sys.exit("the outputs are not finite")
            count += len(answer)
        return {"pictures": (count, clock.read())}

    serve(round_, answers)
