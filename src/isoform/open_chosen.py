"""Decides what runs the model of a pipeline, and opens it: what was asked for, what was measured, or today's choice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from isoform.errors import BackendUnavailable, InputError, IsoformError
from isoform.formats import FORMAT_OF, STANDARD, form_for, options_for
from isoform.manifest import NAME, Manifest
from isoform.open_candidate import STORED, Cached, open_candidate
from isoform.progress import Progress
from isoform.quality import admits, check_quality, default_quality, plain_dtype, quality_of
from isoform.runtimes.choose.candidates import quality_with
from isoform.runtimes.choose.choose import LATENCY, THROUGHPUT, Choice
from isoform.runtimes.choose.records import Candidate
from isoform.runtimes.devices import cpus
from isoform.sources import Source
from isoform.todays_choice import form_of, held

if TYPE_CHECKING:
    from isoform.choosing import Effort, Spent, Target
    from isoform.runtimes.pipelines.arguments import Request
    from isoform.runtimes.session import Session

ASKED = "asked for"
UNMEASURED = "not measured yet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the caller wants of a model. `task` is the pipeline's, `served` the model's; `quality` is None where none
    was given, `several`: inputs come in batches. `candidate`: open this one, whatever else is said."""

    task: str
    served: str
    asked: Request
    backend: str = "auto"
    quality: str | None = None
    threads: int | None = None
    several: bool = False
    candidate: Candidate | None = None

    def candidate_of(self, backend: str, dtype: str) -> Candidate:
        """A form on a backend, with the threads that the caller gave or all there are."""
        return Candidate(backend=backend, dtype=dtype, threads=self.threads or cpus())

    def quality_for(self, dtype: str | None, default: str) -> str:
        """The quality that is asked for, or that of the `dtype` that is. InputError where one excludes the other."""
        if self.quality is None:
            return default if dtype is None else quality_of(dtype)
        if dtype is not None and not admits(self.quality, dtype):
            raise InputError(
                f"quality={self.quality!r} does not admit dtype={dtype}, which is {quality_of(dtype)!r}; leave one out"
            )
        return self.quality


@dataclass(frozen=True, slots=True)
class Opened:
    """A session, why it is this one, and what counts the seconds that are spent in it.

    `dtype` is the one that answers are computed in, as `Origin` has it.
    """

    session: Session
    dtype: str
    choice: Choice
    spent: Spent | None = None


@dataclass(frozen=True, slots=True)
class Opener:
    """Opens sessions of one source for one wish; `shown` is the pipeline's `progress`, which measuring reports to."""

    source: Source
    wish: Wish
    cached: Cached
    progress: Progress | None
    shown: bool | Progress | None

    @property
    def place(self) -> dict[str, Any]:
        return {"device": self.wish.asked.device, "threads": self.wish.threads}

    def open(self) -> Opened:
        """What the wish asks for."""
        wish, source = self.wish, self.source
        if wish.quality is not None:
            check_quality(wish.quality)
        if wish.candidate is not None:
            one = wish.candidate
            return self.one(Choice(candidate=one, reason=ASKED, quality=quality_with(one)), threads=one.threads)
        if source.opened is None:
            return self.bundle() if (source.path / NAME).is_file() else self.graph()
        if source.module is not None:
            return self.module()
        if source.native and wish.backend in ("auto", "llamacpp"):
            return self.native()
        return self.checkpoint()

    def one(self, choice: Choice, *, threads: int | None) -> Opened:
        """One candidate, in so many threads: None lets the backend take all."""
        candidate = choice.candidate
        session = open_candidate(
            self.source,
            self.wish.served,
            candidate,
            self.cached,
            device=self.wish.asked.device,
            threads=threads,
            progress=self.progress,
        )
        return Opened(session, plain_dtype(candidate.precision or candidate.dtype), choice)

    # ------------------------------------------------------------------ checkpoints
    def checkpoint(self) -> Opened:
        from isoform.reference.checkpoints.stored import stored_dtype

        assert self.source.opened is not None
        wish, stored = self.wish, stored_dtype(self.source.opened.checkpoint)
        dtype = stored if wish.asked.dtype == "auto" else wish.asked.dtype
        if dtype is None and self.source.as_stored:
            dtype = stored
        quality = wish.quality_for(dtype, self.quality())
        if wish.backend != "auto" or dtype is not None:
            backend = "torch" if wish.backend == "auto" else wish.backend
            candidate = _computing(wish.candidate_of(backend, dtype or "f32"))
            return self.one(Choice(candidate=candidate, reason=ASKED, quality=quality), threads=wish.threads)
        return self.measured(self.todays(quality), quality)

    def native(self) -> Opened:
        """A file of llama.cpp's own format."""
        if (dtype := self.wish.asked.dtype) not in (None, "auto"):
            name = self.source.name
            raise InputError(f"{name} runs in the dtype that it was written in, not {dtype}; leave dtype out")
        quality = self.quality()
        candidate = self.wish.candidate_of("llamacpp", STORED)
        choice = Choice(candidate=candidate, reason="a .gguf file runs as it was written", quality=quality)
        return replace(self.one(choice, threads=self.wish.threads), dtype="f32")

    def module(self) -> Opened:
        """A torch module, which runs as it is."""
        from isoform.runtimes import open as backends
        from isoform.runtimes.pipelines.arguments import dtype_name

        wish, asked = self.wish, self.wish.asked
        assert self.source.opened is not None and self.source.module is not None
        if wish.backend not in ("auto", "torch"):
            raise InputError(
                f"a torch module runs on the torch backend, not on {wish.backend}; give its folder instead"
            )
        first = next(self.source.module.parameters())
        dtype = dtype_name(first.dtype) or "f32"
        if asked.dtype not in (None, "auto", dtype):
            raise InputError(f"the module is in {dtype}, not {asked.dtype}; load it with dtype={asked.dtype!r}")
        quality = wish.quality_for(dtype, "exact")
        device = str(first.device)
        if asked.given_device and asked.device != device:
            from isoform.runtimes.backends.torch.session import torch_device

            self.source.module.to(torch_device(asked.device))
            device = asked.device
        session = backends.open_session(
            self.source.opened, "torch", dtype=dtype, device=device, threads=wish.threads, module=self.source.module
        )
        choice = Choice(
            candidate=wish.candidate_of("torch", dtype), reason="the module that was given", quality=quality
        )
        return Opened(session, dtype, choice)

    # ------------------------------------------------------------------ bundles and bare graphs
    def graph(self) -> Opened:
        """A graph without a bundle."""
        from isoform.runtimes import open as backends

        wish, dtype = self.wish, self.wish.asked.dtype
        if dtype not in (None, "auto"):
            name = self.source.name
            raise InputError(f"{name} runs in the dtype that it was written in; leave dtype={dtype} out")
        session, _ = backends.open_path(self.source.path, wish.backend, task=wish.served, **self.place)
        candidate = wish.candidate_of(session.backend, "f32")
        choice = Choice(candidate=candidate, reason="a graph runs as it was written", quality=wish.quality or "exact")
        return Opened(session, "f32", choice)

    def bundle(self) -> Opened:
        from isoform.runtimes import open as backends

        wish, path = self.wish, self.source.path
        dtype = None if wish.asked.dtype == "auto" else wish.asked.dtype
        quality = wish.quality_for(dtype, self.quality())
        if dtype is None and wish.backend != "torch" and (todays := self.todays(quality)):
            if wish.backend == "auto":
                return self.measured(todays, quality)
            candidate, note = todays[0]
            choice = Choice(candidate=candidate, reason=_joined(ASKED, note), quality=quality)
            return self.one(choice, threads=wish.threads)
        session, _ = backends.open_path(path, wish.backend, task=wish.served, dtype=dtype, **self.place)
        candidate = wish.candidate_of(session.backend, dtype or "f32")
        return Opened(session, dtype or "f32", Choice(candidate=candidate, reason=ASKED, quality=quality))

    # ------------------------------------------------------------------ measured, or today's choice
    def todays(self, quality: str) -> list[tuple[Candidate, str]]:
        """What is tried where nothing was measured, in order, and a note on each."""
        from isoform.runtimes.open import PREFERENCE

        wish = self.wish
        if self.source.native:
            return [(wish.candidate_of("llamacpp", STORED), "")]
        if self.source.opened is not None:
            return [(wish.candidate_of("torch", "f32"), "")]
        manifest = Manifest.read(self.source.path)
        names = PREFERENCE if wish.backend == "auto" else (wish.backend,)
        return list(_forms(wish, manifest, [name for name in names if name in FORMAT_OF], quality))

    def quality(self) -> str:
        """The quality that is asked for, or the model's own."""
        from isoform.reference.checkpoints.stored import stored_dtype

        if self.wish.quality is not None:
            return self.wish.quality
        if self.source.native:
            return "small"
        if self.source.opened is not None:
            return default_quality(stored_dtype(self.source.opened.checkpoint))
        return default_quality(str(Manifest.read(self.source.path).source.get("dtype", "f32")))

    def target(self, quality: str, today: Candidate, effort: Effort | None = None) -> Target:
        """What may be measured."""
        from isoform.choosing import Effort, Target

        wish = self.wish
        return Target(
            source=self.source,
            task=wish.task,
            served=wish.served,
            quality=quality,
            today=today,
            threads=wish.threads,
            use=THROUGHPUT if wish.several else LATENCY,
            effort=effort or Effort(),
        )

    def measured(self, todays: Sequence[tuple[Candidate, str]], quality: str) -> Opened:
        """The measured choice; the first of `todays` that opens, each with a note, where there is none."""
        from isoform.choosing import Spent, choice_of, mode
        from isoform.runtimes.pipelines.reporting import reporting

        wish = self.wish
        if wish.asked.device != "cpu":
            return self.today(todays, quality, "today's choice; only CPUs are measured")
        target = self.target(quality, todays[0][0])
        with reporting(self.shown, quiet=False) as report:
            choice = choice_of(target, report)
        if choice is None:
            found = self.today(todays, quality, f"today's choice, {UNMEASURED}")
            return replace(found, spent=Spent(target)) if mode() == "auto" else found
        try:
            threads = choice.candidate.threads
            return self.one(choice, threads=wish.threads if threads == cpus() else threads)
        except (IsoformError, OSError) as error:
            said = " ".join(str(error).split())
            return self.today(todays, quality, f"today's choice; {choice.candidate} is faster and fails: {said}")

    def today(self, todays: Sequence[tuple[Candidate, str]], quality: str, reason: str) -> Opened:
        from isoform.runtimes import open as backends

        for candidate, note in todays:
            try:
                choice = Choice(candidate=candidate, reason=_joined(reason, note), quality=quality)
                return self.one(choice, threads=self.wish.threads)
            except BackendUnavailable:
                if self.source.opened is not None:
                    raise
        # none of the bundle's forms runs here: this says why of each
        session, _ = backends.open_path(self.source.path, task=self.wish.served, **self.place)
        candidate = self.wish.candidate_of(session.backend, "f32")
        return Opened(session, "f32", Choice(candidate=candidate, reason=reason, quality=quality))


def _forms(wish: Wish, manifest: Manifest, names: Sequence[str], quality: str) -> Iterator[tuple[Candidate, str]]:
    """For each backend that the bundle holds a form of, the first that is good enough, and what to say of it."""
    for name in names:
        if held(manifest, FORMAT_OF[name]):
            dtype, note = form_of(manifest, name, quality)
            candidate = wish.candidate_of(name, dtype)
            yield (replace(candidate, precision="f32") if name in STANDARD else candidate), note


def _computing(candidate: Candidate) -> Candidate:
    """A candidate whose dtype is asked for, with the form and the precision in which its backend computes in it."""
    if candidate.backend not in STANDARD:
        return candidate
    _, form = form_for(candidate.backend, candidate.dtype)
    precision = options_for(candidate.backend, candidate.dtype).get("precision", "")
    return replace(candidate, dtype=form, precision=precision)


def _joined(reason: str, note: str) -> str:
    return f"{reason}; {note}" if note else reason
