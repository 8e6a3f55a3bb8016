"""Words and boxes of a picture, read by the program tesseract of this machine.

The same command as pytesseract's `image_to_data`, and the same words and boxes as transformers makes of its table.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from isoform.errors import BackendUnavailable, InputError

if TYPE_CHECKING:
    from PIL.Image import Image

PROGRAM = "tesseract"
EDGE = 1000  # boxes are in thousandths of the page

Words = list[tuple[str, tuple[int, int, int, int]]]


def read_words(picture: Image, language: str | None = None, options: str = "") -> Words:
    """The words of an RGB picture in reading order, each with left, top, right and bottom in thousandths of the page.

    `language` is tesseract's code ("eng", "deu+fra"), `options` more of its command line ("--psm 6"). Raises
    BackendUnavailable without the program, InputError where it fails.
    """
    program = shutil.which(PROGRAM)
    if program is None:
        raise BackendUnavailable(
            f"reading the words of a picture needs the program {PROGRAM}, which is not on this machine's PATH; install "
            "it (apt install tesseract-ocr, brew install tesseract), or give word_boxes"
        )
    try:
        more = shlex.split(options)
    except ValueError as error:
        raise InputError(f"tesseract_config={options!r:.60} cannot be split into arguments ({error})") from None
    spoken = ["-l", language] if language is not None else []
    with TemporaryDirectory(prefix="isoform-") as staging:
        page, table = Path(staging) / "page.png", Path(staging) / "words.tsv"
        picture.save(page)
        command = [program, str(page), str(table.with_suffix("")), *spoken, "-c", "tessedit_create_tsv=1", *more]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode or not table.is_file():
            said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
            raise InputError(
                f"{PROGRAM} could not read the picture of {picture.width} x {picture.height} ({said[-1]:.200}); check "
                "lang= and tesseract_config=, or give word_boxes"
            )
        return parsed(table.read_text(encoding="utf-8"), picture.width, picture.height)


def parsed(table: str, width: int, height: int) -> Words:
    """The words of tesseract's table, whose lines have twelve columns: `left top width height conf text` at the end."""
    lines = [line.split("\t") for line in table.strip().split("\n")]
    names = lines[0]
    if not {"left", "top", "width", "height", "text"} <= set(names):
        raise InputError(f"{PROGRAM} gave a table without words and places: {'; '.join(names)!r:.80}")
    places = [names.index(name) for name in ("left", "top", "width", "height")]
    words: Words = []
    for line in lines[1:]:
        word = line[names.index("text")] if len(line) == len(names) else ""  # a line without a word may end early
        if word.strip():
            left, top, wide, high = (int(line[n]) for n in places)
            words.append((word, box_of(left, top, left + wide, top + high, width, height)))
    return words


def box_of(left: int, top: int, right: int, bottom: int, width: int, height: int) -> tuple[int, int, int, int]:
    """A box in pixels as thousandths of a page, cut to whole numbers as transformers does."""
    across, down = (int(EDGE * (x / width)) for x in (left, right)), (int(EDGE * (y / height)) for y in (top, bottom))
    (a, c), (b, d) = across, down
    return a, b, c, d
