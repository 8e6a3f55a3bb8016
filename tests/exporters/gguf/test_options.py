"""What a GGUF export can be told: shards, the model card, importance and adapters from the command line."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoform import cli
from isoform.errors import InputError
from isoform.exporters.gguf import Options, path_of, write
from isoform.manifest import describe
from isoform.reference.checkpoints.gguf_file import read_gguf
from isoform.reference.model import open_model
from isoform.runtimes.backends.llamacpp.session import LlamaCppSession
from tests.exporters.gguf.test_lora import adapter_for
from tests.oracle.convert_gguf import oracle_convert

Tiny = Callable[[str], Path]


# ------------------------------------------------------------------ shards
def test_llama_cpp_opens_shards(tiny: Tiny, tmp_path: Path) -> None:
    model = open_model(tiny("llama"))
    write(model, tmp_path, ["f16"])
    whole = tmp_path / path_of("f16")
    largest = max(info.nbytes for info in read_gguf(whole).tensors.values())
    options = Options(split_max_size=f"{largest / 1000:.3f}K")
    [artifact] = write(model, tmp_path / "split", ["f16"], options=options)
    count = len(artifact.files)
    names = [f"gguf/model-f16-{n + 1:05d}-of-{count:05d}.gguf" for n in range(count)]
    assert count > 2
    assert [file.path for file in artifact.files] == names
    assert list(artifact.files) == [describe(tmp_path / "split" / name, tmp_path / "split") for name in names]
    headers = [read_gguf(tmp_path / "split" / name) for name in names]
    tensors: dict[str, Any] = {}
    for number, header in enumerate(headers):
        assert sum(-(-info.nbytes // 32) * 32 for info in header.tensors.values()) <= largest
        labels = {key: value for key, value in header.metadata.items() if key.startswith("split.")}
        wanted = {"split.no": number, "split.count": count, "split.tensors.count": len(read_gguf(whole).tensors)}
        assert labels == wanted
        assert number == 0 or header.metadata == labels
        tensors |= {name: info.shape for name, info in header.tensors.items()}
    assert tensors == {name: info.shape for name, info in read_gguf(whole).tensors.items()}
    ids = np.array([[1, 9, 44, 120]])
    case = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(4)[None]}
    found = []
    for path in (whole, tmp_path / "split" / names[0]):
        with LlamaCppSession(path, model.signature, strict=True, threads=1) as session:
            found.append(session.run(case)["logits"])
    assert np.array_equal(found[0], found[1])
    again = open_model(tmp_path / "split" / names[0])
    write(again, tmp_path / "again", ["f16"])
    assert (tmp_path / "again" / path_of("f16")).read_bytes() == whole.read_bytes()


def test_what_fits_in_one_file_is_not_split(tiny: Tiny, tmp_path: Path) -> None:
    [artifact] = write(open_model(tiny("qwen2")), tmp_path, ["f16"], options=Options(split_max_size="2G"))
    assert [file.path for file in artifact.files] == [path_of("f16")]


@pytest.mark.parametrize("size", ["", "2", "0M", "-1G", "2T", "many"])
def test_sizes_that_are_none_are_refused(tiny: Tiny, tmp_path: Path, size: str) -> None:
    with pytest.raises(InputError, match="takes a size like 500M or 2G"):
        write(open_model(tiny("qwen2")), tmp_path, ["f16"], options=Options(split_max_size=size))


# ------------------------------------------------------------------ the model card
CARD = """---
license: apache-2.0
license_link: https://example.org/licence
language: [en, de]
tags: [text-generation, tiny]
base_model: example/Base-Model-7B
datasets: [example/words]
pipeline_tag: text-generation
---
# Tiny
"""


def test_the_model_card_is_read_as_the_converter_does(tiny: Tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("qwen2"), tmp_path / "Tiny-Words-8M-Instruct-v1.2")
    (folder / "README.md").write_text(CARD)
    write(open_model(folder), tmp_path, ["f32"])
    ours = read_gguf(tmp_path / path_of("f32")).metadata
    theirs = read_gguf(oracle_convert(folder, tmp_path / "theirs.gguf", "f32", "qwen2")).metadata
    assert {k: v for k, v in ours.items() if k.startswith("general.")} == {
        k: v for k, v in theirs.items() if k.startswith("general.")
    }
    assert ours["general.license"] == "apache-2.0"
    assert ours["general.base_model.0.repo_url"] == "https://huggingface.co/example/Base-Model-7B"
    assert "tiny" in ours["general.tags"]


# ------------------------------------------------------------------ the command line
def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["isoform", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_an_importance_matrix_goes_into_an_export(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, matrix = tmp_path / "text.txt", tmp_path / "m.gguf"
    text.write_text("The small model reads a strange house. " * 40)
    source = tiny("llama")
    assert run(monkeypatch, "imatrix", source, text, "--out", matrix, "--context", 64, "--chunks", 2, "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["chunks"] == 2
    assert made["tensors"] == len(read_gguf(matrix).tensors) // 2
    arguments = ("export", source, "--to", "gguf", "--no-check", "--pre", "llama-bpe", "--imatrix", matrix)
    assert run(monkeypatch, *arguments, "--gguf-type", "q4_0,Q8_0", "--out", tmp_path / "out") == 0
    metadata = read_gguf(tmp_path / "out" / path_of("q4_0")).metadata
    assert metadata["quantize.imatrix.chunks_count"] == 2
    assert (tmp_path / "out" / path_of("q8_0")).is_file()
    assert run(monkeypatch, *arguments[:-1], text, "--out", tmp_path / "none") == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert "is no importance matrix" in error[0]
    assert not (tmp_path / "none").exists()


def test_an_adapter_is_written_from_the_command_line(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, added = adapter_for(open_model(tiny("qwen2")), tmp_path / "adapter")
    out = tmp_path / "lora.gguf"
    assert run(monkeypatch, "lora", adapter, "--base", tiny("qwen2"), "--out", out, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(out), "weights": len(added), "dtype": "f32"}
    assert read_gguf(out).metadata["general.type"] == "adapter"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gguf-type", "q9_9"], "'q9_9' is not written; choose from"),
        (["--override", "attn_v"], "--override takes regex=type"),
        (["--split-max-size", "huge"], "--split-max-size takes a size"),
        (["--imatrix", "/nowhere.dat"], "--imatrix /nowhere.dat is not there"),
        (["--pre", "nonsense"], "nonsense"),
    ],
)
def test_wrong_requests_end_in_one_line(
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    words: str,
) -> None:
    arguments = ("export", tiny("llama"), "--to", "gguf", "--out", tmp_path / "out", *options)
    assert run(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert words in error[0]
    assert list(tmp_path.iterdir()) == []
