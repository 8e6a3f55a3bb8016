"""isoform's pipeline for CTC over a bundle: BACKEND FOLDER SOUND (.npy, float32 at 16 kHz)."""

from __future__ import annotations

import sys
from pathlib import Path

from rounds import Clock, Costs, begin, serve

answers = begin()

import numpy as np  # noqa: E402

from isoform.reference.facts import exported_facts  # noqa: E402
from isoform.runtimes.open import open_path  # noqa: E402
from isoform.runtimes.pipelines import build_pipeline  # noqa: E402

session, folder = open_path(Path(sys.argv[2]), sys.argv[1], threads=1)
facts = exported_facts(Path(sys.argv[2]), folder, "automatic-speech-recognition")
pipe = build_pipeline("automatic-speech-recognition", session, folder, facts=facts)
samples = np.load(sys.argv[3])


def run() -> Costs:
    clock = Clock()
    pipe(samples)
    return {"recognize": (len(samples) // 16000, clock.read())}


serve(run, answers)
