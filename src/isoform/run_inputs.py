"""What `isoform run` runs over: the inputs that its arguments stand for, and the answers about them in order.

An argument is `-` (standard input, a line an input), a `.jsonl` file (a line an input: a text, a path, or an object
with the task's keywords), a folder or a pattern like `"*.png"` (all files of the task's kind, sorted; a folder of
pictures is a video), a `.txt` file (one text), or the input itself: a text, a path or an address.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from glob import glob, has_magic
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from isoform.errors import InputError, ItemError

if TYPE_CHECKING:
    from isoform.progress import Progress
    from isoform.runtimes.pipelines.base import Pipeline

SUFFIXES = {
    "sound": (".aif", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav"),
    "picture": (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"),
    "text": (".txt",),
    "video": (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv"),
}
TOGETHER = {
    "sound": 8,
    "picture": 32,
    "text": 32,
    "video": 2,
}  # inputs that are answered together, without a batch size
WRITTEN = 8  # the same where texts are generated
SHOWN = 60  # characters of a text that stands for its input in a message


@dataclass(frozen=True, slots=True)
class RunInput:
    """An input, what a message calls it, and parameters of its own."""

    name: str
    value: Any
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answered:
    """An input with its answer, or with what is wrong with it."""

    input: RunInput
    answer: Any
    error: InputError | None = None


def kind_of(task: str) -> str:
    """What a task is about: "text", "sound", "picture" or "video". InputError for a task that is none."""
    from isoform.runtimes import pipelines

    room, _, module = pipelines.TASKS[pipelines.known(task)][0].partition(".")
    return "video" if module.startswith("video_") else {"audio": "sound", "text": "text"}.get(room, "picture")


def read_inputs(arguments: Sequence[str], kind: str, keywords: Sequence[str], stdin: TextIO) -> Iterator[RunInput]:
    """The inputs that arguments stand for, in their order; each is read when its turn comes.

    `keywords`: the names under which an object of a .jsonl file may hold the input.
    """
    for argument in arguments:
        if argument == "-":
            for number, line in enumerate(stdin, 1):
                yield RunInput(f"line {number} of standard input", line.rstrip("\r\n"))
        elif paths := _files(argument, kind):
            for path in paths:
                yield from _of_file(path, kind, keywords)
        else:
            name = argument if len(argument) <= SHOWN else f"{argument[:SHOWN]}…"
            yield RunInput(name if kind != "text" else repr(name), argument)


def count_inputs(arguments: Sequence[str], kind: str) -> int:
    """How many inputs there will be; 0 where that is not known before they are read."""
    total = 0
    for argument in arguments:
        paths = [] if argument == "-" else _files(argument, kind)
        if argument == "-" or any(path.suffix == ".jsonl" for path in paths):
            return 0
        total += max(len(paths), 1)
    return total


def _files(argument: str, kind: str) -> list[Path]:
    """The files that an argument stands for; none where it is an input itself. InputError for an empty folder."""
    suffixes = SUFFIXES[kind]
    try:
        path = Path(argument).expanduser()
        if path.suffix.lower() in (".jsonl", *suffixes) and path.is_file():
            return [path]
        # A text may be the name of a folder, too: it is one where it is written as a path.
        if path.is_dir() and (kind != "text" or "/" in argument):
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
            if not found and kind == "video" and any(p.suffix.lower() in SUFFIXES["picture"] for p in path.iterdir()):
                return [path]
            if not found:
                raise InputError(f"{argument} holds no {kind} files ({', '.join(suffixes)})")
            return found
        if path.suffix.lower() in (".jsonl", *suffixes) and has_magic(argument) and "\n" not in argument:
            names = glob(str(path), recursive=True)  # noqa: PTH207  (Path.glob takes no absolute pattern)
            found = sorted(p for p in map(Path, names) if p.is_file())
            if not found:
                raise InputError(f"no file is called {argument}")
            return found
    except (OSError, ValueError, RuntimeError):
        pass  # too long for a path, or a byte 0 in it: an input itself
    return []


def _of_file(path: Path, kind: str, keywords: Sequence[str]) -> Iterator[RunInput]:
    if path.suffix == ".jsonl":
        yield from _of_lines(path, keywords)
    elif kind == "text":
        yield RunInput(str(path), _text(path).rstrip("\r\n"))
    else:
        yield RunInput(str(path), str(path))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}); convert it") from None


def _of_lines(path: Path, keywords: Sequence[str]) -> Iterator[RunInput]:
    """An input for each line that is not empty."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            name = f"{path}, line {number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{name} is not JSON ({error}); write one text or object a line") from None
            if isinstance(value, Mapping):
                given = [key for key in keywords if key in value]
                if len(given) == 1:
                    own = {key: one for key, one in value.items() if key != given[0]}
                    yield RunInput(name, value[given[0]], own)
                    continue
            yield RunInput(name, value)


def keywords_of(pipe: Pipeline) -> tuple[str, ...]:
    """The names under which a line of a .jsonl file may hold the input; none where the input is an object itself."""
    if pipe.takes_objects:
        return ()
    chat = ("messages",) if "text_inputs" in pipe.keywords else ()
    return (*pipe.keywords, *chat)


def run(
    pipe: Pipeline,
    inputs: Iterator[RunInput],
    kind: str,
    parameters: Mapping[str, Any],
    *,
    batch_size: int | None = None,
    total: int = 0,
    progress: Progress | None = None,
) -> Iterator[Answered]:
    """The answers in the order of the inputs, each as soon as its batch is there; a wrong input does not end them."""
    done = 0
    if pipe.paired:
        inputs, total = _pairs(inputs), total // 2
    size = batch_size or (WRITTEN if pipe.generates else TOGETHER[kind])
    while chunk := list(islice(inputs, size)):
        for _, same in groupby(chunk, key=lambda one: json.dumps(one.parameters, sort_keys=True)):
            group = list(same)
            call = {**parameters, **group[0].parameters, "batch_size": batch_size}
            call["progress"] = progress if progress is not None and total == 1 else False
            for one, answer in zip(group, _answers(pipe, [one.value for one in group], call), strict=True):
                done += 1
                if progress is not None and total != 1:
                    progress("answer", done, total)
                if isinstance(answer, ItemError):
                    cause = answer.__cause__
                    yield Answered(one, None, cause if isinstance(cause, InputError) else answer)
                elif isinstance(answer, InputError):
                    yield Answered(one, None, answer)
                else:
                    yield Answered(one, answer)


def _pairs(inputs: Iterator[RunInput]) -> Iterator[RunInput]:
    """Two inputs in turn as one; a line of a .jsonl file that is a pair already stays, and so does a last one alone."""
    for first in inputs:
        second = next(inputs, None) if isinstance(first.value, str) else None
        if second is None:
            yield first
        else:
            yield RunInput(f"{first.name} and {second.name}", [first.value, second.value], first.parameters)


def _answers(pipe: Pipeline, values: list[Any], call: dict[str, Any]) -> Sequence[Any]:
    """An answer or an error for each value."""
    if len(values) > 1:
        answers: Sequence[Any] = pipe(values, on_error="return", **call)
        return answers
    try:  # some tasks answer a list of one like its only item
        return [pipe(values[0], **call)]
    except InputError as error:
        return [error]


def check_drawing(path: Path, task: str, total: int) -> None:
    """InputError for what cannot be drawn into this file, before anything runs."""
    from isoform.drawing.files import check
    from isoform.drawn_inputs import PAIRED
    from isoform.runtimes.pipelines import known

    name = known(task)
    check(path, name, -(-total // 2) if name == PAIRED else total)  # two pictures are one input there


def drawn(
    answered: Iterator[Answered], path: Path, task: str, pipe: Pipeline, parameters: Mapping[str, Any]
) -> Iterator[Answered]:
    """The same answers; behind the last one the file is written, of those that there are."""
    from isoform.drawing.files import Given, write
    from isoform.drawn_inputs import subject_of
    from isoform.runtimes.pipelines import known

    given: list[Given] = []
    for one in answered:
        if one.error is None:
            call = {**parameters, **one.input.parameters}
            given.append((one.input.name, subject_of(known(task), one.input.value, pipe, call), one.answer))
        yield one
    if given:
        write(path, known(task), given)


Manner = Literal["text", "json", "jsonl", "stream"]
"""How answers are printed: as text, one JSON document, a line of JSON each; or a streamer prints them already."""


def show_answers(
    answered: Iterator[Answered], manner: Manner, *, several: bool, complain: Callable[[str], Any]
) -> bool:
    """Print answers as they come; in JSON, {"error"} stands where an input has none.

    Returns whether every input was answered. The error of an only input is raised.
    """
    from isoform import show

    good, document = True, []
    for one in answered:
        answer = one.answer
        if manner == "stream":
            print()
        if one.error is not None:
            if not several:
                raise one.error
            good = False
            complain(f"{one.input.name}: {one.error}")
            answer = {"error": str(one.error)}
        if manner == "json":
            document.append(answer)
        elif manner == "jsonl":
            show.json_line(answer)
        elif manner == "text" and one.error is None:
            show.answer(one.input.name if several else None, answer)
    if manner == "json":
        show.json(document)
    return good
