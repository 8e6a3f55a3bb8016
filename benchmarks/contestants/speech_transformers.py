"""transformers' pipeline over a checkpoint: FOLDER THREADS BEAMS SOUND DTYPE, as torch names it."""

from __future__ import annotations

import sys
from typing import Any

from rounds import begin

answers = begin()

import torch  # noqa: E402
from sounds import run  # noqa: E402
from transformers import logging, pipeline  # noqa: E402

folder, threads, beams, _, dtype = sys.argv[1:]
logging.set_verbosity_error()
torch.set_num_threads(int(threads))
transcriber = pipeline("automatic-speech-recognition", folder, dtype=getattr(torch, dtype))


def transcribe(samples: Any) -> str:
    answer = transcriber(samples, return_timestamps=True, generate_kwargs={"num_beams": int(beams)})
    return str(answer["text"])


run(transcribe, answers)
