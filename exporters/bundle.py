"""The folder that an export writes: every form of one model, its tokenizer and configuration, and `isoform.json`.

It is written whole or not at all (`isoform.whole`), so a stopped export leaves nothing that looks finished.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from isoform.errors import InputError, IsoformError, UnsupportedExport
from isoform.manifest import NAME, Artifact, File, Manifest, describe
from isoform.whole import FULL, CannotStage, NoSpace, free_bytes, whole_folder

if TYPE_CHECKING:
    from isoform.exporters import onnx
    from isoform.exporters.gguf import Options
    from isoform.reference.model import Model

Progress = Callable[[str, int, int], None]

SIZES = {"bf16": 2.0, "f16": 2.0, "f32": 4.0}
"""Bytes per weight of TorchScript."""

VERSIONED = ("isoform", "gguf", "numpy", "onnx", "torch")


def _onnx(
    model: Model,
    folder: Path,
    dtype: str,
    types: Sequence[str],
    options: Options | None,
    graphs: onnx.Options | None,
    progress: Progress,
) -> list[Artifact]:
    from isoform.exporters import onnx

    asked = graphs or onnx.Options()
    wanted = asked.types or (dtype,)
    return onnx.write(model, folder, wanted, progress, portable=asked.portable, link=asked.link)


def _torchscript(
    model: Model,
    folder: Path,
    dtype: str,
    types: Sequence[str],
    options: Options | None,
    graphs: onnx.Options | None,
    progress: Progress,
) -> list[Artifact]:
    from isoform.exporters import torchscript

    return torchscript.write(model, folder, dtype, progress)


def _gguf(
    model: Model,
    folder: Path,
    dtype: str,
    types: Sequence[str],
    options: Options | None,
    graphs: onnx.Options | None,
    progress: Progress,
) -> list[Artifact]:
    from isoform.exporters import gguf

    return gguf.write(model, folder, types, progress, options=options)


FORMATS = {"onnx": _onnx, "torchscript": _torchscript, "gguf": _gguf}
"""In the order in which they are written."""


def export(
    model: Model,
    formats: Sequence[str],
    out: Path,
    *,
    dtype: str = "f32",
    gguf_types: Sequence[str] = ("f32",),
    gguf_options: Options | None = None,
    onnx_options: onnx.Options | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
    hash_source: bool = True,
) -> Manifest:
    """Write the bundle `out`, whole or not at all.

    `formats` are out of `FORMATS`, or "all": then a form that cannot hold the model is left out, and the manifest says
    why. `dtype` is that of TorchScript, and of ONNX when `onnx_options` name no types; `gguf_types` and `gguf_options`
    are GGUF's. An existing bundle is replaced only with `overwrite`, another folder that is not empty never is.
    Without `hash_source` the manifest knows the source by size and time.
    """
    everything = "all" in formats
    wanted = list(FORMATS) if everything else list(dict.fromkeys(formats))
    if unknown := [name for name in wanted if name not in FORMATS]:
        raise InputError(f"format {unknown[0]!r} is not known; choose from {', '.join(FORMATS)}, or all")
    if not wanted:
        raise InputError(f"no format to export to; choose from {', '.join(FORMATS)}, or all")
    out = Path(os.path.abspath(out))  # noqa: PTH100  (resolve would replace a link by what it points to)
    check_target(out, overwrite)
    report = progress or (lambda text, done, total: None)
    with _staged(out, _needed(model, wanted, dtype, gguf_types, onnx_options), overwrite) as part:
        manifest = Manifest(
            family=model.family.name,
            task=model.task.name,
            source={},
            versions=_versions(),
            wires=dict(model.task.wires),
            steps={name: dict(settings) for name, settings in model.task.steps(model.config).items()},
            loop=model.task.loop,
            facts=dict(model.task.facts(model.config)),
        )
        _copy_sidecars(model, part)
        for name in wanted:
            try:
                with _undone_on_error(part):
                    write = FORMATS[name]
                    manifest.artifacts += write(model, part, dtype, gguf_types, gguf_options, onnx_options, report)
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


def _needed(model: Model, formats: Sequence[str], dtype: str, types: Sequence[str], graphs: onnx.Options | None) -> int:
    """About how many bytes the weights of all forms take."""
    from math import prod

    weights = sum(prod(weight.shape) for weight in model.weights.values())
    by_part = sum(prod(weight.shape) for part in model.parts for weight in part.weights.values())
    files = by_part * SIZES.get(dtype, 0.0) if "torchscript" in formats else 0.0  # none of them shared
    each: list[float] = []
    if "onnx" in formats and not (graphs and graphs.link):
        from isoform.exporters.onnx.types import onnx_type

        each += [onnx_type(name).bytes_per_weight for name in (graphs and graphs.types) or (dtype,)]
    if "gguf" in formats:
        from isoform.exporters.gguf.mixes import bytes_per_weight

        each += [bytes_per_weight(kind) for kind in types]
    return int(files + weights * sum(each))


def _no_space(what: str, out: Path, needed: int, free: int) -> str:
    return (
        f"{what} in {out.parent}: the export needs about {needed / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free; "
        "free some, or export elsewhere"
    )


def _copy_sidecars(model: Model, part: Path) -> None:
    for path in model.checkpoint.sidecars():
        target = part / path.relative_to(model.checkpoint.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


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
    """The checkpoint's name, where it lies, and size and hash of its weight files.

    Hashing takes as long as converting: unless it is `hashed`, a file has the time of its last change instead, or the
    hash that the Hub's cache names it by.
    """
    files = model.checkpoint.files()
    base = files[0].parent
    path = files[0] if files[0].suffix == ".gguf" else base
    found: list[File] = []
    for n, file in enumerate(files):
        report(f"hashing {file.name}", n, len(files))
        found.append(describe(file, base) if hashed else _described(file, base))
    report("hashing", len(files), len(files))
    return {"name": model.name, "path": str(path.absolute()), "files": [file.to_json() for file in found]}


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
