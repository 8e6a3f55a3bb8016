"""faster-whisper over a CTranslate2 model: FOLDER THREADS BEAMS SOUND (.npy) COMPUTE-TYPE.

The same work as the others': windows in sequence by their timestamps, no fallback, nothing carried over.
"""

from __future__ import annotations

import sys

from rounds import begin

answers = begin()

from faster_whisper import WhisperModel  # noqa: E402
from sounds import run  # noqa: E402

folder, threads, beams, _, kind = sys.argv[1:]
model = WhisperModel(folder, device="cpu", compute_type=kind, cpu_threads=int(threads), num_workers=1)


def transcribe(samples: object) -> str:
    segments, _ = model.transcribe(
        samples,
        language="en",
        beam_size=int(beams),
        best_of=1,
        temperature=0.0,
        condition_on_previous_text=False,
        compression_ratio_threshold=None,
        log_prob_threshold=None,
        no_speech_threshold=None,
    )
    return "".join(segment.text for segment in segments)


run(transcribe, answers)
