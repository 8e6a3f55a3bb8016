"""Many models, formats, quantizations and backends: each combination is a cell, checked in a process of its own.

A cell is a small JSON file, and what came of it is a report beside it. So the same cells may run on the cores of this
machine (`run_cells`) or anywhere else (`isoform check --cell FILE`), and whoever collects them finds results that are
there already. The order of the results is that of the cells, whichever ends first.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any

from isoform.errors import InputError, IsoformError, UnsupportedExport
from isoform.formats import CHECKED_ON, checked_on
from isoform.manifest import Artifact
from isoform.progress import Progress
from isoform.validators.check.bundle import Limits, check_bundle
from isoform.validators.check.plan import BASE, count_parameters
from isoform.validators.check.settings import Settings
from isoform.validators.report.records import Report, Result, Skip
from isoform.validators.report.subject import Subject

if TYPE_CHECKING:
    from isoform.reference.model import Model

LEVEL = "cell"
TRIES = 2  # a process that dies may have been killed for another's need of memory; one that dies twice will again
WAIT = 0.05  # seconds between two looks at the processes


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One check: of a `bundle`, or of `model` exported as one form. Paths are absolute; `bytes` is its peak memory.

    `label` is what the report calls the model.
    """

    label: str
    model: str
    format: str = ""
    quantization: str = ""
    backends: tuple[str, ...] = ()
    bundle: str = ""
    seconds: float | None = None
    tolerances: Mapping[str, float] = field(default_factory=dict)
    bytes: int = 0
    threads: int = 1

    @property
    def name(self) -> str:
        """What no other cell is called."""
        return " ".join(filter(None, (self.label, self.format, self.quantization)))

    @property
    def file(self) -> str:
        """The name of its files: what a file system takes, and no other cell has."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", self.name).strip("-.")[:120] or "cell"

    @property
    def backend(self) -> str:
        return CHECKED_ON.get(self.format, "bundle")

    @property
    def subject(self) -> Subject:
        """All of the cell, for the report."""
        return Subject(self.backend, LEVEL, self.quantization, "", "", form=self.format, model=self.label)


# ------------------------------------------------------------------ what there is to do
def make_cells(settings: Settings) -> tuple[list[Cell], list[Skip]]:
    """The cells of an isoform.toml in its order, and the combinations that no format has, with the reason.

    Every model is opened, but none of its weights is read: what is not there is wrong input before anything runs.
    """
    cells, skipped = [], []
    options: dict[str, Any] = {"seconds": settings.seconds, "tolerances": settings.tolerances}
    for bundle in settings.bundles:
        folder = (settings.folder / bundle).resolve()
        model, largest = _bundle_source(folder)
        need = BASE + 8 * count_parameters(model) + 2 * largest
        cells.append(Cell(label=bundle, model=folder.name, bundle=str(folder), bytes=need, **options))
    for block in settings.matrix:
        for source in block.models:
            path, model = _open(settings.folder, source)
            label = Path(source).name if Path(path).exists() else source
            need = BASE + 12 * count_parameters(model)
            for quantization in block.quantizations:
                refused = {form: _refusal(form, quantization) for form in block.formats}
                if all(refused.values()):
                    raise InputError(next(reason for reason in refused.values() if reason))
                for form in block.formats:
                    backends = tuple(name for name in checked_on(form, quantization) if name in block.backends)
                    if not backends:
                        continue
                    if reason := refused[form]:
                        place = Subject(backends[0], LEVEL, quantization, "", "", form=form, model=label)
                        skipped.append(Skip.of(place, reason))
                        continue
                    kind: dict[str, Any] = {"format": form, "quantization": quantization, "backends": backends}
                    cells.append(Cell(label=label, model=path, bytes=need, **kind, **options))
    if not cells:
        raise InputError(
            "there is nothing to check: give [check] bundles or [[matrix]] models, and formats that the backends read"
        )
    known: set[str] = set()
    for cell in cells:
        if cell.file in known:
            raise InputError(f"two cells have the name {cell.name!r}; give models whose folders have other names")
        known.add(cell.file)
    return cells, skipped


def _open(folder: Path, source: str) -> tuple[str, Model]:
    """The path of a model (or its Hub id as it is) and the model."""
    from isoform.reference.model import open_model

    local = (folder / Path(source).expanduser()).resolve()
    path = str(local) if local.exists() else source
    return path, open_model(path)


def _bundle_source(folder: Path) -> tuple[Model, int]:
    """The model that a bundle was made from, and the bytes of its largest artifact."""
    from isoform.manifest import Manifest
    from isoform.reference.model import open_model

    manifest = Manifest.read(folder)
    path = manifest.source.get("path") or ""
    if not Path(path).exists():
        raise InputError(f"the source of {folder}, {path}, is not there any more; export the bundle again")
    largest = max((sum(file.size for file in a.files) for a in manifest.artifacts), default=0)
    return open_model(path, manifest.task), largest


def _refusal(form: str, quantization: str) -> str:
    """Why this format has no such type, or nothing when it has."""
    from isoform.exporters.bundle import FORMATS

    try:
        FORMATS[form].check_request(FORMATS[form].of_types([quantization]))
    except IsoformError as error:
        return str(error)
    return ""


# ------------------------------------------------------------------ one cell
def write_cell(cell: Cell, folder: Path) -> Path:
    path = folder / f"{cell.file}.cell.json"
    path.write_text(json.dumps(asdict(cell), indent=2) + "\n", encoding="utf-8")
    return path


def read_cell(path: Path) -> Cell:
    """Raises InputError for a file that is no cell."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return Cell(**stored | {"backends": tuple(stored.get("backends", ()))})
    except FileNotFoundError:
        raise InputError(f"{path} is not there; `isoform check --config FILE --cells DIR` writes cells") from None
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is no cell of a matrix ({' '.join(str(error).split())})") from None


def run_cell(path: Path) -> Report:
    """Check the cell in this process, and write its report beside it.

    What the model or format refuses is in the report: a cell that ran always has one.
    """
    from isoform.validators.report import formats as reports

    cell = read_cell(path)
    try:
        report = _checked(cell)
    except UnsupportedExport as error:
        report = Report(skipped=[Skip.of(cell.subject, str(error))])
    except IsoformError as error:
        text = " ".join(str(error).split())
        report = Report([Result.of(cell.subject, "error", 1, 0, text)])
    report = report.labelled(model=cell.label)
    reports.save(report, "json", _result_path(path))
    return report


def _result_path(cell: Path) -> Path:
    return cell.with_name(cell.name.removesuffix(".cell.json") + ".json")


def _checked(cell: Cell) -> Report:
    def wanted(artifact: Artifact) -> bool:
        return not cell.format or artifact.format == cell.format

    limits = Limits(seconds=cell.seconds, tolerances=cell.tolerances, only=wanted, backends=cell.backends)
    if cell.bundle:
        return check_bundle(Path(cell.bundle), threads=cell.threads, limits=limits)
    from isoform.exporters import bundle
    from isoform.reference.model import open_model

    model = open_model(cell.model)
    with tempfile.TemporaryDirectory(prefix="isoform-") as temporary:
        folder = Path(temporary) / "bundle"
        options: dict[str, Any] = {cell.format: bundle.FORMATS[cell.format].of_types([cell.quantization])}
        bundle.export(model, [cell.format], folder, **options)
        return check_bundle(folder, model, threads=cell.threads, limits=limits)


# ------------------------------------------------------------------ all cells
def run_cells(
    cells: Sequence[Cell],
    *,
    jobs: int | None = None,
    memory: int | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
    command: Callable[[Path], list[str]] | None = None,
) -> Report:
    """Check every cell, `jobs` at a time as long as their memory fits into `memory` bytes; the reports in order.

    `folder` keeps the cells and their reports; a report that is there already is taken as it is. When this is
    interrupted, every process it started is ended.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = min(jobs or cores, len(cells)) or 1
    for cell in cells:
        if memory is not None and cell.bytes > memory:
            need, have = cell.bytes / 1e9, memory / 1e9
            raise InputError(f"{cell.name} needs up to {need:.1f} GB, --memory allows {have:.1f} GB; allow more")
    with tempfile.TemporaryDirectory(prefix="isoform-cells-") as temporary:
        place = folder or Path(temporary)
        try:
            place.mkdir(parents=True, exist_ok=True)
            threads = max(1, cores // jobs)
            paths = [write_cell(_with_threads(cell, threads), place) for cell in cells]
        except OSError as error:
            raise InputError(f"{place} cannot be written ({error.strerror}); give another --cells") from None
        pool = _Pool(cells, paths, jobs, memory, progress or (lambda text, done, total: None), command or _command)
        notes = pool.run()
        return _collect(cells, paths, notes)


def _with_threads(cell: Cell, threads: int) -> Cell:
    return Cell(**{**asdict(cell), "threads": threads})


def _command(path: Path) -> list[str]:
    return [sys.executable, "-m", "isoform", "check", "--cell", str(path), "--json"]


@dataclass
class _Running:
    process: subprocess.Popen[bytes]
    tries: int


class _Pool:
    """Starts cells in order, as many at a time as jobs and memory allow, and starts a dead one again, once."""

    def __init__(
        self,
        cells: Sequence[Cell],
        paths: Sequence[Path],
        jobs: int,
        memory: int | None,
        progress: Progress,
        command: Callable[[Path], list[str]],
    ) -> None:
        self.cells, self.paths, self.jobs, self.memory = cells, paths, jobs, memory
        self.progress, self.command = progress, command
        self.running: dict[int, _Running] = {}
        self.notes: dict[int, str] = {}  # what became of processes that died

    def run(self) -> dict[int, str]:
        waiting = [n for n, path in enumerate(self.paths) if not _result_path(path).is_file()]
        total = len(self.cells)
        try:
            while waiting or self.running:
                while waiting and self._fits(waiting[0]):
                    self._start(waiting.pop(0), 1)
                self._look()
                self.progress("cells", total - len(waiting) - len(self.running), total)
                sleep(WAIT)
        finally:
            for entry in self.running.values():
                _end(entry.process)
        return self.notes

    def _fits(self, n: int) -> bool:
        if len(self.running) >= self.jobs:
            return False
        taken = sum(self.cells[other].bytes for other in self.running)
        return self.memory is None or not self.running or taken + self.cells[n].bytes <= self.memory

    def _start(self, n: int, tries: int) -> None:
        threads = str(max(1, (os.cpu_count() or 1) // self.jobs))
        environment = {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false", **os.environ}
        log = self.paths[n].with_suffix(".log").open("wb")
        with log:
            process = subprocess.Popen(
                self.command(self.paths[n]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=environment,
                start_new_session=True,  # its own group: it ends with the processes that it started
            )
        self.running[n] = _Running(process, tries)

    def _look(self) -> None:
        """Take away what has ended; without a report it has died."""
        for n, entry in list(self.running.items()):
            code = entry.process.poll()
            if code is None:
                continue
            _end(entry.process)
            del self.running[n]
            if _result_path(self.paths[n]).is_file():
                continue
            said = self.paths[n].with_suffix(".log").read_text("utf-8", "replace").strip().splitlines()
            how = f"its process ended with {_ending(code)}" + (f" ({said[-1][:200]})" if said else "")
            if entry.tries < TRIES:
                self.notes[n] = f"{how}; it was run again"
                self._start(n, entry.tries + 1)
            else:
                self.notes[n] = f"{how}, twice"


def _ending(code: int) -> str:
    if code >= 0:
        return f"code {code}"
    name = next((entry.name for entry in signal.Signals if entry.value == -code), str(-code))
    return f"signal {name}" + (", as a machine out of memory does" if name == "SIGKILL" else "")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and every one that it has started."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):  # all of them are gone
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _collect(cells: Sequence[Cell], paths: Sequence[Path], notes: Mapping[int, str]) -> Report:
    from isoform.validators.report import formats as reports

    whole = Report()
    for n, (cell, path) in enumerate(zip(cells, paths, strict=True)):
        result = _result_path(path)
        if result.is_file():
            whole.add(reports.read(result))
            if n in notes:
                whole.skipped.append(Skip.of(cell.subject, notes[n]))
        else:
            whole.results.append(Result.of(cell.subject, "died", 1, 0, f"{cell.name}: {notes[n]}"))
    return whole
