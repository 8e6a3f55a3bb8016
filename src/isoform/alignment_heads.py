"""The heads of a speech model that generation_config.json lists for the times of words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def listed_heads(found: Any, layers: int, heads: int) -> tuple[tuple[tuple[int, int], ...], tuple[Any, ...]]:
    """Those of the pairs (layer, head) that a decoder of so many has, and the entries that are none of them.

    Nothing is raised: the setting is optional, and a text without times of words needs no such head.
    """
    entries = found if isinstance(found, Iterable) and not isinstance(found, str) else [found]
    kept: dict[tuple[int, int], None] = {}
    wrong: list[Any] = []
    for entry in entries if found is not None else ():
        pair = tuple(entry) if isinstance(entry, list | tuple) else ()
        whole = len(pair) == 2 and all(type(one) is int for one in pair)
        if whole and 0 <= pair[0] < layers and 0 <= pair[1] < heads:
            kept[pair[0], pair[1]] = None
        else:
            wrong.append(entry)
    return tuple(kept), tuple(wrong)
