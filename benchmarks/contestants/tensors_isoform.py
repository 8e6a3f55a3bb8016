"""A session of isoform: TASK BUNDLE BACKEND:DTYPE[:PRECISION] THREADS PART ("-": all of it) INPUTS (.npz)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rounds import begin

answers = begin()

from tensors import run  # noqa: E402

from isoform.runtimes.open import open_path  # noqa: E402

task, folder, form, threads, part = sys.argv[1:6]
backend, dtype, *precision = form.split(":")
options = {"precision": precision[0]} if precision else {}
session: Any = open_path(Path(folder), backend, dtype=dtype, threads=int(threads), task=task, **options)[0]
session = session if part == "-" else session.part(part)


def forward(inputs: Mapping[str, Any]) -> Any:
    return next(iter(session.run(inputs).values()))


run(forward, answers)
