"""`isoform bench`: checks the request, measures the candidates of a model, and probes the machine's limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from math import isfinite, prod
from pathlib import Path
from typing import TYPE_CHECKING

from isoform.bench_report import BenchReport
from isoform.errors import InputError, IsoformError
from isoform.formats import FORMAT_OF
from isoform.progress import Progress
from isoform.quality import check_quality
from isoform.runtimes.choose.machine import processor, versions
from isoform.runtimes.choose.probe import cached_probe
from isoform.runtimes.choose.work import Weights, with_work

if TYPE_CHECKING:
    from isoform.choosing import Target
    from isoform.runtimes.choose.records import Candidate


def check_request(
    task: str | None, quality: str | None, backends: Sequence[str] | None, threads: int | None, seconds: float
) -> None:
    """Raises InputError for what cannot be measured, before anything is opened."""
    from isoform.runtimes.open import BACKENDS
    from isoform.runtimes.pipelines import model_task

    if task is not None:
        model_task(task)
    if quality is not None:
        check_quality(quality)
    for backend in backends or ():
        if backend not in BACKENDS:
            raise InputError(f"backend {backend!r} is not known; choose from {', '.join(BACKENDS)}")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise InputError(f"threads={threads!r:.40} is not a whole number of at least 1; leave it out for all cores")
    if not isfinite(seconds) or seconds <= 0:
        raise InputError(f"seconds={seconds!r:.40} is not a time to measure in; give a number above 0")


def bench_model(
    source: str,
    task: str | None,
    *,
    quality: str | None,
    backends: Sequence[str] | None,
    threads: int | None,
    seconds: float,
    again: bool,
    whole: bool,
    progress: Progress | None,
) -> BenchReport:
    """See `isoform.api.bench_model`."""
    from isoform.measuring import measure_candidates

    check_request(task, quality, backends, threads, seconds)
    measured = measure_candidates(
        source,
        task,
        quality=quality,
        backends=backends,
        threads=threads,
        seconds=seconds,
        again=again,
        whole=whole,
        progress=progress,
    )
    if progress is not None:
        progress("probe the machine", 0, 0)
    machine = cached_probe(_folder(), threads, processor=processor(), again=again)
    weights, files = _weights(measured.target), _files(measured.target)
    return BenchReport(
        model=source,
        task=measured.target.task,
        quality=measured.target.quality,
        machine=machine,
        series=replace(measured.series, measurements=with_work(measured.series.measurements, weights, files)),
        choice=measured.choice,
        versions=versions(),
        file="" if measured.file is None else str(measured.file),
    )


def _folder() -> Path | None:
    """Where the machine's limits are kept, beside the measurements; None without a cache folder."""
    from isoform.export_cache import cache_folder

    with suppress(InputError):
        return cache_folder() / "measured"
    return None


EMBEDDINGS = "embed.weight"
"""The canonical name of the table of tokens, see `reference.names`."""


def _weights(target: Target) -> Weights | None:
    """What the model's decoder holds; None where it decodes nothing, has several graphs, or its checkpoint is gone."""
    from isoform.reference.model import open_model

    model = target.source.opened
    if model is None:
        with suppress(IsoformError, OSError):
            model = None if target.reference is None else open_model(target.reference, target.served)
    if model is None or not model.signature.states or len(model.parts) > 1 or EMBEDDINGS not in model.weights:
        return None
    return Weights(
        parameters=sum(prod(weight.shape) for weight in model.weights.values()),
        table=prod(model.weights[EMBEDDINGS].shape),
        tied=EMBEDDINGS in model.tied.values(),
    )


def _files(target: Target) -> Callable[[Candidate], int | None]:
    """What gives the bytes of the files of a candidate's form, where a bundle holds it in one graph that decodes."""
    artifacts = () if target.manifest is None else target.manifest.artifacts
    if len({one.part for one in artifacts}) > 1 or not any(one.signature.states for one in artifacts):
        return lambda candidate: None

    def bytes_of(candidate: Candidate) -> int | None:
        form = FORMAT_OF.get(candidate.backend)
        held = [one for one in artifacts if (one.format, one.dtype) == (form, candidate.dtype)]
        return sum(file.size for one in held for file in one.files) or None

    return bytes_of
