"""openvino-genai's pipeline for Whisper: FOLDER THREADS BEAMS SOUND PRECISION ("f32", "bf16")."""

from __future__ import annotations

import sys
from typing import Any

from rounds import begin

answers = begin()

import openvino_genai as genai  # noqa: E402
from sounds import run  # noqa: E402

folder, threads, beams, _, precision = sys.argv[1:]
options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": int(threads)}
model = genai.WhisperPipeline(folder, "CPU", **options)


def transcribe(samples: Any) -> str:
    return str(model.generate(samples.tolist(), return_timestamps=True, num_beams=int(beams)).texts[0])


run(transcribe, answers)
