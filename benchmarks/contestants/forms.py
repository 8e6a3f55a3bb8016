"""What a contestant of isoform opens.

A form is `BACKEND:DTYPE` or `BACKEND:DTYPE:PRECISION` of a bundle, as in "torch:bf16", "onnxruntime:int8" and
"openvino:f32-portable:bf16"; `auto:QUALITY` is what isoform chooses at that quality, and `default` what it does when
nothing is asked for.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import isoform


def opened(task: str, source: Path, form: str, threads: int) -> Any:
    """A pipeline over a bundle or checkpoint."""
    backend, _, rest = form.partition(":")
    options: dict[str, Any]
    if backend == "default":
        options = {}
    elif backend == "auto":
        options = {"quality": rest}
    else:
        dtype, _, precision = rest.partition(":")
        if (source / "isoform.json").is_file():
            return _of_a_bundle(task, source, backend, dtype, threads, precision)
        options = {"backend": backend, "dtype": dtype}
    pipe = isoform.pipeline(task, str(source), threads=threads, **options)
    print(f"{form}: {getattr(pipe, 'chosen', None) or pipe.session.backend}", file=sys.stderr)
    return pipe


def _of_a_bundle(task: str, folder: Path, backend: str, dtype: str, threads: int, precision: str) -> Any:
    """isoform.pipeline takes no dtype of integers, and opening a form by name takes all."""
    from isoform.reference.facts import exported_facts
    from isoform.runtimes.open import open_path
    from isoform.runtimes.pipelines import build_pipeline, model_task

    options = {"precision": precision} if precision else {}
    served = model_task(task)
    session, where = open_path(folder, backend, dtype=dtype, threads=threads, task=served, **options)
    return build_pipeline(task, session, where, facts=exported_facts(folder, where, served))
