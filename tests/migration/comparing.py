"""Running a form on a library, and whether two answers are the same."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

RELATIVE, ABSOLUTE = 1e-4, 1e-6  # of a float: the same sums in another order


def run(source: str, pipeline: Callable[..., Any]) -> Any:
    """The value of the last line of a snippet."""
    body = ast.parse(source)
    last = body.body.pop()
    assert isinstance(last, ast.Expr), source
    names: dict[str, Any] = {"pipeline": pipeline, "__name__": "script"}
    exec(compile(body, "form", "exec"), names)  # noqa: S102  (our own snippets)
    return plain(eval(compile(ast.Expression(last.value), "form", "eval"), names))  # noqa: S307


def plain(value: Any) -> Any:
    """An answer as lists, dictionaries and values; iterators are read."""
    if hasattr(value, "detach"):
        value = value.detach().float().numpy() if value.is_floating_point() else value.detach().numpy()
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, str | bytes | int | float | bool | None):
        return value
    if isinstance(value, list | tuple | Iterator) or (hasattr(value, "__len__") and hasattr(value, "__iter__")):
        return [plain(one) for one in value]
    return str(value)


def differences(ours: Any, theirs: Any, where: str = "") -> Iterator[str]:
    """The places in which two answers differ."""
    if isinstance(theirs, float) and isinstance(ours, float):
        if not math.isclose(ours, theirs, rel_tol=RELATIVE, abs_tol=ABSOLUTE):
            yield f"{where}: {ours} is not {theirs}"
    elif isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        if set(ours) != set(theirs):
            yield f"{where}: keys {sorted(map(str, ours))} are not {sorted(map(str, theirs))}"
        for key in ours.keys() & theirs.keys():
            yield from differences(ours[key], theirs[key], f"{where}[{key!r}]")
    elif isinstance(theirs, list) and isinstance(ours, list):
        if len(ours) != len(theirs):
            yield f"{where}: {len(ours)} entries are not {len(theirs)}"
        for n, (mine, other) in enumerate(zip(ours, theirs, strict=False)):
            yield from differences(mine, other, f"{where}[{n}]")
    elif type(ours) is not type(theirs) or ours != theirs:
        yield f"{where}: {ours!r:.200} is not {theirs!r:.200}"
