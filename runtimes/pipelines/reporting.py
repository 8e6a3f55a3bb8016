"""How far a call is: counted answers, and the bar of a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from time import perf_counter
from typing import Any

from isoform.progress import Progress
from isoform.progress_bar import bars

PATIENCE = 2.0  # seconds after which a terminal is shown how far a call is
_reporter: ContextVar[Progress | None] = ContextVar("reporter", default=None)


def reporting(progress: bool | Progress | None, *, quiet: bool) -> AbstractContextManager[Progress | None]:
    """What a call reports to, while it runs: its `progress`, or a terminal's bar unless the call is `quiet`."""
    if callable(progress):
        return nullcontext(progress)
    if progress is False or (progress is None and (quiet or not sys.stderr.isatty())):
        return nullcontext(None)
    return bars(after=0.0 if progress else PATIENCE)


@contextmanager
def heard(report: Progress | None) -> Iterator[None]:
    """Make this what `reporter()` gives to work of this thread that counts itself."""
    token = _reporter.set(report)
    try:
        yield
    finally:
        _reporter.reset(token)


def reporter() -> Progress | None:
    """What is told how much of the work of this thread's call is done."""
    return _reporter.get()


class Clock:
    """Counts the seconds that a pipeline spends in calls."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds += perf_counter() - start

    def timed(self, answers: Iterator[Any]) -> Iterator[Any]:
        """The same answers; what happens between them is not counted."""
        while True:
            with self.running():
                try:
                    answer = next(answers)
                except StopIteration:
                    return
            yield answer


def counted(answers: Iterator[Any], total: int, report: Progress | None) -> Iterator[Any]:
    """The same answers, counted."""
    for done, answer in enumerate(answers, 1):
        if report is not None:
            report("answer", done, total)
        yield answer
