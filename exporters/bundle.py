"""The folder that an export writes: every form of one model, its tokenizer and configuration, and `isoform.json`.

It is written whole or not at all (`isoform.whole`), so a stopped export leaves nothing that looks finished.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import InputError, IsoformError, UnsupportedExport
from isoform.exporters import gguf, onnx, torchscript
from isoform.exporters.format import Format
from isoform.formats import FORMATS as ORDER
from isoform.manifest import NAME, File, Manifest, describe
from isoform.progress import Progress
from isoform.reference.checkpoints.stored import stored_dtype
from isoform.reference.classes import class_facts
from isoform.reference.tokenizers.ends import CONFIG, stated_ends
from isoform.whole import FULL, CannotStage, NoSpace, free_bytes, whole_folder

if TYPE_CHECKING:
    from isoform.reference.model import Model

VERSIONED = ("isoform", "gguf", "numpy", "onnx", "torch")

FORMATS: Mapping[str, Format[Any]] = {"gguf": gguf.FORMAT, "onnx": onnx.FORMAT, "torchscript": torchscript.FORMAT}


def export(
    model: Model,
    formats: Sequence[str],
    out: Path,
    *,
    gguf: gguf.Options | None = None,
    onnx: onnx.Options | None = None,
    torchscript: torchscript.Options | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
    hash_source: bool = True,
) -> Manifest:
    """Write the bundle `out`, whole or not at all.

    `formats` are out of `FORMATS`, or "all": then a form that cannot hold the model is left out, and the manifest says
    why. `gguf`, `onnx` and `torchscript` are the options of each; without them a format writes float32. An existing
    bundle is replaced only with `overwrite`, another folder that is not empty never is. Without `hash_source` the
    manifest knows the source by size and time.
    """
    everything = "all" in formats
    wanted = list(ORDER) if everything else list(dict.fromkeys(formats))
    if unknown := [name for name in wanted if name not in FORMATS]:
        raise InputError(f"format {unknown[0]!r} is not known; choose from {', '.join(ORDER)}, or all")
    if not wanted:
        raise InputError(f"no format to export to; choose from {', '.join(ORDER)}, or all")
    given: dict[str, Any] = {"gguf": gguf, "onnx": onnx, "torchscript": torchscript}
    options = {name: given[name] or FORMATS[name].options() for name in wanted}
    out = Path(os.path.abspath(out))  # noqa: PTH100  (resolve would replace a link by what it points to)
    check_target(out, overwrite)
    report = progress or (lambda text, done, total: None)
    needed = int(sum(FORMATS[name].bytes_needed(model, options[name]) for name in wanted))
    with _staged(out, needed, overwrite) as part:
        found = class_facts(model.checkpoint.folder)
        manifest = Manifest(
            family=model.family.name,
            task=model.task.name,
            source={},
            versions=_versions(),
            wires=dict(model.task.wires),
            steps={name: dict(settings) for name, settings in model.task.steps(model.config).items()},
            loop=model.task.loop,
            facts={**found, **model.task.facts(model.config)},
            notes=list(model.notes),
        )
        model.checkpoint.copy_sidecars(part)
        _state_ends(model.checkpoint.folder, part, found.get("tokenizer"))
        for name in wanted:
            try:
                with _undone_on_error(part):
                    manifest.artifacts += FORMATS[name].write(model, part, options[name], report)
            except UnsupportedExport as error:
                if not everything:
                    raise
                manifest.missing[name] = str(error)
        if not manifest.artifacts:
            raise UnsupportedExport("; ".join(manifest.missing.values()))
        manifest.source = _source(model, report, hash_source)
        manifest.write(part)
        check_target(out, overwrite)
    return manifest


def check_target(out: Path, overwrite: bool) -> None:
    """Raises InputError when a bundle cannot go there: a file, a folder with other things, or a bundle to be kept."""
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise InputError(f"{out} is a file; give a folder that does not exist yet")
    if not any(out.iterdir()):
        return
    if not (out / NAME).is_file():
        raise InputError(f"{out} holds other files and no {NAME}; give a folder that does not exist yet")
    if not overwrite:
        raise InputError(f"{out} is an exported bundle already; give --overwrite to replace it, or another folder")


@contextmanager
def _staged(out: Path, needed: int, overwrite: bool) -> Iterator[Path]:
    """The staging folder of the bundle; what the file system refuses is an error with a way out."""
    try:
        with whole_folder(out, needed=needed, replace=overwrite) as part:
            yield part
    except NoSpace as error:
        raise IsoformError(_no_space("no space left", out, needed, error.free)) from None
    except OSError as error:
        if error.errno in FULL:
            raise IsoformError(_no_space(error.strerror or "no space left", out, needed, free_bytes(out))) from None
        if isinstance(error, CannotStage):
            raise InputError(f"{out.parent} cannot be written to ({error.strerror}); give another folder") from None
        raise


def _no_space(what: str, out: Path, needed: int, free: int) -> str:
    return (
        f"{what} in {out.parent}: the export needs about {needed / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free; "
        "free some, or export elsewhere"
    )


def _state_ends(folder: Path, part: Path, tokenizer: Mapping[str, Any] | None) -> None:
    """Say in the bundle's tokenizer_config.json whether BOS and EOS are added, for clients that go by it."""
    if tokenizer is None or "refused" in tokenizer or not (folder / "tokenizer.json").is_file():
        return
    if (text := stated_ends(folder, tokenizer)) is not None:
        (part / CONFIG).write_text(text, encoding="utf-8")


@contextmanager
def _undone_on_error(part: Path) -> Iterator[None]:
    """Remove what a form wrote before it turned out that it cannot hold the model."""
    before = set(part.rglob("*"))
    try:
        yield
    except UnsupportedExport:
        for path in sorted(set(part.rglob("*")) - before, reverse=True):
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink()
        raise


def _source(model: Model, report: Progress, hashed: bool) -> dict[str, object]:
    """The checkpoint's name, where it lies, its stored dtype, and size and hash of its weight files.

    Hashing takes as long as converting: unless it is `hashed`, a file has the time of its last change instead, or the
    hash that the Hub's cache names it by.
    """
    files = model.checkpoint.files()
    base = model.checkpoint.root
    path = files[0] if files[0].suffix == ".gguf" else base
    found: list[File] = []
    for n, file in enumerate(files):
        report(f"hashing {file.name}", n, len(files))
        found.append(describe(file, base) if hashed else _described(file, base))
    report("hashing", len(files), len(files))
    return {
        "name": model.name,
        "path": str(path.absolute()),
        "dtype": stored_dtype(model.checkpoint),
        "files": [file.to_json() for file in found],
    }


def _described(path: Path, base: Path) -> File:
    """A file by what is known of it without reading it."""
    name, state = path.relative_to(base).as_posix(), path.stat()
    blob = path.resolve()
    if blob.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", blob.name):
        return File(name, state.st_size, blob.name)
    return File(name, state.st_size, "", state.st_mtime_ns)


def _versions() -> dict[str, str]:
    found = {}
    for package in VERSIONED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
