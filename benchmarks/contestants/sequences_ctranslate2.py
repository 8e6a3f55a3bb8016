"""CTranslate2's translator: WORK FOLDER TYPE ("int8", "float32")."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rounds import begin

answers = begin()

import ctranslate2  # noqa: E402
from sequences import BEAMS, NEW, TEXTS, THREADS, run  # noqa: E402

folder = Path(sys.argv[2])
model = ctranslate2.Translator(str(folder), device="cpu", compute_type=sys.argv[3], intra_threads=THREADS)
words = json.loads((folder / "shared_vocabulary.json").read_text(encoding="utf-8"))
texts = [[words[token] for token in text] for text in TEXTS]


def write() -> int:
    made = model.translate_batch(
        texts, beam_size=BEAMS, max_decoding_length=NEW, min_decoding_length=NEW, max_input_length=0
    )
    return len(made[0].hypotheses[0])


run(write, answers)
