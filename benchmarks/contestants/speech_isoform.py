"""isoform's transcriber over a bundle: FOLDER THREADS BEAMS SOUND, the sound as float32 samples at 16 kHz (.npy)."""

from __future__ import annotations

import sys
from pathlib import Path

from rounds import Clock, Costs, begin, serve

answers = begin()

import numpy as np  # noqa: E402

from isoform.runtimes.backends import open_path  # noqa: E402
from isoform.runtimes.pipelines.speech.transcriber import Transcriber  # noqa: E402
from isoform.runtimes.preprocess.tokenizer import TextTokenizer  # noqa: E402

folder, threads, beams = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
samples = np.load(sys.argv[4])
session, where = open_path(folder, "onnxruntime", threads=threads)
transcriber = Transcriber(session, where, TextTokenizer(where))  # type: ignore[arg-type]


def run() -> Costs:
    clock = Clock()
    answer = transcriber.transcribe(samples, return_timestamps=True, num_beams=beams)
    return {"transcribe": (len(answer["text"].split()), clock.read())}


serve(run, answers)
