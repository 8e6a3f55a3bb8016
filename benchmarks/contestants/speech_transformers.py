"""transformers' pipeline over a checkpoint in float32: FOLDER THREADS BEAMS SOUND (.npy)."""

from __future__ import annotations

import sys
from time import perf_counter

from rounds import Clock, Costs, begin, serve

answers = begin()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import logging, pipeline  # noqa: E402

logging.set_verbosity_error()
torch.set_num_threads(int(sys.argv[2]))
samples, beams = np.load(sys.argv[4]), int(sys.argv[3])
transcriber = pipeline("automatic-speech-recognition", sys.argv[1], dtype=torch.float32)


def run() -> Costs:
    clock, start = Clock(), perf_counter()
    answer = transcriber(samples.copy(), return_timestamps=True, generate_kwargs={"num_beams": beams})
    words = len(answer["text"].split())
    return {"cpu": (words, clock.read()), "wall": (words, perf_counter() - start)}


serve(run, answers)
