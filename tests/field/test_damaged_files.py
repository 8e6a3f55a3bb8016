"""Files beside the model that are damaged: one line with the file, and never a traceback."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import isoform as package
from tests.field.making import copied, keys, refused, task_of


def _written(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("blobs"))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "a BOM": lambda path: path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes()),
    "UTF-16": _written('{"a": 1}'.encode("utf-16")),
    "empty": _written(b""),
    "a list": _written(b"[]"),
    "null": _written(b"null"),
    "too many digits": _written(b'{"pad_token_id": 1' + b"0" * 5000 + b"}"),
    "nested deeply": _written(b"[" * 100_000),
    "a folder": _folder,
    "a broken link": _link,
}


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("llama_b", "config.json"),
        ("llama_b", "tokenizer.json"),
        ("llama_b", "tokenizer_config.json"),
        ("llama_b", "generation_config.json"),
        ("vit_cls", "preprocessor_config.json"),
        ("bert_embed", "modules.json"),
        ("bert_embed", "1_Pooling/config.json"),
    ],
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_line_with_its_name(name: str, file: str, damage: str, tmp_path: Path) -> None:
    if (file, damage) == ("modules.json", "a list"):
        pytest.skip("a list of no module is well formed; that the text has no vector then, is said elsewhere")
    folder = copied(name, tmp_path, lambda folder: DAMAGES[damage](folder / file))
    said = refused("run", task_of(name), folder, "Hello")
    assert Path(file).name in said
    assert len(said) < 600


@pytest.mark.parametrize(
    ("name", "file", "values", "said"),
    [
        (
            "vit_cls",
            "preprocessor_config.json",
            {"image_mean": [0.5, 0.5]},
            "image_mean has 2 numbers",
        ),
        ("vit_cls", "preprocessor_config.json", {"image_processor_type": "a" * 3000}, "is not supported"),
        ("vit_cls", "preprocessor_config.json", {"image_mean": ["a" * 3000] * 3}, "image processor"),
        ("vit_cls", "preprocessor_config.json", {"size": 10**400}, "preprocessor|image processor"),
        ("llama_b", "generation_config.json", {"temperature": float("nan")}, "temperature"),
        ("llama_b", "tokenizer_config.json", {"bos_token": ["a"]}, "bos_token is"),
    ],
)
def test_a_value_that_makes_no_sense_is_one_line(
    name: str, file: str, values: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = copied(name, tmp_path, keys(file, **values))
    error = refused("run", task_of(name), folder, "Hello")
    assert any(one in error for one in said.split("|")), error
    assert len(error) < 600


def test_a_key_that_is_there_twice_counts_as_in_transformers(tmp_path: Path) -> None:
    folder = copied("llama_b", tmp_path, lambda folder: None)
    path = folder / "generation_config.json"
    path.write_text('{"eos_token_id": 607, "do_sample": true, "do_sample": false, "eos_token_id": 2}')
    shutil.copytree(folder, tmp_path / "plain")
    (tmp_path / "plain" / path.name).write_text('{"eos_token_id": 2, "do_sample": false}')
    answers = []
    for each in (folder, tmp_path / "plain"):
        with package.pipeline("text-generation", str(each)) as pipe:
            answers.append(pipe("Hello", max_new_tokens=6))
    assert answers[0] == answers[1]
