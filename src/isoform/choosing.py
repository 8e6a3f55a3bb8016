"""`backend="auto"`: finds what was measured of a model on this machine, or measures its candidates, and chooses."""

from __future__ import annotations

import os
import tempfile
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from isoform.errors import InputError
from isoform.export_cache import cache_folder, content_key, form_folder
from isoform.formats import FORMAT_OF
from isoform.manifest import NAME, Manifest
from isoform.open_candidate import STORED
from isoform.progress import Progress
from isoform.quality import plain_dtype
from isoform.runtimes.choose.cache import MeasurementCache, Subject
from isoform.runtimes.choose.candidates import DECODES, GGUF, of_bundle, of_checkpoint
from isoform.runtimes.choose.choose import LATENCY, Choice, Series, choose
from isoform.runtimes.choose.measure import SECONDS, Costs, Job, measure
from isoform.runtimes.choose.process import run_job
from isoform.runtimes.choose.records import Candidate, Measurement
from isoform.runtimes.devices import cpus
from isoform.sources import Source
from isoform.todays_choice import proof_of

if TYPE_CHECKING:
    from isoform.reference.model import Model
    from isoform.runtimes.pipelines.base import Pipeline
    from isoform.runtimes.pipelines.reporting import Clock

MODES = ("auto", "always", "never")
PATIENCE = 30.0
"""Seconds that pipelines of a model must have spent in calls before its candidates are measured: half the budget."""
BASE = 600e6
"""Bytes of a process that has imported torch and a backend."""
EXPORT = 4.0
"""Seconds of an export, and more with the size of the model:"""
EXPORT_PER_PARAMETER = 8e-8


def mode() -> str:
    """When candidates are measured: ISOFORM_MEASURE, auto (where it pays), always or never."""
    found = os.environ.get("ISOFORM_MEASURE") or "auto"
    if found not in MODES:
        raise InputError(f"ISOFORM_MEASURE={found!r} is not known; choose from {', '.join(MODES)}")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How carefully candidates are timed: `rounds` of at least `least` seconds for each of the `workloads` (None: those
    that a choice needs), and no round after `timing` seconds of a candidate."""

    rounds: int = 3
    least: float = 0.1
    timing: float = 6.0
    workloads: Sequence[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Target:
    """A checkpoint or a bundle whose candidates may be measured for a pipeline's `task`.

    `served` is the model's task, `today` what runs it without a measurement, `threads` the caller's.
    """

    source: Source
    task: str
    served: str
    quality: str
    today: Candidate
    threads: int | None = None
    use: str = LATENCY
    effort: Effort = field(default_factory=Effort)

    @cached_property
    def manifest(self) -> Manifest | None:
        return Manifest.read(self.source.path) if self.source.opened is None else None

    @cached_property
    def reference(self) -> Path | None:
        """The checkpoint that candidates are compared with, where it is there."""
        if self.manifest is None:
            return self.source.path if self.source.native else _opened(self.source).checkpoint.root
        path = Path(str(self.manifest.source.get("path", "")))
        return path if path.exists() and self.manifest.source.get("path") else None

    @cached_property
    def key(self) -> str:
        """A name for the content of the model's files."""
        if self.manifest is None:
            checkpoint = _opened(self.source).checkpoint
            return content_key(self.served, (*checkpoint.files(), *checkpoint.sidecars()))
        folder = self.source.path
        files = {folder / file.path for one in self.manifest.artifacts for file in one.files}
        return content_key(self.served, (folder / NAME, *sorted(path for path in files if path.is_file())))

    @property
    def subject(self) -> Subject:
        return Subject(model=self.key, task=self.task, quality=self.quality, threads=self.threads or cpus())

    def candidates(self) -> list[Candidate]:
        """What may be measured, today's choice first."""
        from isoform.runtimes.open import available

        ready = [state.backend for state in available() if state.ready]
        threads = self.threads or cpus()
        if self.manifest is None:
            found = of_checkpoint(self.quality, threads, ready, self._does(_opened(self.source)))
            return list(dict.fromkeys((self.today, *found)))
        forms = dict.fromkeys((one.format, one.dtype) for one in self.manifest.artifacts)
        does = {DECODES} if any(one.signature.states for one in self.manifest.artifacts) else set()
        pays = [(form, dtype) for form, dtype in forms if form != "onnx" or _is_computed(dtype)]
        return of_bundle(
            self.quality,
            threads,
            ready,
            pays,
            (self.today.backend, self.today.dtype),
            does,
            checkpoint=self.reference is not None,
        )

    def _does(self, model: Model) -> set[str]:
        from isoform.exporters.bundle import FORMATS

        does = {DECODES} if model.signature.states else set()
        whole = len(model.parts) == 1
        if whole and not FORMATS["gguf"].refusal(model.family, model.task, config=model.config):
            does.add(GGUF)
        return does

    def file(self) -> Path:
        """Where measurements are kept."""
        return MeasurementCache(cache_folder()).path(self.subject)

    # ------------------------------------------------------------------ what candidates cost
    @cached_property
    def parameters(self) -> int:
        if self.manifest is None:
            return sum(prod(weight.shape) for weight in _opened(self.source).weights.values())
        return max(sum(file.size for file in one.files) for one in self.manifest.artifacts) // 4

    def costs(self) -> Costs:
        return Costs(seconds=self._seconds, bytes=self._bytes)

    def _seconds(self, candidate: Candidate) -> float:
        """Seconds until a candidate runs, besides opening it: those of an export that is not in the cache."""
        if self.manifest is not None or candidate.backend == "torch":
            return 0.0
        if candidate.dtype == STORED:
            return 0.0
        folder = form_folder(_opened(self.source), FORMAT_OF[candidate.backend], candidate.dtype)
        return 0.0 if (folder / NAME).is_file() else EXPORT + EXPORT_PER_PARAMETER * self.parameters

    def _bytes(self, candidate: Candidate) -> float:
        """The candidate's own weights, those of the reference that proves it, and what a graph is packed into."""
        copies = 2.0 if candidate == self.today else 3.0
        return BASE + 4 * copies * self.parameters

    # ------------------------------------------------------------------ measuring
    def proof(self, candidate: Candidate) -> Mapping[str, tuple[float, float]] | None:
        """What is known of a candidate without measuring: the reference itself is exact.

        A bundle whose checkpoint is gone has its check, which allows a quantized file what its weights cost.

        None where nothing is.
        """
        if candidate.backend == "torch":
            return {} if candidate.dtype == "f32" else None
        if candidate.dtype == STORED:
            return {}
        if self.manifest is None or candidate.precision not in ("", plain_dtype(candidate.dtype)):
            return None
        if self.reference is not None:
            return None
        known = proof_of(self.manifest, FORMAT_OF[candidate.backend], candidate.dtype, candidate.backend)
        return known or {"checked": (1.0, 0.0)}

    def run(self, job: Job, answers: Path) -> Measurement:
        """Have a candidate measured in a process of its own."""
        known = self.proof(job.candidate)
        native = self.source.native or self.manifest is not None
        model = self.source.path if native else self.reference
        told = {
            "model": str(model),
            "source": str(self.reference or ""),
            "task": self.task,
            "served": self.served,
            "use": job.use,
            "slowest": job.slowest,
            "prove": job.prove,
            "quality": self.quality,
            "proof": known,
            "answers": str(answers),
            "rounds": self.effort.rounds,
            "least": self.effort.least,
            "timing": self.effort.timing,
            "workloads": None if self.effort.workloads is None else list(self.effort.workloads),
        }
        return run_job(job.candidate, told, job.seconds)

    def measure(
        self,
        candidates: Sequence[Candidate] | None = None,
        *,
        seconds: float = SECONDS,
        progress: Progress | None = None,
    ) -> Series:
        """Measure the candidates now."""
        chosen = list(candidates) if candidates is not None else self.candidates()
        with tempfile.TemporaryDirectory(prefix="isoform-answers-") as folder:
            answers = Path(folder) / "answers"
            return measure(
                chosen,
                lambda job: self.run(job, answers),
                seconds=seconds,
                use=self.use,
                costs=self.costs(),
                fewer_threads=self.threads is None,
                progress=progress,
            )


def _is_computed(dtype: str) -> bool:
    """Whether the CPU computes an ONNX form in its dtype: one that is cast to float32 is never faster than that."""
    from isoform.runtimes.backends.onnxruntime.arithmetic import FLOATS, computes_in

    plain = plain_dtype(dtype)
    return plain not in FLOATS or computes_in(plain)


def _opened(source: Source) -> Model:
    assert source.opened is not None
    return source.opened


def choice_of(target: Target, progress: Progress | None) -> Choice | None:
    """The measured choice: out of the cache, or measured now where that pays. None where nothing is measured."""
    when = mode()
    if (cache := _cache()) is None:
        return None
    series = cache.read(target.subject)
    if series is None:
        if when == "never" or (when == "auto" and cache.spent(target.key, target.task) < PATIENCE):
            return None
        series = target.measure(progress=progress)
        keep(target, series)
    if target.threads is not None:
        fitting = [one for one in series.measurements if one.candidate.threads == target.threads]
        series = replace(series, measurements=tuple(fitting))
    return choose(series, target.quality, target.use)


def kept_series(target: Target) -> Series | None:
    """What was measured before."""
    return None if (cache := _cache()) is None else cache.read(target.subject)


def keep(target: Target, series: Series) -> bool:
    """Keep what was measured for other processes; a warning where the cache folder cannot be written."""
    cache = _cache()
    try:
        if cache is None:
            raise OSError("there is no cache folder")
        cache.write(target.subject, series)
        return True
    except OSError as error:
        place = "" if cache is None else f" in {cache.folder}"
        reason = error.strerror or error
        warnings.warn(f"measurements cannot be kept{place} ({reason}); set ISOFORM_CACHE to a folder", stacklevel=2)
        return False


def _cache() -> MeasurementCache | None:
    try:
        return MeasurementCache(cache_folder())
    except InputError:
        return None


class Spent:
    """Adds the seconds that a pipeline spent in calls to the ledger of its model: when it closes, or is forgotten."""

    LEAST = 1.0
    """Fewer seconds are not worth a file."""

    def __init__(self, target: Target) -> None:
        self._key, self._task = target.key, target.task
        self._end: Callable[[], object] = lambda: None

    def follow(self, pipe: Pipeline) -> None:
        self._end = weakref.finalize(pipe, _spend, self._key, self._task, pipe.clock)

    def close(self) -> None:
        self._end()


def _spend(key: str, task: str, clock: Clock) -> None:
    cache = _cache()
    if clock.seconds >= Spent.LEAST and cache is not None:
        with suppress(OSError):  # then nothing is measured before it is asked for; measuring says what is wrong
            cache.spend(key, task, clock.seconds)
