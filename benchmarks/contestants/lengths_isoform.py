"""isoform's vectors of texts by length: SOURCE TEXTS FORM THREADS VECTORS, the form as in `forms.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rounds import Clock, Costs, begin, serve

answers = begin()

import numpy as np  # noqa: E402
from forms import opened  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

texts = json.loads(Path(sys.argv[2]).read_text())
pipe = opened("sentence-similarity", Path(sys.argv[1]), sys.argv[3], int(sys.argv[4]))
tokenizer = Tokenizer.from_file(str(Path(sys.argv[1]) / "tokenizer.json"))
tokens = {part: sum(len(tokenizer.encode(text).ids) for text in given) for part, given in texts.items()}
np.save(sys.argv[5], np.array(pipe(texts["mixed"]), np.float32).reshape(len(texts["mixed"]), -1))


def run() -> Costs:
    costs: Costs = {}
    for part, given in texts.items():
        clock = Clock()
        for call in [[text] for text in given] if "one by one" in part else [given]:
            pipe(call)
        costs[part] = (tokens[part], clock.read())
    return costs


serve(run, answers)
