"""Conversations as files: JSON with the settings and the messages, as `transformers chat` writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from isoform.errors import InputError
from isoform.whole import whole_file

SETTINGS, MESSAGES = "settings", "chat_history"


def path_of(name: str | None, folder: Path) -> Path:
    """Where a conversation is kept: NAME.json in the folder, or `name` itself where it is a path."""
    if not name:
        return folder / f"chat_{datetime.now():%Y-%m-%d_%H-%M-%S}.json"
    path = Path(name).expanduser()
    if len(path.parts) == 1 and path.suffix != ".json":
        return folder / f"{name}.json"
    return path if len(path.parts) > 1 else folder / name


def save(path: Path, messages: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
    """Write a conversation whole or not at all, over one of the same name. InputError where the file cannot be."""
    try:
        text = json.dumps({SETTINGS: dict(settings), MESSAGES: list(messages)}, indent=4, ensure_ascii=False)
        with whole_file(path) as part:
            part.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); give !save another name") from None
    except TypeError as error:
        raise InputError(f"this conversation holds what JSON cannot hold: {error}") from None


def load(path: Path) -> list[dict[str, Any]]:
    """The messages of a file: those of `save`, or a plain list of them. InputError for any other file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); !save writes such files") from None
    except ValueError:
        raise InputError(f"{path} is not JSON; !load reads what !save wrote") from None
    messages = data.get(MESSAGES) if isinstance(data, dict) else data
    if not isinstance(messages, list):
        raise InputError(f"{path} holds no conversation: a list of messages, or an object with {MESSAGES!r}")
    return messages


def names(folder: Path) -> list[str]:
    """The conversations of a folder."""
    return sorted(path.stem for path in folder.glob("*.json")) if folder.is_dir() else []
