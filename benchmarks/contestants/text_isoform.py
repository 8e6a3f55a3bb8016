"""isoform: WORK BUNDLE FORM, as in `forms.py`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rounds import begin

answers = begin()

from forms import opened  # noqa: E402
from texts import CONTEXT, run, threads, work  # noqa: E402

from isoform.runtimes.generation.loop import steps  # noqa: E402
from isoform.runtimes.generation.settings import GenerationConfig  # noqa: E402

size = 32 if work() == "batch" else None
pipe = opened("text-generation", Path(sys.argv[2]), sys.argv[3], threads(), batch_size=size)


def generate(prompts: Sequence[list[int]], new: int, first: Callable[[], None]) -> list[int]:
    made = steps(pipe.session, prompts, GenerationConfig(max_new_tokens=new), context=CONTEXT)
    rows = next(made)
    first()
    for rows in made:  # noqa: B007
        pass
    return [len(row.made) for row in rows]


def write(text: str) -> str:
    answer = pipe(text, max_new_tokens=1, do_sample=False, return_full_text=False)
    return str(answer[0]["generated_text"])


run(generate, write, answers)
