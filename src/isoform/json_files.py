"""The JSON files of a model's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isoform.errors import CheckpointError


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object, empty when the file is missing; CheckpointError when it is anything else."""
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}); fetch it again") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a {type(data).__name__}, not an object; fetch it again")
    return data


def read_list(path: Path) -> Sequence[Mapping[str, Any]]:
    """A JSON list of objects, or CheckpointError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}); fetch it again") from None
    if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
        raise CheckpointError(f"{path} is not a list of objects; fetch it again")
    return data
