"""Sessions of tiny checkpoints that stay open while the tests of a file run."""

from __future__ import annotations

from functools import cache
from typing import Any

from isoform.reference.model import open_model
from isoform.runtimes.open import open_path, open_session
from tests.exports import exported, portable
from tests.oracle import tiny

_OPEN: list[Any] = []


@cache
def opened(name: str, backend: str) -> Any:
    """The session of a checkpoint on torch, and of its bundle elsewhere; llama.cpp computes strictly, in one thread."""
    if backend == "torch":
        session: Any = open_session(open_model(tiny(name)), "torch")
    else:
        options: dict[str, Any] = {"strict": True, "threads": 1} if backend == "llamacpp" else {}
        session, _ = open_path(portable(name) if backend == "openvino" else exported(name), backend, **options)
    _OPEN.append(session)
    return session


def close_all() -> None:
    """Close what is open; a fixture of the test file calls it at the end."""
    while _OPEN:
        _OPEN.pop().close()
    opened.cache_clear()
