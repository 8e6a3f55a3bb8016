"""What people see fits in 80 columns, and is not Python's notation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from isoform import api
from isoform.errors import CheckpointError
from isoform.manifest import Manifest
from tests.cli.test_bad_input import run
from tests.exports import copied

Tiny = Callable[[str], Path]


def view(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    """The lines of a command at 80 columns."""
    monkeypatch.setattr("isoform.show.out.width", 80)
    capsys.readouterr()
    assert run(monkeypatch, *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if "': " in line or "['" in line or "{'" in line]
    return lines


def test_models_shows_a_line_for_each_family(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from isoform.support import families

    lines = view(monkeypatch, capsys, "models")
    for family in families():
        found = [line for line in lines if line.startswith(f"{family['family']}  ")]
        assert len(found) == 1, family["family"]


def test_inspect_shows_a_bundle_as_a_person_asks(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    api.export(tiny("bert_embed"), folder, to=("onnx", "torchscript"))
    text = "\n".join(view(monkeypatch, capsys, "inspect", folder))
    for words in ("feature-extraction", "last check: the same", "serves feature-extraction, sentence-similarity"):
        assert words in text
    for column in ("onnx/model.onnx", "torchscript/model.pt", "kB", "parity", "graph"):
        assert column in text
    (folder / "torchscript" / "model.pt").unlink()
    assert "missing" in "\n".join(view(monkeypatch, capsys, "inspect", folder))


@pytest.mark.parametrize("form", ["checkpoint", "onnx/model.onnx", "gguf/model-f32.gguf"])
def test_inspect_shows_files_legibly(
    form: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.exports import exported

    path = tiny("llama") if form == "checkpoint" else exported("llama", ("onnx", "gguf"), "f32") / form
    view(monkeypatch, capsys, "inspect", path)


def test_an_export_says_which_pipelines_the_bundle_serves(tiny: Tiny, tmp_path: Path) -> None:
    _, report = api.export_and_check(tiny("bert_embed"), tmp_path / "out", to="onnx")
    serves = {"feature-extraction": "", "sentence-similarity": ""}
    assert report is not None
    assert report.about["serves"] == serves
    assert Manifest.read(tmp_path / "out").serves == serves


def test_an_export_says_what_the_bundle_cannot_serve_and_why(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = copied(tiny("bert_ner"), tmp_path / "source")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (source / name).unlink(missing_ok=True)
    text = " ".join(view(monkeypatch, capsys, "export", source, "--to", "onnx", "--out", tmp_path / "out"))
    assert "the same" in text
    assert "does not serve token-classification: " in text
    reason = json.loads((tmp_path / "out" / "isoform.json").read_text())["serves"]["token-classification"]
    assert "tokenizer" in reason
    with pytest.raises(CheckpointError, match="tokenizer"):
        api.pipeline("token-classification", tmp_path / "out")


@pytest.mark.parametrize("damage", [{"parity": {"same": True}}, {"parity": [1]}, {"serves": [1]}, {"notes": 5}])
def test_a_damaged_manifest_is_refused_in_one_line(
    damage: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.exports import exported

    folder = copied(exported("llama", ("onnx", "gguf"), "f32"), tmp_path / "out")
    path = folder / "isoform.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    capsys.readouterr()
    assert run(monkeypatch, "inspect", folder) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert "isoform.json" in printed.err


def test_a_model_without_a_pipeline_says_so(tiny: Tiny, tmp_path: Path) -> None:
    _, report = api.export_and_check(tiny("llava"), tmp_path / "out", to="onnx")
    assert report is not None
    assert "no pipeline for image-text-to-text yet" in report.about["serves"]["image-text-to-text"]
