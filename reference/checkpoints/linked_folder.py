"""A folder that looks like another one, with some files of its own, at no cost: the rest are links."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from isoform.reference.checkpoints.checkpoint import SIDECARS


def linked(folder: Path, inner: Path, files: Mapping[str, str]) -> Path:
    """A temporary folder that holds `files` at `inner`, and links to everything else of `folder`."""
    made = Path(tempfile.mkdtemp(prefix="isoform-"))
    for place in dict.fromkeys((Path(), inner)):
        (made / place).mkdir(exist_ok=True)
        for path in (folder / place).absolute().iterdir():
            if place == inner and path.name in files:
                continue
            if place != inner and path.name == inner.name:
                continue
            _link(path, made / place / path.name)
    for name, content in files.items():
        (made / inner / name).write_text(content, encoding="utf-8")
    return made


def _link(path: Path, target: Path) -> None:
    """A link, or a copy of a small file on a system without links: the others are not read there."""
    try:
        target.symlink_to(path, target_is_directory=path.is_dir())
    except OSError:
        if path.name in SIDECARS:
            shutil.copyfile(path, target)
