"""faster-whisper over a CTranslate2 model: FOLDER THREADS BEAMS SOUND (.npy) COMPUTE-TYPE.

The same work as the others': windows in sequence by their timestamps, no fallback, nothing carried over.
"""

from __future__ import annotations

import sys
from time import perf_counter

from rounds import Clock, Costs, begin, serve

answers = begin()

import numpy as np  # noqa: E402
from faster_whisper import WhisperModel  # noqa: E402

folder, threads, beams, samples, kind = (
    sys.argv[1],
    int(sys.argv[2]),
    int(sys.argv[3]),
    np.load(sys.argv[4]),
    sys.argv[5],
)
model = WhisperModel(folder, device="cpu", compute_type=kind, cpu_threads=threads, num_workers=1)


def run() -> Costs:
    clock, start = Clock(), perf_counter()
    segments, _ = model.transcribe(
        samples,
        language="en",
        beam_size=beams,
        best_of=1,
        temperature=0.0,
        condition_on_previous_text=False,
        compression_ratio_threshold=None,
        log_prob_threshold=None,
        no_speech_threshold=None,
    )
    text = "".join(segment.text for segment in segments)
    words = len(text.split())
    return {"cpu": (words, clock.read()), "wall": (words, perf_counter() - start)}


serve(run, answers)
