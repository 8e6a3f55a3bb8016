"""Writes a file or a folder whole or not at all: into a hidden sibling, which takes the name when it is complete.

Whatever stops the writing (an error, Ctrl-C) leaves the name as it was and no sibling behind. A killed process leaves
the staging folder; the next one that writes the same folder removes it.
"""

from __future__ import annotations

import errno
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a file system that takes no more."""


class NoSpace(Exception):
    """The file system of a folder has `free` bytes, fewer than the `needed` ones. Nothing was written."""

    def __init__(self, needed: int, free: int) -> None:
        super().__init__(f"{needed} bytes are needed, {free} are free")
        self.needed, self.free = needed, free


class CannotStage(OSError):
    """The staging folder cannot be made: the parent is missing and cannot be made, or it is read-only."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a hidden sibling of `path` to write to, which replaces `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part-{secrets.token_hex(4)}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_folder(out: Path, *, needed: int = 0, replace: bool = False) -> Iterator[Path]:
    """Gives a staging folder, a hidden sibling of `out`, which becomes `out` when the block ends without an error.

    `needed` is how many bytes must be free. An empty folder `out` is replaced, one with files only with `replace`.
    Raises CannotStage and NoSpace before anything is written, and the errors of the block as they are.
    """
    prefix = f".{out.name}.part-"
    part = out.parent / f"{prefix}{secrets.token_hex(4)}"
    lock, parents = None, _missing(out.parent)
    try:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            part.mkdir()
        except OSError as error:
            raise CannotStage(error.errno, error.strerror, error.filename) from None
        lock = _lock(part)
        for path in out.parent.glob(f"{glob.escape(prefix)}*"):
            _remove_abandoned(path)
        if (free := shutil.disk_usage(out.parent).free) < needed:
            raise NoSpace(needed, free)
        yield part
        _move(part, out, replace)
    finally:
        if lock is not None:
            os.close(lock)
        shutil.rmtree(part, ignore_errors=True)
        for parent in parents:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def free_bytes(path: Path) -> int:
    """What is free where `path` lies, or would lie."""
    return shutil.disk_usage(next(parent for parent in path.parents if parent.exists())).free


def _missing(folder: Path) -> list[Path]:
    """The folder and those above it that are not there, innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _lock(folder: Path) -> int | None:
    """A lock that the system drops when this process ends; None where it has none for folders (Windows)."""
    try:
        import fcntl
    except ImportError:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def _remove_abandoned(folder: Path) -> None:
    """Remove the staging folder of a process that is not running any more."""
    try:
        lock = _lock(folder)
    except OSError:
        return
    if lock is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _move(part: Path, out: Path, replace: bool) -> None:
    """Rename into place.

    An old folder changes places with the new one in one step, so that a stop at any time leaves one of them; where the
    system cannot do that, it is moved aside first, and back when the new one cannot take its place.
    """
    if not out.exists() or not replace or not any(out.iterdir()):
        if out.exists():
            out.rmdir()
        part.rename(out)
        return
    if _exchange(part, out):
        return  # `part` is the old one now, which the caller removes
    old = part.with_name(f"{part.name}-old")
    out.rename(old)
    try:
        part.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Let two folders change names in one step; False where the system has no such call, and on some file systems."""
    import ctypes
    import sys

    if sys.platform != "linux":
        return False
    call = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return call is not None and call(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0
