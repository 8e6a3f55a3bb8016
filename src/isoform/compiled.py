"""Compiles the kernels with numba, and keeps the machine code on disk so that a second process starts at once.

A kernel rounds as C does: numba contracts no multiply-add and reorders no sum unless it may, and its error model
"numpy" lets a division by zero give infinity. Two habits keep the kernels in float32 and 32-bit integers, where LLVM
puts eight or sixteen of them in a register: constants are `float32(...)`, and an integer result goes through
`int32(...)`, since numba widens int32 arithmetic to 64 bits.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core import config

Function = TypeVar("Function", bound=Callable[..., Any])


def kernel(function: Function) -> Function:
    """Compile on the first call, for whatever types it is given, and run without the interpreter's lock."""
    return _stored(numba.njit(nogil=True, error_model="numpy")(function), Path(function.__code__.co_filename).parent)


def reordering_kernel(function: Function) -> Function:
    """A `kernel` whose sums may be added up in any order, many terms at once."""
    compiled = numba.njit(nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})(function)
    return _stored(compiled, Path(function.__code__.co_filename).parent)


def inlined(function: Function) -> Function:
    """A small piece of a kernel, put into its caller before LLVM decides what to vectorise."""
    compiled: Any = numba.njit(nogil=True, error_model="numpy", forceinline=True)(function)
    return compiled


def _stored(dispatcher: Any, sources: Path) -> Any:
    """Let numba keep the machine code in our folder; where no folder can be written, it is compiled every time."""
    folder = _folder(sources)
    if folder is None:
        return dispatcher
    # numba has one folder per process, which it reads here only; the rest of the process keeps its own.
    before, config.CACHE_DIR = config.CACHE_DIR, str(folder)  # type: ignore[attr-defined]
    try:
        dispatcher.enable_caching()
    finally:
        config.CACHE_DIR = before  # type: ignore[attr-defined]
    return dispatcher


@cache
def _folder(sources: Path) -> Path | None:
    """A folder for the kernels of these sources alone.

    numba itself does not see when a function that a kernel calls has changed.
    """
    key = hashlib.sha256(numba.__version__.encode())
    for path in (Path(__file__), *sorted(sources.glob("*.py"))):
        key.update(path.read_bytes())
    name = f"kernels-{key.hexdigest()[:16]}"
    for base in (os.environ.get("NUMBA_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME"), _home()):
        if not base:
            continue
        folder = Path(base) / "isoform" / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    return None


def _home() -> Path | None:
    try:
        return Path.home() / ".cache"
    except RuntimeError:  # a user without a home
        return None
