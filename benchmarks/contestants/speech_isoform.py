"""isoform's transcriber over a bundle: FOLDER THREADS BEAMS SOUND FORM, as in `forms.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rounds import begin

answers = begin()

from forms import opened  # noqa: E402
from sounds import run  # noqa: E402

folder, threads, beams, _, form = sys.argv[1:]
pipe = opened("automatic-speech-recognition", Path(folder), form, int(threads))
width = {} if beams == "1" else {"generate_kwargs": {"num_beams": int(beams)}}


def transcribe(samples: Any) -> str:
    return str(pipe(samples, return_timestamps=True, **width)["text"])


run(transcribe, answers)
