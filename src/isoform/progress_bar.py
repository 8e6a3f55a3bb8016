"""Progress bars on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from time import monotonic
from typing import Any

from isoform.progress import Progress

_free = Lock()  # a terminal shows the bars of one piece of work at a time


@contextmanager
def bars(after: float = 0.0) -> Iterator[Progress]:
    """Bars on standard error, one per text, where it is a terminal or a notebook; none before `after` seconds.

    Work that runs while another shows its bars has none.
    """
    begun = monotonic()
    shown: Any = None
    tasks: dict[str, Any] = {}

    def report(text: str, done: int, total: int) -> None:
        nonlocal shown
        if shown is None:
            if monotonic() - begun < after or not _free.acquire(blocking=False):
                return
            shown = _columns()
            shown.start()
        if text not in tasks:
            tasks[text] = shown.add_task(text, total=total or None)
        shown.update(tasks[text], completed=done, total=total or None)

    try:
        yield report
    finally:
        if shown is not None:
            shown.stop()
            _free.release()


def _columns() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not (console.is_terminal or console.is_jupyter))
