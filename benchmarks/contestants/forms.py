"""What a contestant of isoform opens.

A form is BACKEND:DTYPE of a bundle, as in "torch:bf16" and "onnxruntime:int8". A backend with precisions has
BACKEND:DTYPE:PRECISION, as in "openvino:f32-portable:bf16", and BACKEND:DTYPE+PREFILL has long prompts read by a second
form, as in "onnxruntime:q4w+int8". "auto:QUALITY" is what isoform chooses at that quality, and "default" what it does
when nothing is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rounds import NOTES

import isoform


def opened(task: str, source: Path, form: str, threads: int, *, batch_size: int | None = None) -> Any:
    """A pipeline over a bundle or checkpoint. `batch_size`: how many inputs come at once, which a choice may heed."""
    backend, _, rest = form.partition(":")
    if backend in ("auto", "default"):
        options: dict[str, Any] = {"quality": rest} if backend == "auto" else {}
        options |= {} if batch_size is None else {"batch_size": batch_size}
        pipe = isoform.pipeline(task, str(source), threads=threads, **options)
    elif (source / "isoform.json").is_file():
        pipe = _of_a_bundle(task, source, backend, rest, threads)
    else:
        pipe = isoform.pipeline(task, str(source), backend=backend, dtype=rest, threads=threads)
    chosen = getattr(pipe, "chosen", None)  # versions without a choice by measurement have none
    if backend == "auto" and chosen is not None:
        NOTES.append(str(chosen.candidate))
    return pipe


def _of_a_bundle(task: str, folder: Path, backend: str, form: str, threads: int) -> Any:
    """isoform.pipeline takes no dtype of integers; what opens a session takes all."""
    from isoform.reference.facts import exported_facts
    from isoform.runtimes.open import open_path
    from isoform.runtimes.pipelines import build_pipeline, model_task

    dtype, _, precision = form.partition(":")
    dtype, _, prefill = dtype.partition("+")
    options: dict[str, Any] = {"dtype": dtype, "threads": threads, "task": model_task(task)}
    options |= {"precision": precision} if precision else {}
    if prefill:
        from isoform.runtimes.backends.handover import open_with_handover

        session, where = open_with_handover(folder, backend, prefill=prefill, **options)
    else:
        session, where = open_path(folder, backend, **options)
    return build_pipeline(task, session, where, facts=exported_facts(folder, where, options["task"]))
