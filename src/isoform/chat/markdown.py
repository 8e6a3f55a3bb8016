"""Markdown on a terminal while it is written: finished blocks are printed, the last one is drawn anew as it grows."""

from __future__ import annotations

import re
from collections.abc import Iterable
from time import monotonic

from markdown_it import MarkdownIt
from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown

_CONTROL = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n"}
_CONTROL |= dict.fromkeys(range(0x7F, 0xA0), "\ufffd")

_FENCE = re.compile(r"^ {0,3}(```|~~~)")
_REDRAWN = 8  # times a second, at most


class ModelMarkdown(Markdown):
    """Markdown as models write it: a line break is one, and <tags> are text."""

    def __init__(self, markup: str) -> None:
        super().__init__(markup, code_theme="ansi_dark")
        parser = MarkdownIt("commonmark", {"html": False, "breaks": True})
        self.parsed = parser.enable("strikethrough").enable("table").parse(markup)


def visible(text: str) -> str:
    """The text without characters that a terminal would obey: a model may write escape sequences."""
    return text.translate(_CONTROL)


def show(pieces: Iterable[str], console: Console) -> None:
    """Print text as it comes; where the pieces end with an error, all that came before it."""
    text, drawn = "", 0.0
    # Drawn by this thread alone: a thread of rich's own may erase more than it drew while this one prints.
    live = Live(console=console, transient=True, auto_refresh=False, vertical_overflow="ellipsis")
    try:
        with live:
            for piece in pieces:
                text += visible(piece)
                if done := finished(text):
                    live.update("", refresh=True)
                    console.print(ModelMarkdown(text[:done]))
                    console.print()
                    text, drawn = text[done:], 0.0
                if (now := monotonic()) - drawn > 1 / _REDRAWN:
                    live.update(ModelMarkdown(text), refresh=True)
                    drawn = now
            live.update("", refresh=True)
    finally:
        if text.strip():
            console.print(ModelMarkdown(text))


def finished(text: str) -> int:
    """How many characters make whole blocks, which what follows does not change: up to a blank line outside code.

    A list, a quotation or an indented line may go on after a blank line, so that they stay.
    """
    end = at = 0
    fence, plain = "", True
    for line in text.splitlines(keepends=True):
        at += len(line)
        mark = _FENCE.match(line)
        if mark and (not fence or mark[1] == fence):
            fence = "" if fence else mark[1]
        if not fence and not line.strip() and line.endswith("\n"):
            if plain and text[at:].strip() and not _goes_on(text[at:]):
                end = at
            plain = True
        elif not fence and _goes_on(line):
            plain = plain and False
    return end


def _goes_on(line: str) -> bool:
    """Whether a line belongs to a block that blank lines do not end."""
    return bool(re.match(r"\s|>|[-*+] |\d+[.)]", line))
