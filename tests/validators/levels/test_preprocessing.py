"""Tokenizers, templates and processors of a bundle: one merge less, another template, a space more must be seen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isoform.signature import Port, Signature, decoder_signature
from isoform.validators.levels import preprocessing
from isoform.validators.levels.preprocessing import (
    CORPUS,
    ORACLE_IDS,
    ORACLE_TEMPLATE,
    ask_transformers,
    check_preprocessing,
    corpus,
)
from isoform.validators.report.records import Report
from tests import oracle

TEXT = decoder_signature(1, 1, 1, 1)
ORACLE = (ORACLE_IDS, ORACLE_TEMPLATE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(oracle.tiny("llama3_instruct"), tmp_path / "bundle"))


def check(folder: Path, **options: Any) -> Report:
    return check_preprocessing(folder, oracle.tiny("llama3_instruct"), TEXT, **options)[0]


def failed(report: Report) -> dict[str, str]:
    return {f"{r.group} {r.metric}": r.note for r in report.results if not r.passed}


def edit(path: Path, change: Callable[[Any], object]) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def test_a_copy_is_the_same_in_another_spelling_too(folder: Path) -> None:
    edit(folder / "tokenizer.json", lambda data: None)
    report = check(folder)
    assert report.same, failed(report)
    assert [result.group for result in report.results] == ["files beside the model", "token ids", "chat template"]


def test_one_merge_less_is_seen(folder: Path) -> None:
    edit(folder / "tokenizer.json", lambda data: data["model"]["merges"].pop(0))
    assert failed(check(folder)).keys() == {"files beside the model changed", "token ids differing"}


def test_an_added_token_that_takes_spaces_is_seen(folder: Path) -> None:
    def strip(data: Any) -> None:
        data["added_tokens"][0]["lstrip"] = True

    edit(folder / "tokenizer.json", strip)
    found = failed(check(folder))
    assert "token ids differing" in found
    assert "gives" in found["token ids differing"]


def test_another_chat_template_is_seen(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        path.write_text(path.read_text(encoding="utf-8") + " ", encoding="utf-8")
    else:
        edit(folder / "tokenizer_config.json", lambda data: data.update(chat_template=data["chat_template"] + " "))
    assert failed(check(folder)).keys() == {"files beside the model changed", "chat template differing"}


def test_a_tokenizer_that_is_gone_or_broken_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    assert "not a readable tokenizer" in failed(check(folder))["token ids error"]
    (folder / "tokenizer.json").unlink()
    assert failed(check(folder))["files beside the model changed"] == "tokenizer.json is missing"


def test_transformers_agrees_and_what_it_said_serves_without_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = oracle.tiny("llama3_instruct")
    report, stored = check_preprocessing(folder, source, TEXT, oracle=True)
    assert report.same, failed(report)
    assert stored is not None
    assert [r.group for r in report.results if r.group in ORACLE] == list(ORACLE)
    monkeypatch.setattr(preprocessing, "ask_transformers", lambda *_: pytest.fail("asked about the same files"))
    again, kept = check_preprocessing(folder, source, TEXT, stored=stored, oracle=True)
    assert again.same
    assert kept == stored
    edit(folder / "tokenizer.json", lambda data: data["model"]["merges"].pop(0))
    changed, _ = check_preprocessing(folder, folder, TEXT, stored=stored)
    assert any(r.group in ORACLE for r in changed.results if not r.passed)


def test_a_folder_that_transformers_cannot_read_is_a_reason(tmp_path: Path) -> None:
    assert "cannot read" in str(ask_transformers(tmp_path, ["x"]))


def test_the_corpus_puts_added_tokens_among_spaces() -> None:
    assert corpus([]) == list(CORPUS)
    assert corpus(["<x>", "<x>"])[-3:] == ["a <x>  b", "a<x>b", " <x> <x>"]


def test_a_processor_with_another_mean_is_seen(tmp_path: Path) -> None:
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}
    for name, mean in (("source", 0.5), ("bundle", 0.4)):
        (tmp_path / name).mkdir()
        data = {**settings, "image_mean": [mean] * 3, "image_std": [0.5] * 3}
        (tmp_path / name / "preprocessor_config.json").write_text(json.dumps(data))
    ports = Signature((Port("pixel_values", "float", ("batch_size", 3, 8, 8)),), ())
    same, _ = check_preprocessing(tmp_path / "source", tmp_path / "source", ports)
    assert same.same
    other, _ = check_preprocessing(tmp_path / "bundle", tmp_path / "source", ports)
    assert [(r.metric, round(r.value, 3)) for r in other.results if not r.passed][-1] == ("max_abs", 0.2)
