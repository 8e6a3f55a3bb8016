"""Words that tesseract reads: the same command, words and boxes as pytesseract's and transformers'.

The table is one that tesseract 5.3 wrote about scikit-image's page of text; WORDS are what transformers 5.23 with
pytesseract 0.3.13 made of it.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import isoform
from isoform.errors import BackendUnavailable, InputError
from isoform.runtimes.preprocess.document.tesseract import box_of, parsed, read_words
from tests.oracle import tiny

pipeline: Any = isoform.pipeline

HEAD = "level\tpage_num\tblock_num\tpar_num\tline_num\tword_num\tleft\ttop\twidth\theight\tconf\ttext"
LINES = (
    "1\t1\t0\t0\t0\t0\t0\t0\t384\t191\t-1\t",
    "5\t1\t1\t1\t1\t1\t0\t0\t74\t45\t95.000000\t  ",
    "2\t1\t2\t0\t0\t0\t74\t12\t217\t26\t-1",
    "5\t1\t2\t1\t1\t1\t74\t12\t68\t18\t22.721909\t“based",
    "5\t1\t3\t1\t4\t7\t340\t103\t12\t11\t95.488251\tof",
    "5\t1\t3\t1\t4\t8\t358\t102\t18\t11\t95.784988\tthe",
    "5\t1\t3\t1\t4\t9\t376\t180\t8\t11\t0\t ",
)
WORDS = [
    ("“based", (192, 62, 369, 157)),
    ("of", (885, 539, 916, 596)),
    ("the", (932, 534, 979, 591)),
]
SIZE = (384, 191)

PROGRAM = """#!{python}
import json, pathlib, sys
page, out, *arguments = sys.argv[1:]
from PIL import Image
with Image.open(page) as picture:
    said = {{"arguments": arguments, "size": picture.size, "mode": picture.mode, "format": picture.format}}
(pathlib.Path({folder!r}) / "said.json").write_text(json.dumps(said))
if "xyz" in arguments:
    print("Failed loading language 'xyz'", file=sys.stderr)
    sys.exit(1)
pathlib.Path(out + ".tsv").write_text({table!r}, encoding="utf-8")
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name, which writes the table and notes what it was given."""
    path = tmp_path / "bin" / "tesseract"
    path.parent.mkdir()
    table = "\n".join((HEAD, *LINES)) + "\n"
    path.write_text(PROGRAM.format(python=sys.executable, folder=str(tmp_path), table=table), encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent))
    return tmp_path


def said(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "said.json").read_text())
    return found


def test_the_table_becomes_the_words_of_transformers() -> None:
    assert parsed("\n".join((HEAD, *LINES)), *SIZE) == WORDS
    assert parsed(HEAD, *SIZE) == []
    with pytest.raises(InputError, match="without words and places"):
        parsed("level\tpage_num", *SIZE)


def test_boxes_are_cut_to_whole_thousandths() -> None:
    assert box_of(1, 2, 3, 6, 7, 7) == (142, 285, 428, 857)
    assert box_of(0, 0, 7, 7, 7, 7) == (0, 0, 1000, 1000)


def test_the_program_gets_pytesseracts_command(program: Path) -> None:
    picture = Image.new("RGB", SIZE, "white")
    assert read_words(picture) == WORDS
    assert said(program) == {
        "arguments": ["-c", "tessedit_create_tsv=1"],
        "size": list(SIZE),
        "mode": "RGB",
        "format": "PNG",
    }
    read_words(picture, "deu+fra", "--psm 6 -c 'a=b c'")
    assert said(program)["arguments"] == ["-l", "deu+fra", "-c", "tessedit_create_tsv=1", "--psm", "6", "-c", "a=b c"]


def test_a_failing_program_is_reported_with_its_words(program: Path) -> None:
    with pytest.raises(InputError, match=r"384 x 191 \(Failed loading language 'xyz'\).*lang="):
        read_words(Image.new("RGB", SIZE), "xyz")
    with pytest.raises(InputError, match="cannot be split"):
        read_words(Image.new("RGB", SIZE), None, "--psm '6")


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendUnavailable, match=r"tesseract, which is not on this machine's PATH.*word_boxes"):
        read_words(Image.new("RGB", SIZE))
    page = {"image": Image.new("RGB", SIZE), "question": "what?"}
    with pipeline("document-question-answering", tiny("layoutlmv3_qa"), backend="torch") as pipe:
        assert pipe({**page, "word_boxes": WORDS})[0]["answer"]  # given words need no program
        with pytest.raises(BackendUnavailable, match="give word_boxes"):
            pipe(page)


def test_a_picture_is_read_where_no_words_are_given(program: Path) -> None:
    picture = Image.new("RGB", SIZE, "white")
    with pipeline("document-question-answering", tiny("layoutlmv3_qa"), backend="torch") as pipe:
        expected = pipe(picture, "what?", [list(pair) for pair in WORDS])
        assert pipe(picture, "what?") == expected
        pipe(picture, "what?", lang="deu", tesseract_config="--psm 4")
        assert said(program)["arguments"] == ["-l", "deu", "-c", "tessedit_create_tsv=1", "--psm", "4"]
    with pipeline("token-classification", tiny("layoutlmv3_tokcls"), backend="torch") as pipe:
        assert pipe(picture) == pipe({"image": picture, "word_boxes": WORDS})


def test_the_settings_of_the_processor_hold_unless_a_call_says_otherwise(program: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny("layoutlmv3_qa"), folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings |= {"apply_ocr": True, "ocr_lang": "fra", "tesseract_config": "--oem 1"}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    picture = Image.new("RGB", SIZE, "white")
    with pipeline("document-question-answering", folder, backend="torch") as pipe:
        pipe(picture, "what?")
        assert said(program)["arguments"] == ["-l", "fra", "-c", "tessedit_create_tsv=1", "--oem", "1"]
        pipe(picture, "what?", lang="deu")
        assert said(program)["arguments"] == ["-l", "deu", "-c", "tessedit_create_tsv=1", "--oem", "1"]
