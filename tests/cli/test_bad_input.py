"""Whatever is wrong with the input: one clear line, exit code 2, and nothing half-written left behind."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from isoform import cli

Tiny = Callable[[str], Path]


@pytest.fixture
def checkpoint(tiny: Tiny, tmp_path: Path) -> Path:
    """A tiny checkpoint of its own, to be damaged."""
    return Path(shutil.copytree(tiny("llama"), tmp_path / "source"))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["isoform", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    code = stop.value.code
    return code if isinstance(code, int) else 0


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of a command that ends with exit code 2."""
    assert run(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("isoform: ")
    assert error.count("\n") == 1, error
    return error


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size // 2)


def lose_shard(folder: Path) -> None:
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder / "model-00001.safetensors")
    where = dict.fromkeys(names, "model-00001.safetensors") | {names[0]: "model-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def leave_folder(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../elsewhere.safetensors"}}))


NORM = "model.norm.weight"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated safetensors": (truncate, "truncated"),
    "a shard that the index names is missing": (lose_shard, "model-00002.safetensors"),
    "path traversal in the index": (leave_folder, "outside its folder"),
    "missing key": (lambda f: edit_weights(f, lambda t: t.pop(NORM)), "norm.weight"),
    "unexpected key": (lambda f: edit_weights(f, lambda t: t.update(extra=torch.ones(2))), "extra"),
    "wrong shape": (lambda f: edit_weights(f, lambda t: t.update({NORM: torch.ones(7)})), "[7]"),
    "unknown model_type": (lambda f: edit_json(f / "config.json", model_type="perceiver"), "perceiver"),
    "no config.json": (lambda f: (f / "config.json").unlink(), "config.json"),
    "config.json that is no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_one_line_and_leaves_nothing(
    damage: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change, named = DAMAGE[damage]
    change(checkpoint)
    out = tmp_path / "out" / "bundle"
    assert named in refused(monkeypatch, capsys, "export", checkpoint, "--to", "onnx", "--out", out)
    assert not out.exists()
    assert not out.parent.exists() or not list(out.parent.iterdir())


def test_a_missing_tokenizer_stops_the_pipeline_and_the_gguf(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint / "tokenizer.json").unlink()
    assert "tokenizer.json" in refused(monkeypatch, capsys, "run", "text-generation", checkpoint, "hello")
    out = tmp_path / "bundle"
    assert "tokenizer" in refused(monkeypatch, capsys, "export", checkpoint, "--to", "gguf", "--out", out)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_gguf_cut_in_half(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "export", tiny("llama"), "--to", "gguf", "--out", tmp_path / "b", "--no-check") == 0
    capsys.readouterr()
    path = tmp_path / "b" / "gguf" / "model-f32.gguf"
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size // 2)
    for command in (("inspect", path), ("run", "text-generation", path, "hello")):
        assert "model-f32.gguf" in refused(monkeypatch, capsys, *command)


class Malice:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def test_a_malicious_pickle_never_runs(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "executed"
    (checkpoint / "model.safetensors").unlink()
    for protocol in (2, 4):
        (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Malice(mark)}, protocol))
        assert "never runs" in refused(monkeypatch, capsys, "inspect", checkpoint)
    torch.save({"x": Malice(mark)}, checkpoint / "pytorch_model.bin")
    assert "never runs" in refused(monkeypatch, capsys, "inspect", checkpoint)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("export", "no/such/folder", "--out", "x"), "no/such/folder"),
        (("export", "{tiny}", "--to", "coreml", "--out", "x"), "coreml"),
        (("export", "{tiny}", "--dtype", "f8", "--out", "x"), "f8"),
        (("export", "{tiny}", "--task", "translation", "--out", "x"), "translation"),
        (("export", "{tiny}"), "--out"),
        (("run", "fill-mask", "{tiny}", "hello"), "fill-mask"),
        (("run", "no-such-task", "{tiny}", "hello"), "no-such-task"),
        (("run", "text-generation", "{tiny}", "hello", "--backend", "tensorrt"), "tensorrt"),
        (("run", "text-generation", "{tiny}", "hello", "--set", "nonsense"), "nonsense"),
        (("run", "text-generation", "{tiny}", "hello", "--device", "tpu"), "tpu"),
        (("run", "text-generation", "{tiny}", "hello", "--stream", "--json"), "--stream"),
        (("run", "feature-extraction", "{tiny}", "hello", "--stream"), "--stream"),
        (("export", "", "--out", "x"), "empty"),
        (("check", "{tiny}"), "isoform.json"),
        (("inspect", "/no/such/thing"), "/no/such/thing"),
        (("dance",), "dance"),
    ],
)
def test_a_wrong_request_is_one_line(
    arguments: tuple[str, ...],
    named: str,
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert named in refused(monkeypatch, capsys, *(a.format(tiny=tiny("llama")) for a in arguments))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_of_another_user_says_so(
    name: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = shutil.copytree(tiny("bert"), tmp_path / "checkpoint")
    (checkpoint / name).chmod(0)
    if os.access(checkpoint / name, os.R_OK):
        pytest.skip("this user may read every file")
    assert "permissions" in refused(monkeypatch, capsys, "inspect", checkpoint)


def test_a_question_needs_its_context(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("run", "question-answering", tiny("bert_qa"), "Where?")
    assert "--set context=" in refused(monkeypatch, capsys, *arguments)
    assert run(monkeypatch, *arguments, "--set", "context=In Paris.") == 0
    assert "answer" in capsys.readouterr().out


def test_an_onnx_file_without_operators_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.onnx").touch()
    assert "model.onnx" in refused(monkeypatch, capsys, "inspect", tmp_path / "model.onnx")


def test_a_cache_that_cannot_be_written_names_its_setting(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ISOFORM_CACHE", str(tmp_path / "file" / "cache"))
    arguments = ("run", "fill-mask", tiny("bert"), "a [MASK]", "--backend", "onnxruntime")
    assert "ISOFORM_CACHE" in refused(monkeypatch, capsys, *arguments)


def test_a_bundle_whose_source_is_gone_says_so(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shutil.copytree(tiny("bert"), tmp_path / "source")
    assert run(monkeypatch, "export", source, "--to", "onnx", "--out", tmp_path / "bundle", "--no-check") == 0
    capsys.readouterr()
    shutil.rmtree(source)
    arguments = ("run", "fill-mask", tmp_path / "bundle", "a [MASK]", "--backend", "torch")
    assert "not there any more" in refused(monkeypatch, capsys, *arguments)


def test_an_existing_folder_is_not_overwritten_unasked(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    assert "mine" in refused(monkeypatch, capsys, "export", tiny("bert"), "--to", "onnx", "--out", tmp_path / "mine")
    options = ("--to", "onnx", "--overwrite", "--out", tmp_path / "mine")
    assert "mine" in refused(monkeypatch, capsys, "export", tiny("bert"), *options)
    assert (tmp_path / "mine" / "diary.txt").read_text() == "dear diary"


def test_a_full_disk_leaves_nothing(tiny: Tiny, tmp_path: Path) -> None:
    """The file size limit of the process stands in for the disk; /dev/full cannot hold a folder."""
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)); from isoform.cli import main; main()"
    )
    out = tmp_path / "bundle"
    command = [sys.executable, "-c", script, "export", str(tiny("llama")), "--to", "onnx", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("isoform: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_ctrl_c_during_an_export_leaves_nothing(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    script = (  # stretches the export so that the signal always falls into it
        "import time, isoform.exporters.onnx as e; write = e.write\n"
        "def slow(*a, **k):\n    r = write(*a, **k); print('written', flush=True); time.sleep(60); return r\n"
        "e.write = slow\nfrom isoform.cli import main; main()"
    )
    command = [sys.executable, "-c", script, "export", str(tiny("llama")), "--to", "onnx", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    assert list(tmp_path.iterdir()), "the export is under way"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2, error
    assert error.count("\n") == 1
    assert "stopped" in error
    assert not list(tmp_path.iterdir())
