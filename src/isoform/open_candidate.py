"""Opens what was found for a pipeline as a candidate says: on its backend, in its form, with its threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import BackendUnavailable
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
    place: dict[str, Any] = {"device": device, "threads": threads}
    if candidate.precision:
        place["precision"] = candidate.precision
    session = _open(source, served, candidate.backend, candidate.dtype, cached, place, progress)
    if not candidate.prefill:
        return session
    from isoform.runtimes.backends.handover import handing_over

    backend, _, dtype = candidate.prefill.partition(" ")
    place = {"device": device, "threads": threads}

    def reader() -> Session:
        return _open(source, served, backend, dtype, cached, place, progress)

    try:
        needs = _needs(source, backend, dtype, cached, progress)
    except BaseException:
        session.close()
        raise
    return handing_over(session, reader, candidate.prefill_from, needs=needs)


def _open(
    source: Source,
    served: str,
    backend: str,
    dtype: str,
    cached: Cached,
    place: Mapping[str, Any],
    progress: Progress | None,
) -> Session:
    from isoform.runtimes import open as backends

    if source.opened is None:
        return backends.open_path(source.path, backend, task=served, dtype=dtype, **place)[0]
    if dtype == STORED:
        model = source.opened.trunk
        card = model.family.gguf_of(model.task)
        if card is not None and (left_out := card.scales(model.config)):
            name, scale = next(iter(left_out.items()))
            raise BackendUnavailable(
                f"{source.path} does not hold {name} times {scale:.4g}, and llama.cpp's graph leaves that factor out: "
                "its probabilities would be wrong; `isoform export --to gguf` makes a right file of it"
            )
        wires = dict(model.task.wires) or None
        return backends.open_session(source.path, backend, signature=model.signature, wires=wires, **place)
    if backend == "torch":
        return backends.open_session(source.opened, backend, dtype=dtype, **place)
    form, written = form_for(backend, dtype)
    folder = cached(source.opened, form, written, progress)
    options = {**options_for(backend, dtype), **place}
    return backends.open_path(folder, backend, task=served, dtype=written, **options)[0]


def _needs(source: Source, backend: str, dtype: str, cached: Cached, progress: Progress | None) -> int:
    """Bytes of memory that a form which reads prompts needs."""
    from isoform.runtimes.backends.handover import COPIES, needed

    if backend == "torch":
        checkpoint = source.path if source.opened is None else source.opened.checkpoint.root
        files = [checkpoint] if checkpoint.is_file() else list(checkpoint.glob("*.safetensors"))
        return COPIES * sum(file.stat().st_size for file in files)
    folder = source.path if source.opened is None else cached(source.opened, *form_for(backend, dtype), progress)
    return needed(folder, backend, dtype)
