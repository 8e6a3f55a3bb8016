"""A whole bundle: its files against the manifest, its weights against the source, each form against the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import InputError, IsoformError
from isoform.manifest import NAME, Artifact, File, Manifest, describe
from isoform.validators.report import Report, Result, Skip

if TYPE_CHECKING:
    from isoform.reference.model import Model
    from isoform.runtimes.session import Session
    from isoform.validators.truth import Truth

Progress = Callable[[str, int, int], None]
OpenSession = Callable[..., "Session"]

BACKEND_OF = {"gguf": "llamacpp", "onnx": "onnxruntime", "torchscript": "torchscript"}
"""The format of an artifact -> the backend that it is checked on."""
FLOATS = ("f32", "f16", "bf16")


def check_bundle(
    folder: Path,
    against: str | Path | Model | None = None,
    *,
    progress: Progress | None = None,
    threads: int | None = None,
    seed: int = 0,
    open_session: OpenSession | None = None,
) -> Report:
    """Compare every artifact of a bundle with its source, or with `against`, and keep the summary in its manifest.

    What cannot be opened or read is a failed result, not an error; only a folder that is no bundle and a source that
    is not there raise InputError.
    """
    from isoform.validators.cases import cases_of
    from isoform.validators.truth import Truth

    manifest = Manifest.read(folder)
    report = Report()
    model = _source(manifest, folder, against, report)
    show = progress or (lambda text, done, total: None)
    steps = len(manifest.artifacts) + 1
    show("reference", 0, steps)
    truth = Truth(model, cases_of(model, seed))
    truth.prepare(
        [dtype for dtype in FLOATS if any(a.dtype == dtype for a in manifest.artifacts)],
        [BACKEND_OF[a.format] for a in manifest.artifacts if a.dtype in FLOATS],
    )
    for n, artifact in enumerate(manifest.artifacts, 1):
        show(f"{artifact.files[0].path}", n, steps)
        report.add(_check_artifact(folder, artifact, truth, open_session or _opener(), threads))
    show("checked", steps, steps)
    manifest.parity = report.summary()
    try:
        manifest.write(folder)
    except OSError as error:
        reason = f"the result is not kept: {error.strerror or error}"
        report.skipped.append(Skip("", "files", NAME, reason))
    return report


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
        report.results.append(_files("torch", "source", base, files))
    return open_model(path, manifest.task)


def _files(backend: str, what: str, folder: Path, files: Sequence[File]) -> Result:
    """How many files are not what the manifest says; the note names them."""
    changed = []
    for file in files:
        path = folder / file.path
        if not path.is_file():
            changed.append(f"{file.path} is missing")
        elif path.stat().st_size != file.size:
            changed.append(f"{file.path} has {path.stat().st_size} bytes, {NAME} says {file.size}")
        elif describe(path, folder).sha256 != file.sha256:
            changed.append(f"{file.path} has another sha256 than {NAME} says")
    case = f"{what} files, {', '.join(file.path for file in files)}"
    return Result(backend, "files", case, "changed", len(changed), 0, not changed, "; ".join(changed))


def _check_artifact(
    folder: Path, artifact: Artifact, truth: Truth, open_session: OpenSession, threads: int | None
) -> Report:
    from isoform.validators.deployment import check_deployment
    from isoform.validators.graph import check_graph
    from isoform.validators.packed import check_packed
    from isoform.validators.weights import check_weights

    backend, dtype, model = BACKEND_OF[artifact.format], artifact.dtype, truth.model
    path = folder / artifact.files[0].path
    report = Report([_files(backend, dtype, folder, artifact.files)])

    def failed(level: str, error: Exception) -> None:
        text = str(error) if isinstance(error, IsoformError) else f"{type(error).__name__}: {error}"
        note = " ".join(text.split())
        report.results.append(
            Result(backend, level, f"{dtype} file, {artifact.files[0].path}", "error", 1, 0, False, note)
        )

    try:
        if artifact.format == "onnx" and dtype not in FLOATS:
            report.add(check_packed(model, path, dtype, backend))
        else:
            report.add(check_weights(model, path, artifact.format, dtype, backend))
    except Exception as error:  # noqa: BLE001  a file that no reader takes is a finding, not the end of the check
        failed("weights", error)
    level = "graph" if dtype in FLOATS else "deployment"
    if artifact.signature != model.signature:
        failed(level, InputError(f"the signature in {NAME} is not the one of {model.name}; export the model again"))
        return report
    try:
        session = open_session(path, backend, signature=artifact.signature, strict=level == "graph", threads=threads)
    except Exception as error:  # noqa: BLE001  as above
        failed(level, error)
        return report
    with session:
        if level == "graph":
            report.add(check_graph(model, session, dtype, truth=truth))
        else:
            report.add(check_deployment(session, path, dtype, truth))
    return report


def _opener() -> Any:
    from isoform.runtimes.backends import open_session

    return open_session
