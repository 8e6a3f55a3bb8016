"""The options of a call that go to the tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from isoform.errors import InputError


def tokenizer_options(options: Mapping[str, Any] | None, what: str) -> dict[str, Any]:
    """The tokenizer's part of a call; InputError for what isoform's tokenizer does not have."""
    options = dict(options or {})
    options.pop("padding", None)  # padding changes nothing
    for name in options:
        if name not in ("truncation", "max_length", "add_special_tokens"):
            raise InputError(f"{what} has no option {name!r}; it has truncation, max_length and add_special_tokens")
    return options
