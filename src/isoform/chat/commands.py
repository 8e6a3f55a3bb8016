"""The commands of a conversation: their names, what they take and what they do."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from isoform.errors import InputError

SIGN = "!"


@dataclass(frozen=True, slots=True)
class Command:
    """`takes` is how its arguments are written: one word, several, or the rest of the line."""

    usage: str
    meaning: str
    least: int = 0  # words that it needs
    most: int | None = 0  # and takes; None: the rest of the line


COMMANDS: Mapping[str, Command] = {
    "clear": Command("!clear", "begin anew; the system message stays"),
    "example": Command("!example NAME", "begin anew with an example", 1, 1),
    "exit": Command("!exit", "leave (Ctrl-D as well)"),
    "help": Command("!help", "show this list"),
    "image": Command("!image PATH", "show the model a picture, where it takes any", 1, None),
    "load": Command("!load NAME", "go on with a conversation that was saved", 1, 1),
    "save": Command("!save [NAME]", "write the conversation to a file", 0, 1),
    "set": Command("!set [NAME=VALUE …]", "change generation settings, or show them", 0, None),
    "stats": Command("!stats", "show tokens and times of this conversation"),
    "status": Command("!status", "show the model, what runs it, and the settings"),
    "system": Command('!system [TEXT | ""]', "change the system message, show it, or take it away", 0, None),
}

EXAMPLES: Mapping[str, str] = {
    "code": "Write a Python function that says whether a number is a prime.",
    "kettle": "Why does a kettle become quiet shortly before the water boils?",
    "letters": "Which letters of the alphabet look the same in a mirror?",
    "numbers": "Which is larger, 9.9 or 9.11?",
    "poem": "Write four lines about rain on a tin roof.",
}


def is_command(line: str) -> bool:
    """Whether a message is a command: an exclamation mark and a letter. `!!` at its start is an exclamation mark."""
    return line.startswith(SIGN) and not line.startswith(SIGN * 2)


def parse(line: str) -> tuple[str, list[str]]:
    """`!save notes` -> ("save", ["notes"]); a command that takes the rest of the line has it as one argument.

    Raises InputError for an unknown command, with near ones, and for arguments that it does not take.
    """
    name, _, rest = line[len(SIGN) :].strip().partition(" ")
    command, rest = COMMANDS.get(name), rest.strip()
    if command is None:
        near = get_close_matches(name.lower(), COMMANDS, 3, 0.5)
        meant = f"; did you mean {' or '.join(SIGN + one for one in near)}?" if near else ""
        raise InputError(f"there is no command {SIGN + name!r}{meant or ';'} !help lists the commands")
    if command.most is None:
        words = [rest] if rest else []
    else:
        try:
            words = shlex.split(rest)
        except ValueError:
            raise InputError(f"{command.usage}: a quotation mark is not closed") from None
    if len(words) < command.least or (command.most is not None and len(words) > command.most):
        raise InputError(f"{SIGN}{name} is written {command.usage}")
    return name, words
