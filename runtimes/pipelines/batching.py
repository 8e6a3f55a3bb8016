"""Which pieces of work run together: those of similar length out of order, or neighbours in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

TOKENS = 384  # in a batch: enough to fill a core's vector units, few enough for its caches
PADDING = 8  # tokens of a batch at most: another call costs as much as 4 (ONNX Runtime) to 18 (torch) tokens

_T = TypeVar("_T")


def longest_first(lengths: Sequence[int], size: int | None) -> Iterator[list[int]]:
    """The numbers of rows of these lengths in batches of `size`, the longest first.

    Without a size, a batch has about `TOKENS`, and no more than `PADDING` of them are padding.
    """
    group: list[int] = []
    longest = padding = 0
    for n in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        full = (len(group) + 1) * longest > TOKENS or padding + longest - lengths[n] > PADDING
        if group and (len(group) == size if size else full):
            yield group
            group, padding = [], 0
        longest = longest if group else lengths[n]
        padding += longest - lengths[n]
        group.append(n)
    if group:
        yield group


def neighbours(
    items: Iterable[_T],
    size: int | None,
    *,
    length: Callable[[_T], int] = lambda item: 0,
    budget: int = 0,
    kind: Callable[[_T], Any] = lambda item: None,
) -> Iterator[list[_T]]:
    """Items in order, at most `size` together, all of one `kind`; each batch as soon as it is full.

    Without a `size`, a batch padded to its longest item has at most `budget` units of `length` (or one item).
    """
    group: list[_T] = []
    longest = 0
    for item in items:
        longest = max(longest, length(item))
        full = not size and (len(group) + 1) * longest > budget
        if group and (full or kind(item) != kind(group[0])):
            yield group
            group, longest = [], length(item)
        group.append(item)
        if size and len(group) == size:
            yield group
            group, longest = [], 0
    if group:
        yield group
