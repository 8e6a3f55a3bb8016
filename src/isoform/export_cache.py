"""The cache of exported forms: a backend that needs a form of a checkpoint gets it from here."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import InputError
from isoform.progress import Progress

if TYPE_CHECKING:
    from isoform.reference.model import Model


def cache_folder() -> Path:
    """Where forms that a pipeline needed are kept: ISOFORM_CACHE, or `isoform` in the user's cache folder."""
    try:
        if home := os.environ.get("ISOFORM_CACHE"):
            return Path(home).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "isoform"
    except RuntimeError as error:
        raise InputError(f"there is no cache folder ({error}); set ISOFORM_CACHE to one") from None


def content_key(about: str, files: Iterable[Path]) -> str:
    """A name for something made from these files, which changes when one of them does."""
    key = hashlib.sha256(about.encode())
    for path in files:
        state = path.stat()
        key.update(f"{path.resolve()} {state.st_size} {state.st_mtime_ns}\n".encode())
    return key.hexdigest()[:24]


WRITTEN = 2
"""Rises when a form of the same name is written in another way, so that older ones are not taken for it."""


def form_folder(model: Model, form: str, dtype: str) -> Path:
    """Where the bundle of one form of a model is kept, or would be."""
    made = f"{version('isoform')}.{WRITTEN} {model.task.name} {form} {dtype}"
    return cache_folder() / content_key(made, (*model.checkpoint.files(), *model.checkpoint.sidecars()))


def cached_form(model: Model, form: str, dtype: str, progress: Progress | None) -> Path:
    """The bundle of one form of a model in the cache, written when it is not there or its source has changed."""
    from isoform.exporters import bundle

    folder = form_folder(model, form, dtype)
    if not (folder / "isoform.json").is_file():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder.parent} cannot be made ({error.strerror}); set ISOFORM_CACHE") from None
        if not os.access(folder.parent, os.W_OK):
            raise InputError(f"{folder.parent} cannot be written to; set ISOFORM_CACHE to another folder")
        options: dict[str, Any] = {form: bundle.FORMATS[form].of_types([dtype])}
        bundle.export(model, [form], folder, **options, progress=progress, overwrite=True, hash_source=False)
    return folder
