"""A conversation in the terminal: reads messages and commands, shows answers as they come."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from isoform.chat import figures, lines, markdown, saved
from isoform.chat.commands import COMMANDS, EXAMPLES, SIGN, is_command, parse
from isoform.chat.settings import read_settings
from isoform.errors import InputError, IsoformError
from isoform.runtimes.generation.settings import NAMES

if TYPE_CHECKING:
    from isoform.runtimes.conversation import Conversation

LEAVES = 3
"""How often Ctrl-C is pressed during one answer to leave the program, where a step does not end."""


class ChatSession:
    """One run of `isoform chat` on a terminal."""

    def __init__(self, talk: Conversation, model: str, about: str, folder: Path, console: Console) -> None:
        """`about` says what runs the model; `folder` is where conversations are saved."""
        self._talk, self._model, self._about, self._folder, self._console = talk, model, about, folder, console
        self._context = talk.context
        self._rich = console.is_terminal and not console.is_dumb_terminal
        self._actions: dict[str, Callable[[list[str]], None]] = {
            "clear": self._clear,
            "example": self._example,
            "help": self._help,
            "image": self._image,
            "load": self._load,
            "save": self._save,
            "set": self._set,
            "stats": self._stats,
            "status": self._status,
            "system": self._system,
        }

    def run(self) -> None:
        """Until `!exit` or the end of the input."""
        self._note(f"{self._model} on {self._about}. !help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.")
        with lines.editing(self._complete):
            while True:
                try:
                    said = lines.read_message()
                except EOFError:
                    self._console.print()
                    return
                except KeyboardInterrupt:
                    self._console.print()
                    self._note("nothing is running; !exit or Ctrl-D leaves")
                    continue
                if said.strip() == SIGN + "exit":
                    return
                self.take(said)

    def take(self, said: str) -> None:
        """Do what a message says; an error is a line, and the conversation goes on."""
        try:
            if is_command(said):
                name, words = parse(said)
                if name == "exit":
                    raise InputError("!exit takes nothing more")
                self._actions[name](words)
            elif said.strip():
                self._answer(said[1:] if said.startswith(SIGN * 2) else said)
        except IsoformError as error:
            self._line(f"isoform: {' '.join(str(error).split())}", "red")

    def _answer(self, message: str) -> None:
        talk, before = self._talk, len(self._talk.turns)
        with stopping(talk.stop):
            pieces = talk.say(message)
            if self._rich:
                markdown.show(pieces, self._console)
            else:
                plain(pieces, self._console)
        turn = talk.turns[-1]
        if len(talk.turns) > before and (left := figures.left_note(turn, self._context)):
            self._note(left)
        if not turn.new_tokens:
            self._note("stopped before the first word; the message is forgotten")
        elif turn.reason in figures.ENDINGS:
            self._note(figures.ENDINGS[turn.reason])

    # ------------------------------------------------------------------ commands
    def _help(self, words: list[str]) -> None:
        table = Table.grid(padding=(0, 2))
        for command in COMMANDS.values():
            table.add_row(Text(command.usage), Text(command.meaning))
        self._console.print(table)
        self._note(
            f"Examples: {', '.join(EXAMPLES)}. A line that ends in \\ goes on, and {lines.QUOTES} begins and ends a "
            f"text of several lines. A message that begins with ! is written with two."
        )

    def _clear(self, words: list[str]) -> None:
        self._talk.clear()
        if self._rich:
            self._console.clear()
        self._note("a new conversation")

    def _example(self, words: list[str]) -> None:
        (name,) = words
        if name not in EXAMPLES:
            raise InputError(f"there is no example {name!r}; there are {', '.join(EXAMPLES)}")
        self._talk.clear()
        self._line(lines.PROMPT + EXAMPLES[name])
        self._answer(EXAMPLES[name])

    def _image(self, words: list[str]) -> None:
        raise InputError(f"{self._model} takes text and no pictures, so that !image has nobody to show {words[0]} to")

    def _save(self, words: list[str]) -> None:
        path = saved.path_of(words[0] if words else None, self._folder)
        settings = {"model_id": self._model, "config": self._settings()}
        saved.save(path, self._talk.messages, settings)
        self._note(f"{len(self._talk.messages)} messages are in {path}")

    def _load(self, words: list[str]) -> None:
        path = saved.path_of(words[0], self._folder)
        self._talk.load(saved.load(path))
        self._note(f"{len(self._talk.messages)} messages of {path}; settings stay as they are")

    def _set(self, words: list[str]) -> None:
        if words:
            try:
                self._talk.set(**read_settings(_split(words[0])))
            except InputError as error:
                message, many, _ = str(error).partition("; generation knows")
                raise InputError(f"{message}; Tab completes the names") if many else error from None
        self._note(" ".join(f"{n}={dumps(v, ensure_ascii=False)}" for n, v in self._settings().items()) or "none set")

    def _system(self, words: list[str]) -> None:
        if words:
            self._talk.system = None if words[0] in ('""', "''") else words[0]
        self._note("no system message" if self._talk.system is None else f"system message: {self._talk.system}")

    def _stats(self, words: list[str]) -> None:
        self._rows(figures.stats(self._talk, self._context))

    def _status(self, words: list[str]) -> None:
        parameters = self._talk.parameters
        rows = [
            ("model", self._model),
            ("runs on", self._about),
            ("settings", ", ".join(f"{name}={value}" for name, value in self._settings().items()) or "the model's"),
            ("system message", self._talk.system or "none"),
            ("messages", f"{len(self._talk.messages)}"),
        ]
        rows += [(name, f"{len(parameters[name])}") for name in ("tools", "documents") if parameters.get(name)]
        self._rows(rows)

    def _settings(self) -> dict[str, Any]:
        return {name: value for name, value in self._talk.parameters.items() if name in NAMES}

    def _complete(self, name: str) -> list[str]:
        if name == "set":
            return [f"{setting}=" for setting in NAMES]
        return saved.names(self._folder) if name in ("load", "save") else []

    # ------------------------------------------------------------------ output
    def _rows(self, rows: list[tuple[str, str]]) -> None:
        table = Table.grid(padding=(0, 2))
        for name, value in rows:
            table.add_row(Text(name, "bold"), Text(value))
        self._console.print(table)

    def _note(self, text: str) -> None:
        self._line(f"({text})", "dim")

    def _line(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style))


def plain(pieces: Iterator[str], console: Console) -> None:
    """Print text as it comes, and end the line."""
    for piece in pieces:
        console.file.write(markdown.visible(piece) if console.is_terminal else piece)
        console.file.flush()
    console.file.write("\n")
    console.file.flush()


@contextmanager
def stopping(stop: Callable[[], None]) -> Iterator[None]:
    """Have Ctrl-C call `stop`; pressed `LEAVES` times, it interrupts as it does elsewhere."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = 0

    def press(number: int, frame: object) -> None:
        nonlocal pressed
        pressed += 1
        stop()
        if pressed >= LEAVES:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, press)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _split(text: str) -> list[str]:
    import shlex

    try:
        return shlex.split(text)
    except ValueError:
        raise InputError("a quotation mark is not closed") from None
