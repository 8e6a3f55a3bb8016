"""Measures every candidate for a model on all workloads, as `isoform bench` shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from isoform.choosing import Effort, Target, keep, kept_series
from isoform.errors import InputError
from isoform.export_cache import cached_form
from isoform.open_chosen import Opener, Wish
from isoform.progress import Progress
from isoform.quality import check_quality
from isoform.runtimes.choose.choose import LATENCY, THROUGHPUT, Choice, Series, choose
from isoform.runtimes.choose.measure import SECONDS
from isoform.sources import Kept, find_source, for_task, own_task, task_of

WORKLOADS = ("prefill 128", "prefill 1024", "decode", "batch 1", "batch 8", "batch 32", "30 s")
ONE_BY_ONE = ("tokens", "texts")
"""Units of workloads that a table has more of than a choice needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured of a model for a pipeline's task, and what `backend="auto"` takes from now on.

    `file` is where other processes find it; None where it is not kept.
    """

    target: Target
    series: Series
    choice: Choice | None
    file: Path | None


def measure_candidates(
    source: str | PathLike[str],
    task: str | None = None,
    *,
    quality: str | None = None,
    backends: Sequence[str] | None = None,
    threads: int | None = None,
    seconds: float = SECONDS,
    again: bool = False,
    whole: bool = True,
    use: str = LATENCY,
    rounds: int = 3,
    hub: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Measured:
    """Measure the candidates for a checkpoint, a bundle or a .gguf file, and keep the measurements.

    `quality` defaults to the model's, `task` to its own; `use` is "latency" or "throughput". What is kept already is
    not measured `again`; unless `whole`, it may lack workloads that only a table has. With some `backends` only,
    nothing is kept: others are missing.
    """
    from isoform.runtimes import pipelines
    from isoform.runtimes.pipelines.arguments import Request

    if quality is not None:
        check_quality(quality)
    asked = Request(hub=dict(hub or {}))
    kept = Kept()
    try:
        found = find_source(source, asked, kept)
        name = task_of(found, asked) if task is None else task
        served = pipelines.model_task(name, partial(own_task, found))
        found = for_task(found, served)
        if found.path.suffix == ".onnx":
            raise InputError(f"{found.name} is a graph without a bundle; give its bundle or its checkpoint")
        several = use == THROUGHPUT
        wish = Wish(task=name, served=served, asked=asked, quality=quality, threads=threads, several=several)
        opener = Opener(found, wish, cached_form, progress, None)
        quality = opener.quality()
        todays = opener.todays(quality)
        if not todays:
            raise InputError(f"{found.name} holds no form that runs here; `isoform inspect` lists its forms")
        effort = Effort(rounds=rounds, workloads=WORKLOADS, timing=max(6.0, seconds / 20))
        target = opener.target(quality, todays[0][0], effort)
        series = None if again or backends else kept_series(target)
        if series is not None and (_complete(series) or not whole):
            file: Path | None = target.file()
        else:
            candidates = [one for one in target.candidates() if not backends or one.backend in backends]
            if not candidates:
                raise InputError(f"{found.name} has no candidate on {', '.join(backends or ())}; leave backends out")
            series = target.measure(candidates, seconds=seconds, progress=progress)
            file = target.file() if not backends and keep(target, series) else None
        return Measured(target=target, series=series, choice=choose(series, quality, use), file=file)
    finally:
        kept.close()


def _complete(series: Series) -> bool:
    """Whether a series has all workloads, not only those of a choice."""
    timings = series.measurements[0].timings
    return "batch 32" in timings or all(timing.unit not in ONE_BY_ONE for timing in timings.values())
