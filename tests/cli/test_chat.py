"""`isoform chat`: one process in a pseudo-terminal that walks through the commands, and what scripts get."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import isoform
from isoform.chat import lines, markdown, saved
from isoform.chat.commands import parse
from isoform.chat.session import ChatSession
from isoform.chat.settings import read_settings
from isoform.errors import InputError
from tests.cli.test_bad_input import refused, run
from tests.runtimes.test_conversation import their_answer

Tiny = Callable[[str], Path]
ROOT = Path(__file__).parents[2]
GREEDY = ("do_sample=false", "max_new_tokens=5")
READY = r"\n(\x1b\[\S+)*> $"
"""The prompt at the end of what has been printed."""


class Terminal:
    """`isoform chat` in a pseudo-terminal."""

    def __init__(self, folder: Path, *arguments: object, wait: int = 30) -> None:
        pexpect = pytest.importorskip("pexpect", reason="pseudo-terminals need pexpect, which this system may not have")
        variables = {
            **os.environ,
            "PYTHONPATH": str(ROOT / "src"),
            "TERM": "xterm",
            "INPUTRC": os.devnull,
            "XDG_STATE_HOME": str(folder / "state"),
        }
        command = [sys.executable, *map(str, ("-m", "isoform", "chat", *arguments, "--save-folder", folder / "saved"))]
        self._end = pexpect.EOF
        self._child: Any = pexpect.spawn(
            command[0],
            command[1:],
            env=variables,
            encoding="utf-8",
            timeout=wait,
            dimensions=(50, 300),
            cwd=str(folder),
        )
        self._child.expect("> ")

    def send(self, text: str, until: str = READY) -> str:
        """What is on the terminal after a line, without colours, up to the next prompt."""
        self._child.sendline(text)
        return self.wait(until)

    def press(self, key: str, until: str = READY) -> str:
        self._child.sendcontrol(key)
        return self.wait(until)

    def type(self, text: str, until: str) -> str:
        self._child.send(text)
        return self.wait(until)

    def wait(self, until: str) -> str:
        self._child.expect(until)
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._child.before + self._child.after).replace("\r", "")

    def leave(self) -> int:
        self._child.sendeof()
        self._child.expect(self._end)
        self._child.close()
        return int(self._child.exitstatus)


def spoken(answer: str) -> str:
    """What a terminal shows of an answer: its words, without characters that a terminal would obey."""
    return " ".join(markdown.visible(answer).split())


def test_a_conversation_in_a_terminal_knows_all_commands(tiny: Tiny, tmp_path: Path) -> None:
    folder = tiny("llama3_instruct")
    tools = tmp_path / "tools.json"
    tools.write_text('[{"type": "function", "function": {"name": "read_book", "parameters": {}}}]')
    template = tmp_path / "template.jinja"
    template.write_text(
        "{{ tools | tojson }}" + (folder / "chat_template.jinja").read_text(encoding="utf-8"), encoding="utf-8"
    )
    shell = Terminal(
        tmp_path,
        folder,
        *GREEDY,
        "--backend",
        "torch",
        "--tools",
        tools,
        "--chat-template",
        template,
        "--system",
        "Hm.",
    )

    assert "did you mean !help?" in shell.send("!hlep")
    shown = shell.send("!help")
    assert all(f"!{name}" in shown for name in ("clear", "save", "load", "set", "system", "image", "stats", "exit"))
    assert "did you mean 'temperature'" in shell.send("!set temprature=0.2")
    assert "temperature=0.2" in shell.send("!set temperature=0.2")
    assert "name=value" in shell.send("!set temperature")
    assert "takes text and no pictures" in " ".join(shell.send("!image cat.png").split())
    assert "none yet" in shell.send("!stats")

    said: list[dict[str, Any]] = [{"role": "system", "content": "Hm."}, {"role": "user", "content": "Hello, world!"}]
    options = {"tools": json.loads(tools.read_text()), "chat_template": template.read_text(encoding="utf-8")}
    length, want = their_answer(folder, said, 5, **options)
    assert spoken(want) in " ".join(shell.send("Hello, world!").split())
    assert f"{length} tokens, 0 of them from the KV cache" in shell.send("!stats")
    shown = shell.send("!status")
    assert "torch" in shown and "Hm." in shown and re.search(r"tools +1", shown), shown

    shell.send("Who reads\\", "… $")
    said += [{"role": "assistant", "content": want}, {"role": "user", "content": "Who reads\nthe book?"}]
    length, want = their_answer(folder, said, 5, **options)
    assert spoken(want) in " ".join(shell.send("the book?").split())
    assert re.search(rf"{length} tokens, [1-9]\d+ of them", shell.send("!stats"))
    assert "5 messages are in" in shell.send("!save mine")
    kept = json.loads((tmp_path / "saved" / "mine.json").read_text(encoding="utf-8"))
    assert kept["chat_history"] == [*said, {"role": "assistant", "content": want}]
    assert kept["settings"]["config"] == {"do_sample": False, "max_new_tokens": 5, "temperature": 0.2}

    assert "a new conversation" in shell.send("!clear")
    assert re.search(r"messages +1 *\n", shell.send("!status"))
    assert "system message: Be brief." in shell.send("!system Be brief.")
    assert "no system message" in shell.send('!system ""')
    shell.send('"""one', "… $")
    assert "max_new_tokens is reached" in shell.send('two"""')
    shell.send("\x1b[200~pasted\nlines\x1b[201~")
    shell.send("!save pasted")
    kept = json.loads((tmp_path / "saved" / "pasted.json").read_text(encoding="utf-8"))
    assert [message["content"] for message in kept["chat_history"][::2]] == ["one\ntwo", "pasted\nlines"]
    assert "5 messages of" in shell.send("!load mine")
    assert "cannot be read" in shell.send("!load theirs")
    assert "rain on a tin roof" in shell.send("!example poem")
    assert "there is no example" in shell.send("!example prose")

    assert "!help" in shell.type("!he\t", "!help")
    assert "change the system message" in shell.send("")
    assert "Ctrl-D leaves" in shell.press("c")
    shell.send("!set max_new_tokens=8000 eos_token_id=[]")
    shell.send("Go on.", r"\x1b\[2K[^\x1b\s]")  # the answer is drawn anew as it grows
    assert "(stopped)" in shell.press("c", r"\(stopped\)[^>]*> $")
    assert "stopped" in shell.send("!save stopped")
    kept = json.loads((tmp_path / "saved" / "stopped.json").read_text(encoding="utf-8"))
    assert kept["chat_history"][-1]["stopped"] is True
    assert kept["chat_history"][-1]["content"]
    assert "max_new_tokens is reached" in shell.send("!set max_new_tokens=3") + shell.send("And now?")
    assert shell.leave() == 0
    assert "Hello, world!" in (tmp_path / "state" / "isoform" / "chat_history").read_text(encoding="utf-8")


@pytest.fixture
def answer(tiny: Tiny) -> str:
    return their_answer(tiny("llama3_instruct"), [{"role": "user", "content": "Hello, world!"}], 5)[1]


def test_one_message_gives_one_answer(
    tiny: Tiny, answer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("chat", tiny("llama3_instruct"), *GREEDY, "--backend", "torch")
    assert run(monkeypatch, *command, "--once", "Hello, world!") == 0
    assert capsys.readouterr().out == answer + "\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello, world!\n"))
    assert run(monkeypatch, *command, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["answer"] == answer
    assert printed["stats"]["new_tokens"] == 5
    assert printed["stats"]["reason"] == "length"


def test_what_is_wrong_is_one_line_and_exit_code_2(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny("llama3_instruct")
    (tmp_path / "no.json").write_text("{")
    (tmp_path / "bad.jinja").write_text("{% if %}")
    (tmp_path / "endless.jinja").write_text(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    )
    once = ("--backend", "torch", "--once", "Hi")

    def says(*arguments: object) -> str:
        return refused(monkeypatch, capsys, "chat", *arguments)

    monkeypatch.setattr(sys, "stdin", io.StringIO(" \n"))
    assert "the message is empty" in says(model)
    assert "the message is empty" in says(model, "--once", "")
    assert "name=value" in says(model, "temperature", *once)
    assert "did you mean 'temperature'" in says(model, "temprature=0.2", *once)
    assert "--chat-template FILE" in says(tiny("gpt2"), *once)
    assert "isoform run text-generation" in says(tiny("gpt2"), *once)
    assert "is not JSON" in says(model, "--tools", tmp_path / "no.json", *once)
    assert "cannot be read" in says(model, "--documents", tmp_path / "none.json", *once)
    assert "not valid jinja2" in says(model, "--chat-template", tmp_path / "bad.jinja", *once)
    assert "stopped" in says(model, "--chat-template", tmp_path / "endless.jinja", *once)
    assert "num_beams=1" in says(model, "num_beams=2", *once)
    assert "the model reads 8,192; shorten it" in says(model, *once[:-1], "word " * 9000)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert "--once" in says(model, "--json")


def test_a_model_without_a_template_takes_one_from_a_file(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    (tmp_path / "plain.jinja").write_text(template)
    command = ("chat", tiny("gpt2"), *GREEDY, "--backend", "torch", "--chat-template", tmp_path / "plain.jinja")
    assert run(monkeypatch, *command, "--once", "Hello") == 0
    want = their_answer(tiny("gpt2"), [{"role": "user", "content": "Hello"}], 5, chat_template=template)[1]
    assert capsys.readouterr().out == want + "\n"


def test_the_user_is_told_what_has_left_the_context(tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("llama3_instruct"), tmp_path / "narrow"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 96}))
    pipe: Any = isoform.pipeline("text-generation", folder, backend="torch")
    with pipe:
        console = Console(file=io.StringIO(), width=200)
        talk = pipe.conversation("Hm.", max_new_tokens=8, do_sample=False)
        shell = ChatSession(talk, "narrow", "torch", tmp_path, console)

        def told(said: str) -> str:
            start = console.file.tell()
            shell.take(said)
            console.file.seek(start)
            return console.file.read()

        shown = [told(f"Number {n}.") for n in range(5)]
        assert shown[0].startswith(talk.messages[2]["content"] + "\n(max_new_tokens is reached")
        notes = [re.search(r"the (?:(\d) )?oldest turns? ha(?:s|ve) left the context of 96", text) for text in shown]
        assert [int(note[1] or 1) if note else 0 for note in notes] == [turn.left for turn in talk.turns]
        assert talk.left > 1
        assert f"of which {talk.left} have left the context" in told("!stats")
        assert "the model reads 96; shorten it" in told("long " * 90)
        assert "(max_new_tokens is reached" in told("And now?")
        told("!set max_new_tokens=900 eos_token_id=[]")
        assert "the model's context is full" in told("More?")


# ------------------------------------------------------------------ parts
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("!sav", r"did you mean !save"),
        ("!quit", r"there is no command '!quit'"),
        ("! help", r"^$"),
        ("!load", r"!load NAME"),
        ("!load a b", r"!load NAME"),
        ('!save "a', r"not closed"),
        ("!stats now", r"!stats is written !stats"),
    ],
)
def test_a_command_that_is_not_understood_says_how_it_is_written(line: str, said: str) -> None:
    try:
        parse(line)
    except InputError as error:
        assert re.search(said, str(error)), error
    else:
        assert said == r"^$"


def test_settings_are_read_as_json_and_as_python_writes_them() -> None:
    read = read_settings(["a=0.2", "b=True", "c=None", "d=[1,2]", "e=text", "f=a=b", "g=false"])
    assert read == {"a": 0.2, "b": True, "c": None, "d": [1, 2], "e": "text", "f": "a=b", "g": False}
    for wrong in ("a", "=1", "a b=1"):
        with pytest.raises(InputError, match="name=value"):
            read_settings([wrong])


def reader(typed: Sequence[str]) -> Callable[[str], str]:
    rest = iter(typed)

    def read(prompt: str) -> str:
        line = next(rest, None)
        if line is None:
            raise EOFError
        return line

    return read


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["one"], "one"),
        (["one\\", "two\\", "three"], "one\ntwo\nthree"),
        (["one\\"], "one"),
        (['"""one', "", 'two"""'], "one\n\ntwo"),
        (['"""', "one", '"""'], "one"),
        (['"""one"""'], "one"),
        (['"""one'], "one"),
        (["pasted\nlines"], "pasted\nlines"),
    ],
)
def test_a_message_may_have_several_lines(typed: Sequence[str], message: str) -> None:
    assert lines.read_message(reader(typed)) == message


def test_tab_completes_commands_settings_and_names() -> None:
    def complete(name: str) -> list[str]:
        return {"set": ["temperature=", "top_k=", "top_p="], "load": ["notes"]}.get(name, [])

    assert lines.candidates("", "!s", complete) == ["!save", "!set", "!stats", "!status", "!system"]
    assert lines.candidates("!set ", "to", complete) == ["top_k=", "top_p="]
    assert lines.candidates("!set top_k=1 ", "te", complete) == ["temperature="]
    assert lines.candidates("!load ", "", complete) == ["notes"]
    assert lines.candidates("!example ", "po", complete) == ["poem"]
    assert lines.candidates("", "s", complete) == []
    assert lines.candidates("say !s", "t", complete) == []


def test_a_conversation_is_read_back_from_its_file(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "é"}]
    path = saved.path_of("mine", tmp_path / "new")
    saved.save(path, messages, {"model_id": "m"})
    assert saved.load(path) == messages
    assert saved.names(tmp_path / "new") == ["mine"]
    (tmp_path / "list.json").write_text(json.dumps(messages))
    assert saved.load(saved.path_of(str(tmp_path / "list.json"), Path())) == messages
    assert saved.path_of(None, Path("f")).name.startswith("chat_2")
    for text, said in (("{", "not JSON"), ('{"a": 1}', "no conversation"), ("3", "no conversation")):
        (tmp_path / "wrong.json").write_text(text)
        with pytest.raises(InputError, match=said):
            saved.load(tmp_path / "wrong.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        saved.save(tmp_path / "file" / "x.json", messages, {})


def drawn(text: str, step: int) -> str:
    """What a terminal of 40 columns shows in the end of a text that comes in pieces."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=40, color_system=None, legacy_windows=False)
    console.print("before")
    pieces: Iterator[str] = (text[n : n + step] for n in range(0, len(text), step))
    markdown.show(pieces, console)
    return out.getvalue()


def whole(text: str) -> str:
    out = io.StringIO()
    Console(file=out, width=40, color_system=None, legacy_windows=False).print(markdown.ModelMarkdown(text))
    return out.getvalue()


MARKDOWN = """# Title

A *paragraph* with <think>tags</think>
and two lines.

1. one

   more of one

2. two

| a | b |
|---|---|
| 1 | 2 |

```python
x = 1

# a comment, no title
```

- end
"""


def test_markdown_that_comes_in_pieces_is_the_same_in_the_end() -> None:
    assert "<think>tags</think>" in whole(MARKDOWN)
    for step in (1, 7, len(MARKDOWN)):
        before, *shown = _screen(drawn(MARKDOWN, step))
        assert before == "before"
        assert [line.rstrip() for line in shown if line.strip()] == [
            line.rstrip() for line in whole(MARKDOWN).splitlines() if line.strip()
        ]


def _screen(text: str) -> list[str]:
    """The lines that are left on a terminal, by the few codes that are written."""
    rows, at = [""], 0
    for token in re.findall(r"\x1b\[\??\d*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if token == "\n":
            at += 1
            if at == len(rows):
                rows.append("")
        elif token.endswith("A") and token.startswith("\x1b"):
            at -= int(re.sub(r"\D", "", token) or 1)
            assert at >= 0, "it moves beyond what it has drawn"
        elif token == "\x1b[2K":
            rows[at] = ""
        elif not token.startswith("\x1b") and token != "\r":
            rows[at] = rows[at] + token if rows[at] and not rows[at].startswith(token[:1]) else token
    return rows


def test_only_whole_blocks_are_finished() -> None:
    def blocks(text: str) -> str:
        return text[: markdown.finished(text)]

    assert blocks("one") == ""
    assert blocks("one\n\n") == "", "what follows may be of the same block"
    assert blocks("one\n\ntwo") == "one\n\n"
    assert blocks("1. one\n\n2. two\n\nthree") == ""
    assert blocks("```\na\n\nb") == ""
    assert blocks("```\na\n\nb\n```\n\nc") == "```\na\n\nb\n```\n\n"
    assert blocks("one\n\n- a") == ""


def test_a_terminal_obeys_no_character_of_a_model() -> None:
    assert markdown.visible("a\x1b[2Jb\x07\n\tc\x9b1m") == "a␛[2Jb␇\n\tc�1m"
