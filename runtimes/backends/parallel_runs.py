"""Several runs of a session at a time, for lists of inputs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from isoform.runtimes.session import Session

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@runtime_checkable
class SideBySide(Protocol):
    """A session that can run several inputs at a time."""

    def run_each(
        self, feeds: Iterable[Mapping[str, NDArray[Any]]], count: int
    ) -> Iterator[dict[str, NDArray[np.float32]]]:
        """`Session.run` of each of the `count` feeds, in their order."""
        ...


def run_each(
    session: Session, feeds: Iterable[Mapping[str, NDArray[Any]]], count: int
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """`session.run` of each of the `count` feeds, in their order; several at a time where the backend does that."""
    if isinstance(session, SideBySide):
        return session.run_each(feeds, count)
    return map(session.run, feeds)


def in_turn(work: Callable[[_In], _Out], items: Iterable[_In], threads: int) -> Iterator[_Out]:
    """`work` of each item by so many threads, in order. An item waits for each of them, so that none has to wait."""
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[_Out]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) >= 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
