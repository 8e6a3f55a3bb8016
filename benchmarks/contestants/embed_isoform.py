"""isoform's pipeline over a bundle: FOLDER TEXTS FORM, as in `forms.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rounds import Clock, Costs, begin, serve

answers = begin()

from forms import opened  # noqa: E402

texts = json.loads(Path(sys.argv[2]).read_text())
pipe = opened("sentence-similarity", Path(sys.argv[1]), sys.argv[3], 1)


def run() -> Costs:
    clock = Clock()
    vectors = pipe(texts)
    return {"embedding": (len(vectors), clock.read())}


serve(run, answers)
