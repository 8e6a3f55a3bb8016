"""A whole bundle: its files against the manifest, its weights against the source, each form against the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import BackendUnavailable, InputError, IsoformError
from isoform.formats import CHECKED_ON, FLOATS, checked_on
from isoform.manifest import NAME, WHOLE, Artifact, File, Manifest
from isoform.progress import Progress
from isoform.quality import plain_dtype
from isoform.validators.report.records import Report, Result, Skip
from isoform.validators.report.subject import Subject

if TYPE_CHECKING:
    from isoform.reference.model import Model
    from isoform.runtimes.session import Session
    from isoform.validators.cases.case import Case
    from isoform.validators.check.plan import Clock
    from isoform.validators.truth.reference import Truth

OpenSession = Callable[..., "Session"]

VERSIONED = ("isoform", "torch", "onnxruntime-gpu", "onnxruntime", "openvino", "xllamacpp", "transformers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a check may cost and must hold: `seconds` and `bytes` bound it, `tolerances` are chosen by name.

    `only` picks artifacts, `backends` what runs them; with `oracle`, transformers is asked about the tokenizer; `keep`
    stores the result in the manifest; `layers` looks into every float form, for the report's heat map; quantized forms
    are measured on `text` instead of our own; `announce` is told the estimate.
    """

    seconds: float | None = None
    bytes: int | None = None
    tolerances: Mapping[str, float] = field(default_factory=dict)
    only: Callable[[Artifact], bool] = lambda artifact: True
    backends: tuple[str, ...] = ()
    oracle: bool = False
    keep: bool = True
    layers: bool = False
    text: str = ""
    announce: Callable[[str], None] = lambda text: None


def check_bundle(
    folder: Path,
    against: str | Path | Model | None = None,
    *,
    progress: Progress | None = None,
    threads: int | None = None,
    seed: int = 0,
    open_session: OpenSession | None = None,
    limits: Limits | None = None,
) -> Report:
    """Compare every artifact of a bundle with its source, or with `against`, and keep the summary in its manifest.

    What cannot be opened or read is a failed result, not an error; only a folder that is no bundle, a source that is
    not there, and limits that leave room for nothing raise InputError.
    """
    from isoform.validators.truth.tolerances import chosen

    limits = limits or Limits()
    with chosen(limits.tolerances):
        return _check(folder, against, progress, threads, seed, open_session or _opener(), limits)


def _check(
    folder: Path,
    against: str | Path | Model | None,
    progress: Progress | None,
    threads: int | None,
    seed: int,
    open_session: OpenSession,
    limits: Limits,
) -> Report:
    from isoform.validators.cases.prose import ROWS
    from isoform.validators.cases.registry import cases_of
    from isoform.validators.check.plan import Clock, in_all, make_plan
    from isoform.validators.levels.preprocessing import check_preprocessing
    from isoform.validators.truth.reference import Truth

    clock = Clock(limits.seconds)
    manifest, report = Manifest.read(folder), Report()
    model = _source(manifest, folder, against, report)
    artifacts = [artifact for artifact in manifest.artifacts if limits.only(artifact)]
    if not artifacts:
        raise InputError(f"{folder} holds none of the forms that are asked for; `isoform inspect {folder}` lists them")
    parts = [part for part in model.parts if any(artifact.part in (part.part, WHOLE) for artifact in artifacts)]
    share = None if limits.seconds is None else limits.seconds / max(1, len(parts))
    cases = {part.part: cases_of(part, seed) for part in parts}
    plans = {
        part.part: make_plan(part, [a for a in artifacts if a.part == part.part], cases[part.part], ROWS, share)
        for part in parts
    }
    plan = in_all(list(plans.values()))
    report.about = _about(folder, manifest, model, limits) | {
        "estimate": {"seconds": round(plan.seconds, 1), "bytes": plan.bytes}
    }
    if limits.bytes is not None and plan.bytes > limits.bytes:
        need, have = plan.bytes / 1e9, limits.bytes / 1e9
        raise InputError(f"{folder} needs up to {need:.1f} GB to be checked, --memory allows {have:.1f} GB; allow more")
    limits.announce(str(plan))
    report.skipped += [
        Skip("", "graph", "", case.group, case.name, clock.planned, part=_part(name))
        for name, one in plans.items()
        for case in one.left_out
    ]
    show = progress or (lambda text, done, total: None)
    steps = len(artifacts) + 1
    show("reference", 0, steps)
    truths = {part.part: Truth(part, plans[part.part].cases, plans[part.part].passages, limits.text) for part in parts}
    plain = [a for a in artifacts if model.plain is not None and a.signature == model.plain.signature]
    others = [Truth(model.trunk, truths[WHOLE].cases, truths[WHOLE].passages, limits.text)] if plain else []
    for truth in (*truths.values(), *others):
        truth.prepare(
            [dtype for dtype in FLOATS if any(plain_dtype(a.dtype) == dtype for a in artifacts)],
            [CHECKED_ON[a.format] for a in artifacts if plain_dtype(a.dtype) in FLOATS],
        )
    stored = (manifest.parity or {}).get("preprocessing")
    features, known = check_preprocessing(
        folder,
        model.checkpoint.folder,
        model.parts[0].signature,
        facts=manifest.facts,
        stored=stored,
        oracle=limits.oracle,
    )
    report.add(features)
    for n, artifact in enumerate(artifacts, 1):
        show(f"{artifact.files[0].path}", n, steps)
        left = None if clock.seconds is None else max(0.0, clock.seconds - clock.spent) / (len(artifacts) - n + 1)
        if artifact.part == WHOLE and len(model.parts) > 1:  # a file of all parts, which run wired
            file = Truth(model, ())
            report.add(
                _Artifact(folder, artifact, file, open_session, threads, Clock(left), clock.reason, "").check_file()
            )
            continue
        if artifact.part not in truths:
            report.results.append(_unknown(artifact, model))
            continue
        truth = others[0] if artifact in plain else truths[artifact.part]
        backend, *others_here = _runners(artifact.format, artifact.dtype, limits)
        one = _Artifact(folder, artifact, truth, open_session, threads, Clock(left), clock.reason, backend)
        report.add(one.check())
        for other in others_here:
            report.add(replace(one, backend=other).check_run())
        if limits.layers:
            report.add(one.layers())
    if len(model.parts) > 1:
        report.add(_wired(folder, model, artifacts, cases, open_session, threads, clock, seed, limits))
    show("checked", steps, steps)
    report.about["seconds"] = round(clock.spent, 2)
    if not limits.keep:
        return report
    manifest.parity = report.summary() | ({"preprocessing": known} if known else {})
    try:
        manifest.write(folder)
    except OSError as error:
        reason = f"the result is not kept: {error.strerror or error}"
        report.skipped.append(Skip("", "files", "", "manifest", f"manifest, {NAME}", reason))
    return report


def _wired(
    folder: Path,
    model: Model,
    artifacts: Sequence[Artifact],
    cases: Mapping[str, Sequence[Case]],
    open_session: OpenSession,
    threads: int | None,
    clock: Clock,
    seed: int,
    limits: Limits,
) -> Report:
    """Every form that has all parts that feed the main one, its parts wired together."""
    from isoform.runtimes.backends.parts import PartsSession
    from isoform.validators.cases.wired import GROUP, WiredModel, wired_cases
    from isoform.validators.levels.wired import WiredSession, check_wired
    from isoform.validators.truth.reference import Truth

    wired, report = WiredModel.of(model), Report()
    forms: dict[tuple[str, str, str], dict[str, Artifact]] = {}
    for artifact in artifacts:
        for backend in _runners(artifact.format, artifact.dtype, limits):
            forms.setdefault((artifact.format, artifact.dtype, backend), {})[artifact.part] = artifact
    truth: Truth | None = None
    for (form, dtype, backend), parts in forms.items():
        level = "graph" if plain_dtype(dtype) in FLOATS else "deployment"
        subject = Subject(backend, level, dtype, GROUP, GROUP, form=form)
        one = parts.get(WHOLE)
        missing = [name for name in wired.order if name in wired.signatures and name not in parts and one is None]
        if missing:
            report.skipped.append(Skip.of(subject, f"without {' and '.join(missing)} the parts cannot be wired"))
            continue
        reason = clock.reason if clock.up else _not_here(backend) if backend != CHECKED_ON[form] else ""
        if reason:
            report.skipped.append(Skip.of(subject, reason))
            continue
        paths = {name: folder / artifact.files[0].path for name, artifact in parts.items()}

        def open_part(
            name: str, paths: dict[str, Path] = paths, backend: str = backend, strict: bool = level == "graph"
        ) -> Session:
            return open_session(paths[name], backend, signature=wired.signatures[name], strict=strict, threads=threads)

        try:
            if truth is None:
                truth = Truth(wired, wired_cases(wired, cases, seed))
            sessions: Any
            if one is None:
                signatures = {name: wired.signatures[name] for name in parts}
                sessions = PartsSession(signatures, open_part, model.task.wires, wired.steps)
            else:
                options = {"signature": one.signature, "strict": level == "graph", "threads": threads}
                sessions = open_session(paths[WHOLE], backend, wires=model.task.wires, **options)
            with WiredSession(sessions, wired) as session:
                found = check_wired(session, wired, paths, dtype, truth)
        except Exception as error:  # noqa: BLE001  a form that cannot be wired is a finding, not the end of the check
            text = str(error) if isinstance(error, IsoformError) else f"{type(error).__name__}: {error}"
            if isinstance(error, BackendUnavailable) and backend != CHECKED_ON[form]:
                found = Report(skipped=[Skip.of(subject, text)])
            else:
                found = Report([Result.of(subject, "error", 1, 0, " ".join(text.split()))])
        report.add(found.labelled(form=form))
    return report


def _runners(form: str, dtype: str, limits: Limits) -> list[str]:
    """The backends that run a form in this check, the one that it is checked on first."""
    return [name for name in checked_on(form, dtype) if not limits.backends or name in limits.backends] or [
        CHECKED_ON[form]
    ]


def _not_here(backend: str) -> str:
    """Why a backend cannot run here, "" where it can."""
    from isoform.runtimes.open import available

    state = next(state for state in available() if state.backend == backend)
    return "" if state.ready else f"{backend} does not run here: {state.detail}"


def _about(folder: Path, manifest: Manifest, model: Model, limits: Limits) -> dict[str, Any]:
    about = {
        "bundle": str(folder),
        "source": model.name,
        "family": manifest.family,
        "task": manifest.task,
        "versions": {name: found for name in VERSIONED if (found := _version(name))},
    }
    if limits.tolerances:
        about["tolerances"] = dict(limits.tolerances)
    return about


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _source(manifest: Manifest, folder: Path, against: str | Path | Model | None, report: Report) -> Model:
    """The model to compare with; the files of the manifest's own source are checked as well."""
    from isoform.reference.model import Model, open_model

    if isinstance(against, Model):
        if against.task.name != manifest.task:
            raise InputError(f"{folder} was exported for {manifest.task}, not {against.task.name}; open that task")
        return against
    if against is not None:
        return open_model(against, manifest.task)
    path = manifest.source.get("path")
    if not path or not Path(path).exists():
        name = manifest.source.get("name") or "CHECKPOINT"
        raise InputError(
            f"the source of {folder}, {path or name}, is not there any more; say where it is: --against {name}"
        )
    base = Path(path) if Path(path).is_dir() else Path(path).parent
    files = [File(**entry) if isinstance(entry, dict) else entry for entry in manifest.source.get("files", ())]
    if files:
        report.results.append(_files(Subject("torch", "files", "", "source files", ""), base, files))
    return open_model(path, manifest.task)


def _files(subject: Subject, folder: Path, files: Sequence[File]) -> Result:
    """How many files are not what the manifest says; the note names them."""
    changed = [difference for file in files if (difference := file.difference(folder))]
    subject = replace(subject, case=f"{subject.group}, {', '.join(file.path for file in files)}")
    return Result.of(subject, "changed", len(changed), 0, "; ".join(changed))


def _unknown(artifact: Artifact, model: Model) -> Result:
    """A graph that is of no part of the model."""
    parts = ", ".join(part.part for part in model.parts)
    note = f"{NAME} says that it is the {artifact.part}; {model.name} has {parts}"
    return Result.of(_file(artifact, "files"), "error", 1, 0, note)


def _file(artifact: Artifact, level: str) -> Subject:
    """The file of an artifact, at a level."""
    backend, case = CHECKED_ON[artifact.format], f"file, {artifact.files[0].path}"
    form, part = artifact.format, _part(artifact.part)
    return Subject(backend, level, artifact.dtype, "file", case, form=form, part=part)


def _part(name: str) -> str:
    """What a report calls the part of a model: nothing where it is the whole."""
    return "" if name == WHOLE else name


@dataclass
class _Artifact:
    """One artifact, its levels one after the other; what the clock leaves no time for is skipped for `reason`."""

    folder: Path
    artifact: Artifact
    truth: Truth
    open_session: OpenSession
    threads: int | None
    clock: Clock
    reason: str
    backend: str

    def check(self) -> Report:
        return self._labelled(self._levels())

    def check_file(self) -> Report:
        """Its files and weights, and not what it computes."""
        report = Report([_files(self._subject("files", "files"), self.folder, self.artifact.files)])
        self._weights(report)
        return self._labelled(report)

    def check_run(self) -> Report:
        """What it computes, and not its files: for another backend over the same ones, if it is installed."""
        report = Report()
        if reason := _not_here(self.backend):
            report.skipped.append(Skip.of(self._subject(self.level), reason))
        else:
            self._run(report)
        return self._labelled(report)

    def _labelled(self, report: Report) -> Report:
        return report.labelled(form=self.artifact.format, part=_part(self.artifact.part))

    def _subject(self, level: str, group: str = "", case: str = "") -> Subject:
        return Subject(self.backend, level, self.dtype, group, case)

    def layers(self) -> Report:
        """How far off every module is; a form that cannot be looked into is skipped with the reason."""
        from isoform.validators.bisection.profile import profile, shown_case

        case, report = shown_case(self.truth.cases), Report()
        if case is None or self.level != "graph":
            return report
        try:
            if self.clock.up:
                raise InputError(self.reason)
            report.layers.append(profile(self.truth.model, self.path, self.backend, self.dtype, case, self.threads))
        except Exception as error:  # noqa: BLE001  it explains, and decides nothing
            text = str(error) if isinstance(error, IsoformError) else f"{type(error).__name__}: {error}"
            report.skipped.append(Skip.of(self._subject("layers", case.group, case.name), " ".join(text.split())))
        return self._labelled(report)

    def _levels(self) -> Report:
        report = Report([_files(self._subject("files", "files"), self.folder, self.artifact.files)])
        if self.clock.seconds is None:
            self._weights(report)
            self._run(report)
            return report
        # What a user would notice first comes first, but is reported in the usual order.
        weights, run = Report(), Report()
        self._run(run, lambda: self._weights(weights))
        report.add(weights)
        report.add(run)
        return report

    @property
    def dtype(self) -> str:
        return self.artifact.dtype

    @property
    def level(self) -> str:
        return "graph" if plain_dtype(self.dtype) in FLOATS else "deployment"

    @property
    def path(self) -> Path:
        return self.folder / self.artifact.files[0].path

    def _failed(self, report: Report, level: str, error: Exception) -> None:
        text = str(error) if isinstance(error, IsoformError) else f"{type(error).__name__}: {error}"
        subject = replace(_file(self.artifact, level), backend=self.backend)
        report.results.append(Result.of(subject, "error", 1, 0, " ".join(text.split())))

    def _weights(self, report: Report) -> None:
        from isoform.validators.levels.metadata import check_metadata
        from isoform.validators.levels.packed import check_packed
        from isoform.validators.levels.weights import check_weights

        if self.clock.up:
            report.skipped.append(Skip.of(self._subject("weights"), self.reason))
            return
        model = self.truth.model
        try:
            if self.artifact.format == "onnx" and plain_dtype(self.dtype) not in FLOATS:
                report.add(check_packed(model, self.path, self.dtype, self.backend))
            else:
                report.add(
                    check_weights(
                        model, self.path, self.artifact.format, self.dtype, self.backend, self.artifact.options
                    )
                )
            if self.artifact.format == "gguf":
                pre = self.artifact.options.get("pre")
                report.add(check_metadata(model, self.path, self.dtype, self.backend, pre))
        except Exception as error:  # noqa: BLE001  a file that no reader takes is a finding, not the end of the check
            self._failed(report, "weights", error)

    def _run(self, report: Report, between: Callable[[], None] = lambda: None) -> None:
        """Graph or deployment; with a clock `between` runs after the most telling case."""
        from isoform.validators.bisection.search import departures
        from isoform.validators.levels.deployment import check_deployment
        from isoform.validators.levels.routes import along_routes

        if self.artifact.signature != self.truth.model.signature:
            text = f"the signature in {NAME} is not the one of {self.truth.model.name}; export the model again"
            self._failed(report, self.level, InputError(text))
            between()
            return
        strict = self.level == "graph"
        options = {"signature": self.artifact.signature, "strict": strict, "threads": self.threads}
        try:
            session = self.open_session(self.path, self.backend, **options)
        except Exception as error:  # noqa: BLE001  as above
            if isinstance(error, BackendUnavailable) and self.backend != CHECKED_ON[self.artifact.format]:
                report.skipped.append(Skip.of(self._subject(self.level), str(error)))
            else:
                self._failed(report, self.level, error)
            between()
            return
        with session:
            if strict:
                self._graph(report, session, between)
            elif self.clock.up:
                self._failed(report, self.level, InputError(self.reason))
            else:
                report.add(check_deployment(session, self.path, self.dtype, self.truth))
                between()
        if strict:
            cases, model = self.truth.cases, self.truth.model
            along_routes(model, self.path, self.backend, self.dtype, report, cases, self.threads)
            report.add(departures(model, self.path, self.backend, self.dtype, report, cases, threads=self.threads))
        elif self.artifact.format == "onnx" and self.backend == CHECKED_ON["onnx"] and not self.clock.up:
            self._exact(report)

    def _exact(self, report: Report) -> None:
        """The graph level of a quantized graph, where its activations can be left in float: no skip then."""
        from isoform.validators.levels.dequantized import check_dequantized, weights_only

        try:
            if not weights_only(self.path):
                return
            options = {"signature": self.artifact.signature, "strict": True, "threads": self.threads}
            with self.open_session(self.path, self.backend, **options) as session:
                model, cases = self.truth.model, self.truth.cases
                found = check_dequantized(model, session, self.path, self.dtype, cases, self.threads)
        except Exception as error:  # noqa: BLE001  as above
            self._failed(report, "graph", error)
            return
        report.skipped = [skip for skip in report.skipped if skip.level != "graph" or skip.case]
        report.add(found)

    def _graph(self, report: Report, session: Session, between: Callable[[], None]) -> None:
        from isoform.validators.check.plan import telling
        from isoform.validators.levels.graph import check_graph

        if self.clock.seconds is None:
            report.add(check_graph(self.truth.model, session, self.dtype, truth=self.truth))
            return
        order = {case.name: n for n, case in enumerate(self.truth.cases)}
        for n, case in enumerate(sorted(self.truth.cases, key=telling, reverse=True)):
            if n and self.clock.up:
                report.skipped.append(Skip.of(self._subject("graph", case.group, case.name), self.reason))
            else:
                report.add(check_graph(self.truth.model, session, self.dtype, truth=self.truth, cases=[case]))
            if n == 0:
                between()
        for entries in (report.results, report.skipped, report.evidence):
            entries.sort(key=lambda entry: order.get(entry.case, -1))


def _opener() -> Any:
    from isoform.runtimes.open import open_session

    return open_session
