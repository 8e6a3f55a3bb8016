"""Opens what was found for a pipeline as a candidate says: on its backend, in its form, with its threads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.formats import form_for, options_for
from isoform.progress import Progress
from isoform.sources import Source

if TYPE_CHECKING:
    from isoform.reference.model import Model
    from isoform.runtimes.choose.records import Candidate
    from isoform.runtimes.session import Session

STORED = "stored"
"""The dtype of a candidate that runs a .gguf file as it was written."""

Cached = Callable[["Model", str, str, Progress | None], Path]
"""Gives the bundle of one form of a model: model, format, dtype, progress."""


def open_candidate(
    source: Source,
    served: str,
    candidate: Candidate,
    cached: Cached,
    *,
    device: str = "cpu",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Session:
    """A session of a checkpoint or a bundle, for the model's task `served`.

    A form of a checkpoint comes from `cached`. `threads` go to the backend as the caller gave them.
    """
    from isoform.runtimes import open as backends

    place: dict[str, Any] = {"device": device, "threads": threads}
    if candidate.precision:
        place["precision"] = candidate.precision
    backend, dtype = candidate.backend, candidate.dtype
    if source.opened is None:
        return backends.open_path(source.path, backend, task=served, dtype=dtype, **place)[0]
    if dtype == STORED:
        return backends.open_session(source.path, backend, signature=source.opened.trunk.signature, **place)
    if backend == "torch":
        return backends.open_session(source.opened, backend, dtype=dtype, **place)
    form, written = form_for(backend, dtype)
    folder = cached(source.opened, form, written, progress)
    return backends.open_path(folder, backend, task=served, dtype=written, **{**options_for(backend, dtype), **place})[
        0
    ]
