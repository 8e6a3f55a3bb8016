"""isoform's transcriber over a bundle: FOLDER THREADS BEAMS SOUND TYPE, the sound as samples at 16 kHz (.npy)."""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter
from typing import Any

from rounds import Clock, Costs, begin, serve

answers = begin()

import numpy as np  # noqa: E402

from isoform.manifest import Manifest  # noqa: E402
from isoform.reference.classes import class_facts  # noqa: E402
from isoform.runtimes.open import open_bundle  # noqa: E402
from isoform.runtimes.pipelines.audio.speech.transcriber import Transcriber  # noqa: E402
from isoform.runtimes.preprocess.text.tokenizer import TextTokenizer  # noqa: E402

folder, threads, beams = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
samples = np.load(sys.argv[4])
manifest = Manifest.read(folder)
forms = [artifact for artifact in manifest.artifacts if artifact.dtype == sys.argv[5]]
session: Any = open_bundle(folder, manifest, forms, "onnxruntime", threads=threads)
transcriber = Transcriber(session, folder, TextTokenizer(folder, class_facts(folder)))


def run() -> Costs:
    clock, start = Clock(), perf_counter()
    answer = transcriber.transcribe(samples, return_timestamps=True, num_beams=beams)
    words = len(answer["text"].split())
    return {"cpu": (words, clock.read()), "wall": (words, perf_counter() - start)}


serve(run, answers)
