"""Reads what a user types: one line or several, with a history and completion where the system has readline."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from isoform.chat.commands import COMMANDS, EXAMPLES, SIGN

PROMPT, MORE = "> ", "… "
QUOTES = '"""'
KEPT_LINES = 1000  # of the history

Complete = Callable[[str], list[str]]
"""The words that may follow a command, by its name."""


def state_folder() -> Path:
    """Where the history is kept: `isoform` in the user's state folder."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "isoform"


def read_message(read: Callable[[str], str] = input) -> str:
    """What the user says next. A line that ends in a backslash goes on; three quotation marks begin and end a text.

    EOFError when there is nothing more to read, unless a message has begun.
    """
    line = read(PROMPT)
    if line.lstrip().startswith(QUOTES):
        return _quoted(line.lstrip()[len(QUOTES) :], read)
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        try:
            lines.append(read(MORE))
        except EOFError:
            break
    return "\n".join(lines)


def _quoted(line: str, read: Callable[[str], str]) -> str:
    lines = [line]
    while not lines[-1].rstrip().endswith(QUOTES):
        try:
            lines.append(read(MORE))
        except EOFError:
            return "\n".join(lines).strip("\n")
    lines[-1] = lines[-1].rstrip()[: -len(QUOTES)]
    return "\n".join(lines).strip("\n")


@contextlib.contextmanager
def editing(complete: Complete) -> Iterator[None]:
    """Have `input` edit lines, complete commands with Tab, and remember lines from one session to the next."""
    try:
        import readline
    except ImportError:  # Windows has none; its console edits lines itself
        yield
        return
    path = None
    with contextlib.suppress(OSError, RuntimeError):  # a history is a convenience: none where it cannot be kept
        path = state_folder() / "chat_history"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        readline.read_history_file(path)
    readline.set_completer(_completer(readline, complete))
    readline.set_completer_delims(" \t\n")
    readline.parse_and_bind("set enable-bracketed-paste on")  # so that a pasted text is one message
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
    try:
        yield
    finally:
        readline.set_completer(None)
        if path is not None:
            readline.set_history_length(KEPT_LINES)
            with contextlib.suppress(OSError):
                readline.write_history_file(path)


def _completer(readline: ModuleType | Any, complete: Complete) -> Callable[[str, int], str | None]:
    def completed(text: str, state: int) -> str | None:
        before = readline.get_line_buffer()[: readline.get_begidx()]
        found = candidates(before, text, complete)
        return found[state] if state < len(found) else None

    return completed


def candidates(before: str, word: str, complete: Complete) -> list[str]:
    """The words that begin with `word` and make sense after what stands before it in the line."""
    name = before.split()[0][len(SIGN) :] if before.split() else ""
    if not before.strip():
        found = [SIGN + command for command in COMMANDS] if word.startswith(SIGN) else []
    elif name == "example":
        found = list(EXAMPLES)
    else:
        found = complete(name)
    return sorted(one for one in found if one.startswith(word))
