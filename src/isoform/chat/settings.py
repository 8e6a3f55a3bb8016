"""Words of the form name=value, as generation settings."""

from __future__ import annotations

from collections.abc import Iterable
from json import loads
from typing import Any

from isoform.errors import InputError

_PYTHON = {"True": True, "False": False, "None": None}


def read_settings(words: Iterable[str]) -> dict[str, Any]:
    """`temperature=0.2 do_sample=false eos_token_id=[1,2]`; a value that is no JSON is a text. InputError without =."""
    settings: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"a setting is written name=value, such as temperature=0.2, not {word!r}")
        settings[name] = _value(value)
    return settings


def _value(text: str) -> Any:
    if text in _PYTHON:
        return _PYTHON[text]
    try:
        return loads(text)
    except ValueError:
        return text
