"""Bundles of tiny checkpoints, exported once and stored on disk by everything that they are made from.

`exported("llama")` is the folder of the bundle with every form that its card allows. All tests share a folder, so it is
read-only: `copied` gives one that may be changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import shutil
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from isoform.exporters import bundle, onnx
from isoform.manifest import Artifact, Manifest
from isoform.reference.model import Model, open_model
from tests import oracle

MADE_FROM = ("exporters", "reference", "src/isoform")  # the links in src/isoform are not followed
LIBRARIES = ("gguf", "numpy", "onnx", "torch")
KEPT_SECONDS = 24 * 3600  # a folder of other sources is removed when no run used it for that long


@cache
def _sources() -> str:
    key = hashlib.sha256()
    for room in MADE_FROM:
        for path in sorted((oracle.ROOT / room).rglob("*.py")):
            key.update(path.relative_to(oracle.ROOT).as_posix().encode() + b"\n" + path.read_bytes())
    for library in LIBRARIES:
        key.update(f"{library}=={importlib.metadata.version(library)}\n".encode())
    return key.hexdigest()[:16]


@cache
def root() -> Path:
    """The cache for the sources as they are now; older ones are cleared away."""
    folder = oracle.ROOT / ".pytest_cache" / "exports"
    mine = folder / _sources()
    mine.mkdir(parents=True, exist_ok=True)
    (mine / "used").touch()
    for other in folder.iterdir():
        mark = other / "used"
        if not mark.exists() or time.time() - mark.stat().st_mtime > KEPT_SECONDS:
            shutil.rmtree(other, ignore_errors=True)
    return mine


def exported(
    name: str,
    formats: Sequence[str] = ("all",),
    dtype: str = "f32",
    *,
    task: str | None = None,
    **options: Any,
) -> Path:
    """The bundle of the tiny checkpoint `name`. Read-only.

    `options` are those of `bundle.export` by format; ONNX and TorchScript default to `dtype`. Fewer formats than all in
    float32 are served from the bundle that has them all.
    """
    chosen = {form: bundle.FORMATS[form].of_types([dtype]) for form in ("onnx", "torchscript")} | options
    if dtype == "f32" and not options:
        formats = ("all",)
    source = oracle.tiny(name)
    key = hashlib.sha256(repr((str(source), sorted(formats), task, sorted(chosen.items()))).encode()).hexdigest()[:16]
    folder = root() / f"{name}-{key}"
    if not folder.exists():
        with folder.with_suffix(".lock").open("w") as lock:  # another worker may be writing it
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():  # an export is whole or not at all, so that a stopped one leaves nothing here
                bundle.export(open_model(source, task), formats, folder, **chosen)
                for path in folder.rglob("*"):
                    if path.is_file():
                        path.chmod(0o444)
    return folder


def portable(name: str, *types: str) -> Path:
    """The bundle of the tiny checkpoint `name` with its ONNX forms of standard operators alone. Read-only."""
    return exported(name, ["onnx"], onnx=onnx.Options(types=types or ("f32-portable",)))


def for_llamacpp(folder: Path) -> Model:
    """The model of a checkpoint for the task that llama.cpp serves: its own, or that of an encoder without its head."""
    model = open_model(folder)
    assert model.family.gguf is not None
    tasks = model.family.gguf.tasks
    return model if model.task.name in tasks else open_model(folder, tasks[0])


def copied(folder: Path, target: Path) -> Path:
    """A copy of a bundle that may be changed."""
    return Path(shutil.copytree(folder, target, copy_function=shutil.copyfile))


def artifact_of(folder: Path, form: str, dtype: str = "f32", part: str | None = None) -> Artifact:
    """The artifact of a bundle in this format and dtype; of a model of several graphs, that of one part."""
    found = [
        artifact
        for artifact in Manifest.read(folder).artifacts
        if (artifact.format, artifact.dtype) == (form, dtype) and part in (None, artifact.part)
    ]
    (artifact,) = found
    return artifact


def file_of(folder: Path, form: str, dtype: str = "f32", part: str | None = None) -> Path:
    """The main file of that artifact."""
    return folder / artifact_of(folder, form, dtype, part).files[0].path
