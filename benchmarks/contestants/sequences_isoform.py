"""isoform: WORK BUNDLE FORM, as in `sequences.py` and `forms.py`."""

from __future__ import annotations

import sys
from pathlib import Path

from rounds import begin

answers = begin()

import numpy as np  # noqa: E402
from forms import opened  # noqa: E402
from sequences import BEAMS, NEW, TEXTS, THREADS, run  # noqa: E402

from isoform.runtimes.generation.loop import generate  # noqa: E402
from isoform.runtimes.generation.settings import GenerationConfig, model_settings  # noqa: E402

pipe = opened("text2text-generation", Path(sys.argv[2]), sys.argv[3], THREADS)
longest = max(map(len, TEXTS))
ids = np.array([[*text, *[0] * (longest - len(text))] for text in TEXTS], np.int64)
mask = np.array([[1] * len(text) + [0] * (longest - len(text)) for text in TEXTS], np.int64)
end = (model_settings(pipe.folder)["eos_token_id"],)
settings = GenerationConfig(max_new_tokens=NEW, min_new_tokens=NEW, num_beams=BEAMS, eos_token_id=end)


def write() -> int:
    encoded = pipe.session.encode({"input_ids": ids, "attention_mask": mask})
    rows = generate(pipe.session.decoder(encoded), [[0]] * len(TEXTS), settings)
    return len(rows[0].made)


run(write, answers)
