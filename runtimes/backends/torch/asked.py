"""How many of the last positions a decoding pass needs logits of, for the head of a packed module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_asked: ContextVar[int | None] = ContextVar("asked", default=None)


@contextmanager
def asking(last: int | None) -> Iterator[None]:
    """Within this block (and thread) a head may compute the last positions alone; None: it computes all."""
    token = _asked.set(last)
    try:
        yield
    finally:
        _asked.reset(token)


def asked() -> int | None:
    return _asked.get()
