"""Records `isoform chat` in a pseudo-terminal, as text and as a picture for docs/chat.md.

    python -m benchmarks.chat_recording MODEL

MODEL is a folder of SmolLM2-135M-Instruct; its name is what the recording shows.
"""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
from pathlib import Path

import pexpect
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

RESULTS, ASSETS = Path(__file__).parent / "results", Path(__file__).parents[1] / "docs" / "assets"
COLUMNS, ROWS = 92, 60
TYPED = (
    "What is the capital of France?",
    "And of Italy?",
    "!stats",
    "!set max_new_tokens=40 temprature=0.2",
    "!system You are a poet.",
    "Write a Python function that adds two numbers.",
    "!save sums",
)
OPTIONS = ("do_sample=false", "--backend", "torch")


def screen(printed: str) -> list[str]:
    """The lines that are left, with their colours, by the few codes that isoform and rich write."""
    rows, at = [""], 0
    for code in re.findall(r"\x1b\[\??[\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", printed):
        if code == "\n":
            at += 1
            rows += [""] * (at == len(rows))
        elif re.fullmatch(r"\x1b\[\d*A", code):
            at -= int(code[2:-1] or 1)
        elif code == "\x1b[2K":
            rows[at] = ""
        elif code == "\r":
            continue
        elif not code.startswith("\x1b") or code.endswith("m"):
            rows[at] += code
    return rows


def main() -> None:
    model = Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / model.name).symlink_to(model)
        variables = {**os.environ, "TERM": "xterm", "INPUTRC": os.devnull, "XDG_STATE_HOME": folder}
        command = ["-m", "isoform", "chat", model.name, *OPTIONS]
        child = pexpect.spawn(
            sys.executable,
            command,
            env=variables,
            encoding="utf-8",
            cwd=folder,
            timeout=300,
            dimensions=(ROWS, COLUMNS),
        )
        ready, printed = r"\n(\x1b\[\S+)*> $", ""
        child.expect("> $")
        printed += child.before + child.after
        for line in TYPED:
            child.sendline(line)
            child.expect(ready)
            printed += child.before + child.after
        child.sendeof()
        child.expect(pexpect.EOF)
    lines = [f"$ isoform chat {model.name} {' '.join(OPTIONS)}", *screen(printed)]
    while not Text.from_ansi(lines[-1]).plain.strip("> "):
        lines.pop()
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for line in lines:
        console.print(Text.from_ansi(line.rstrip()), soft_wrap=True)
    plain = "\n".join(Text.from_ansi(line).plain.rstrip() for line in lines)
    (RESULTS / "chat_smollm2.txt").write_text(plain + "\n", encoding="utf-8")
    plain_fonts = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)  # nothing is loaded
    console.save_svg(str(ASSETS / "chat.svg"), title=f"isoform chat {model.name}", code_format=plain_fonts)


if __name__ == "__main__":
    main()
