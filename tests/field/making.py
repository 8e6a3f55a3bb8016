"""Inputs from the field, built from tiny checkpoints, and the command line as a user calls it."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import unittest.mock
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from isoform.cli import main
from tests.oracle import tiny

Change = Callable[[Path], object]
TASKS = {
    "bert": "fill-mask",
    "bert_embed": "sentence-similarity",
    "bert_seqcls": "text-classification",
    "qwen2_seqcls": "text-classification",
    "siglip": "zero-shot-image-classification",
    "vit_cls": "image-classification",
    "wav2vec2_ctc": "automatic-speech-recognition",
    "whisper": "automatic-speech-recognition",
}


class Ran(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    error: str


def isoform(*arguments: Any) -> Ran:
    """Run the command line in this process."""
    out, error, code = io.StringIO(), io.StringIO(), 0
    with (
        unittest.mock.patch.object(sys, "argv", ["isoform", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
    ):
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Ran(code, out.getvalue(), error.getvalue())


def refused(*arguments: Any) -> str:
    """The one line of a command that ends with exit code 2."""
    ran = isoform(*arguments)
    assert ran.code == 2, ran
    assert ran.error.startswith("isoform: ")
    assert ran.error.count("\n") == 1, ran.error
    return ran.error


def copied(name: str, folder: Path, *changes: Change) -> Path:
    """A copy of a tiny checkpoint below `folder`, changed."""
    copy = Path(shutil.copytree(tiny(name), folder / name))
    for change in changes:
        change(copy)
    return copy


def keys(file: str, **values: Any) -> Change:
    """Sets keys of a JSON file; a path with dots goes into its objects: text_config__is_causal=False."""

    def change(folder: Path) -> None:
        path = folder / file
        data = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for name, value in values.items():
            *outer, last = name.split("__")
            box = data
            for step in outer:
                box = box[step]
            box[last] = value
        path.write_text(json.dumps(data), encoding="utf-8")

    return change


def task_of(name: str) -> str:
    """The pipeline that serves a tiny checkpoint."""
    return TASKS.get(name, "text-generation")
