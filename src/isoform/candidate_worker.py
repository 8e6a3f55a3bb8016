"""Measures one candidate in a process of its own: reads a job from standard input, writes a measurement to its file.

Nothing that goes wrong here reaches who asked: an error of isoform becomes the measurement's, and anything else ends
the process, whose last words are reported.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from isoform.errors import InputError, IsoformError
from isoform.progress import Progress
from isoform.runtimes.choose.choose import request_seconds
from isoform.runtimes.choose.measure import stopped
from isoform.runtimes.choose.records import Candidate, Measurement, Timing
from isoform.runtimes.choose.work import with_counts
from isoform.whole import NoSpace, whole_file

if TYPE_CHECKING:
    from isoform.reference.model import Model
    from isoform.runtimes.pipelines.base import Pipeline
    from isoform.validators.check.proof import Answers
    from isoform.workloads import Workload


COLD = 5.0
"""Seconds of a first pass that is a round already: what it makes and compiles is little beside it."""


def main() -> None:
    job = json.load(sys.stdin)
    candidate = Candidate.from_json(job["candidate"])
    try:
        measurement = measured(job, candidate)
    except IsoformError as error:
        measurement = Measurement(candidate=candidate, error=" ".join(str(error).split()))
    with whole_file(Path(job["answer"])) as part:
        part.write_text(json.dumps(measurement.to_json()), encoding="utf-8")


def measured(job: Mapping[str, Any], candidate: Candidate) -> Measurement:
    """Open the candidate, time its workloads in rounds, and prove it.

    Of the job: `model` (a folder), `source` (that of its checkpoint), `task`, `served` (the model's own), `rounds`,
    `least` (seconds of a round), `timing` (seconds after which no round begins), `workloads` (names, or null for those
    of a choice), `use`, `slowest` (see `measure.Job`), `prove`, `quality` (that it is held to), `proof` (what is known
    already) and `answers` (the folder of the reference's answers, for all candidates of a model).
    """
    from isoform.workloads import SHORT, workloads_of

    exporting = [0.0]
    start = perf_counter()
    with opened(job, candidate, exporting) as pipe:
        load = perf_counter() - start - exporting[0]
        names = job["workloads"] or SHORT
        workloads = {name: work for name, work in workloads_of(pipe).items() if name in names}
        found = timed(job, Measurement(candidate=candidate, load_seconds=load), workloads)
        exact = (candidate.backend, candidate.dtype) == ("torch", "f32")
        if exact and job["workloads"]:  # a table shows shares of limits
            found = with_counts(found, {name: partial(_pass, work) for name, work in workloads.items()})
        if not found.error and job["proof"] is not None:
            found = replace(found, proof={name: (value, limit) for name, (value, limit) in job["proof"].items()})
        elif not found.error and job["prove"]:
            found = replace(found, proof=proof(job, candidate, pipe))
    return replace(found, peak_bytes=found.peak_bytes + peak_bytes(children=True))


def timed(job: Mapping[str, Any], found: Measurement, workloads: Mapping[str, Workload]) -> Measurement:
    """The measurement with the timings of rounds, and an error where the first one is too slow to go on."""
    start = perf_counter()
    rates: dict[str, list[float]] = {name: [] for name in workloads}
    for n, (name, work) in enumerate(workloads.items()):  # the first pass makes buffers, and compiles
        items, spent = work.run(work.begin())
        if spent >= COLD:
            rates[name].append(items / spent)
        if n == 0:
            found = replace(found, first_seconds=perf_counter() - start)
    while True:
        if all(rates.values()):
            found = replace(found, timings=timings(rates, workloads), peak_bytes=peak_bytes())
            seconds = request_seconds(found.timings, job["use"])
            if job["slowest"] and seconds and seconds > job["slowest"]:
                return stopped(found, seconds, job["slowest"])
            if perf_counter() - start > job["timing"] or min(map(len, rates.values())) >= job["rounds"]:
                return found
        for name, work in workloads.items():
            rates[name].append(_rate(work, job["least"]))


def opened(job: Mapping[str, Any], candidate: Candidate, exporting: list[float]) -> Pipeline:
    """The pipeline of a candidate; seconds of exporting its form are added to `exporting`."""
    from isoform.export_cache import cached_form
    from isoform.make_pipeline import make_pipeline
    from isoform.runtimes.pipelines.arguments import Request

    def cached(model: Model, form: str, dtype: str, progress: Progress | None) -> Path:
        start = perf_counter()
        folder = cached_form(model, form, dtype, progress)
        with suppress(OSError):  # where the system has it: what the export held does not count
            Path("/proc/self/clear_refs").write_text("5")
        exporting[0] += perf_counter() - start
        return folder

    return make_pipeline(
        job["task"],
        job["model"],
        config=None,
        components={},
        backend=candidate.backend,
        threads=candidate.threads,
        progress=None,
        request=lambda gpus: Request(),
        parameters={"progress": False},
        cached=cached,
        candidate=candidate,
    )


def timings(rates: Mapping[str, Iterable[float]], workloads: Mapping[str, Workload]) -> dict[str, Timing]:
    """The median rate of each workload, and how far the rounds differ."""
    found = {}
    for name, taken in rates.items():
        if rounds := sorted(taken):
            rate, spread = rounds[len(rounds) // 2], rounds[-1] / rounds[0]
            found[name] = Timing(rate=rate, unit=workloads[name].unit, spread=spread)
    return found


def _pass(work: Workload) -> tuple[float, float]:
    return work.run(work.begin())


def _rate(work: Workload, least: float) -> float:
    """Items per second, over as many passes as take `least` seconds."""
    items = seconds = 0.0
    while not seconds or seconds < least:
        more, spent = work.run(work.begin())
        items, seconds = items + more, seconds + max(spent, 1e-9)
    return items / seconds


def proof(job: Mapping[str, Any], candidate: Candidate, pipe: Pipeline) -> dict[str, tuple[float, float]]:
    """What a candidate costs against the reference: of each metric the result nearest to its limit.

    A candidate that nothing can be measured of is unproven.
    """
    from isoform.quality import plain_dtype
    from isoform.reference.model import open_model
    from isoform.validators.check.proof import prove, worst_by_metric

    model = open_model(job["source"], job["served"])
    dtype = candidate.precision if candidate.precision not in ("", "f32") else plain_dtype(candidate.dtype)
    report = prove(pipe.session, model, dtype, answers(Path(job["answers"]), model), job["quality"])
    return worst_by_metric(report) or {"unmeasured": (1.0, 0.0)}


def answers(folder: Path, model: Model) -> Answers:
    """The reference's answers: computed by the first candidate that needs them, and read by the others."""
    from isoform.validators.check.proof import Answers, reference_answers

    with suppress(InputError):
        return Answers.load(folder)
    found = reference_answers(model)
    with suppress(OSError, NoSpace):
        found.save(folder)
    return found


def peak_bytes(*, children: bool = False) -> int:
    """The most memory that this process, or one that it started and that has ended, has held; 0 where nothing says."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main()
