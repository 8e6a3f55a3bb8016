"""What a pipeline is called with, and how its inputs are answered one after the other.

One input gives its answer, a list or a tuple gives a list, and everything else that can be read gives `Answers`, an
iterator that holds one batch at a time. An input that has no answer is named by its place, and the others are answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from typing import Any, Protocol

from isoform.errors import InputError, ItemError

READ = 32  # items of a dataset that are answered together, without a batch size
SHOWN = 60  # characters of an input in a message
_NOT_SEVERAL = (str, bytes, Mapping)


class Answering(Protocol):
    """What is called: a pipeline (`base.Pipeline` says more)."""

    def answers(self, items: Sequence[Any], size: int | None, call: Any) -> Iterator[Any]: ...

    def try_item(self, item: Any, call: Any) -> None: ...

    def runs_alone(self, size: int | None, call: Any) -> bool: ...


class Answers:
    """The answers about an iterable, in its order; they are made while this is read.

    Over a dataset it has a length, and every `for` reads the dataset again; over an iterator it can be read once. After
    an `ItemError` it goes on with the next input.
    """

    def __init__(self, inputs: Any, read: Callable[[Iterator[Any]], Iterator[Any]], *, returns: bool) -> None:
        """`read` makes answers of items; an item without one gives its `ItemError`, which `returns` passes on."""
        self._inputs, self._read, self._returns = inputs, read, returns
        self._running: Iterator[Any] | None = None

    def __len__(self) -> int:
        if not isinstance(self._inputs, Sized):
            raise TypeError("an iterator has no length; give the pipeline a list or a dataset")
        return len(self._inputs)

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self._inputs, Iterator):
            return self
        return Answers(items_of(self._inputs), self._read, returns=self._returns)

    def __next__(self) -> Any:
        if self._running is None:
            self._running = self._read(items_of(self._inputs))
        answer = next(self._running)
        if isinstance(answer, ItemError) and not self._returns:
            raise answer
        return answer


def is_dataset(inputs: Any) -> bool:
    """Whether this has a length and numbered items: a dataset of torch, of `datasets`, or a wrapper of one."""
    return isinstance(inputs, Sized) and hasattr(inputs, "__getitem__") and not isinstance(inputs, _NOT_SEVERAL)


def is_readable(inputs: Any) -> bool:
    """Whether this holds several inputs."""
    if hasattr(inputs, "iterrows"):
        raise InputError("a table holds no inputs of its own; give one of its columns as a list")
    return is_dataset(inputs) or (isinstance(inputs, Iterable) and not isinstance(inputs, _NOT_SEVERAL))


def items_of(inputs: Any) -> Iterator[Any]:
    """The items of what `is_readable`; those of a dataset that cannot be iterated over by their numbers."""
    if isinstance(inputs, Iterable):
        return iter(inputs)
    return (inputs[n] for n in range(len(inputs)))


def in_batches(pipe: Answering, inputs: Iterator[Any], size: int | None, read: int, call: Any) -> Iterator[Any]:
    """The answer about each input, or its `ItemError`; no more than `read` inputs are held."""
    first = 0
    while chunk := list(islice(inputs, read)):
        yield from each(pipe, chunk, size, call, first)
        first += len(chunk)


def each(pipe: Answering, items: Sequence[Any], size: int | None, call: Any, first: int = 0) -> Iterator[Any]:
    """The answer about each item of a list, or its `ItemError`; `first` is the place of the list's first item."""
    done = 0
    try:
        for answer in pipe.answers(items, size, call):
            yield answer
            done += 1
        return
    except InputError as error:
        cause = error
    wrong = dict(_unprepared(pipe, items, done, call))
    if not wrong and (len(items) == done + 1 or pipe.runs_alone(size, call)):
        wrong = {done: cause}
    good = [n for n in range(done, len(items)) if n not in wrong]
    # What can be prepared runs together again, unless the model itself refused one: then each runs alone.
    again = _several if wrong else _alone
    answers = again(pipe, [items[n] for n in good], size, call)
    for n in range(done, len(items)):
        answer = wrong[n] if n in wrong else next(answers)
        yield _named(answer, first + n, items[n]) if isinstance(answer, InputError) else answer


def all_or_error(pipe: Answering, items: Sequence[Any], size: int | None, call: Any) -> Iterator[Any]:
    """The answers about a list. Raises an `ItemError` for the first item that has none, before what follows it runs."""
    done = 0
    try:
        for answer in pipe.answers(items, size, call):
            yield answer
            done += 1
        return
    except InputError as error:
        cause = error
    number, reason = next(_unprepared(pipe, items, done, call), (None, cause))
    if number is None and (len(items) == done + 1 or pipe.runs_alone(size, call)):
        number = done
    if number is None:
        alone = enumerate(_alone(pipe, items[done:], 1, call), done)
        number, reason = next(((n, found) for n, found in alone if isinstance(found, InputError)), (None, cause))
    if number is None:
        raise cause
    raise _named(reason, number, items[number])


def _several(pipe: Answering, items: Sequence[Any], size: int | None, call: Any) -> Iterator[Any]:
    """The answers about items, or the `InputError` of each that the model refuses."""
    done = 0
    try:
        for answer in pipe.answers(items, size, call):
            yield answer
            done += 1
    except InputError:
        yield from _alone(pipe, items[done:], size, call)


def _alone(pipe: Answering, items: Sequence[Any], size: int | None, call: Any) -> Iterator[Any]:
    for item in items:
        try:
            answer = next(iter(pipe.answers([item], size, call)))
        except InputError as error:
            answer = error
        yield answer


def _unprepared(pipe: Answering, items: Sequence[Any], start: int, call: Any) -> Iterator[tuple[int, InputError]]:
    """The items from `start` on that cannot be prepared, with what is wrong."""
    for number, item in enumerate(items[start:], start):
        try:
            pipe.try_item(item, call)
        except InputError as error:
            yield number, error


def _named(error: InputError, index: int, item: Any) -> ItemError:
    shown = repr(item)
    shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…"
    named = ItemError(f"input {index} ({shown}): {error}", index, item)
    named.__cause__ = error
    return named


def listed(answers: Iterator[Any]) -> list[Any]:
    """All answers; an `ItemError` that is raised on the way carries those before it."""
    made: list[Any] = []
    try:
        made.extend(answers)
    except ItemError as error:
        error.answers = made
        raise
    return made
