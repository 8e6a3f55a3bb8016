"""Sections of config.json: an object inside it knows the file and the path that it was read from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from isoform.errors import CheckpointError

PLACE = "<place>"
"""The key under which a section of a file says where it is; no file has one of that name that matters."""


def where(data: Mapping[str, Any], key: str) -> tuple[str, str]:
    """The file that `data` was read from, and the dotted path of `key` in it."""
    file, path = data.get(PLACE, ("config.json", ""))
    return file, f"{path}.{key}" if path else key


def section(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The object under `key` ("text_config"), empty when it is missing; `key`_dict, in old files, takes precedence."""
    file, path = where(data, key)
    old = data.get(f"{key}_dict")
    found = data.get(key) if old is None else old
    if not isinstance(found, Mapping | None):
        raise CheckpointError(f"{file}: {path} is {short(found)}, not an object")
    return {**(found or {}), PLACE: (file, path)}


def short(value: Any, show: Callable[[Any], str] = repr) -> str:
    """A value as a message shows it."""
    shown = show(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
