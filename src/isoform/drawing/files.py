"""Drawings in files: PNG, SVG, or COCO's JSON, by the ending of the name; whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isoform.drawing import coco, scenes
from isoform.drawing.marks import Subject
from isoform.drawing.raster import raster
from isoform.drawing.vector import vector
from isoform.errors import InputError
from isoform.whole import whole_file

ENDINGS = (".png", ".svg", ".json")

Given = tuple[str, Subject, Any]
"""The name of a picture, the picture, and the answer about it."""


def check(path: Path, task: str, count: int = 1) -> None:
    """InputError for what cannot be drawn into this file, as far as that is known before there is an answer.

    `count`: of how many pictures (0: not known).
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise InputError(f"{str(path)!r} does not end in {', '.join(ENDINGS)}; drawings are PNG, SVG or COCO's JSON")
    (coco if ending == ".json" else scenes).check_task(task)
    if path.is_dir():
        raise InputError(f"{str(path)!r} is a folder; name a file to draw into")
    if count > 1 and ending != ".json":
        raise InputError(f"{ending} holds the drawing of one picture, not of {count}; give one, or draw into a .json")


def write(path: Path, task: str, given: Sequence[Given]) -> None:
    """Draw answers about pictures into a file. InputError where that cannot be."""
    check(path, task, len(given))
    ending = path.suffix.lower()
    content: bytes | str = ""
    drawn = None
    if ending == ".json":
        content = json.dumps(coco.coco(task, given)) + "\n"
    else:
        (_, subject, answer) = given[0]
        scene = scenes.scene(task, subject, answer)
        drawn = raster(scene) if ending == ".png" else None
        content = "" if drawn is not None else vector(scene)
    try:
        with whole_file(path) as part:
            if drawn is not None:
                drawn.save(part, "PNG")
            else:
                part.write_text(content, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be written ({error.strerror or error}); name another file") from None
