"""What each command prints, and its exit code."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isoform import api
from isoform.errors import BackendUnavailable, InputError
from tests.cli.test_bad_input import run

Tiny = Callable[[str], Path]
ROOT = Path(__file__).parents[2]


def answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """The JSON that a command prints."""
    capsys.readouterr()
    assert run(monkeypatch, *arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_export_check_run_and_inspect_work_on_one_bundle(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    written = answer(monkeypatch, capsys, "export", tiny("qwen2"), "--to", "all", "--out", bundle)
    assert {a["format"] for a in written["artifacts"]} == {"onnx", "torchscript", "gguf"}
    assert written["report"]["same"] is True
    checked = answer(monkeypatch, capsys, "check", bundle)
    assert checked["same"] is True
    assert {r["backend"] for r in checked["results"]} >= {"onnxruntime", "torchscript", "llamacpp"}
    assert {"backend", "level", "case", "metric", "value", "limit", "pass"} <= checked["results"][0].keys()
    texts = {
        backend: answer(
            *(monkeypatch, capsys, "run", "text-generation", where, "The secret model is", "--backend", backend),
            *("-s", "max_new_tokens=6", "-s", "do_sample=false"),
        )
        for backend, where in {
            "torch": tiny("qwen2"),
            "onnxruntime": bundle,
            "torchscript": bundle,
            "llamacpp": bundle,
        }.items()
    }
    assert all(text == texts["torch"] for text in texts.values()), texts
    assert answer(monkeypatch, capsys, "inspect", bundle)["kind"] == "bundle"
    assert answer(monkeypatch, capsys, "inspect", bundle / "onnx" / "model.onnx")["nodes"] > 10
    assert answer(monkeypatch, capsys, "inspect", bundle / "gguf" / "model-f32.gguf")["types"]["F32"] > 10
    assert answer(monkeypatch, capsys, "inspect", tiny("qwen2"))["task"] == "text-generation"


def test_a_changed_file_turns_the_check_red(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    answer(monkeypatch, capsys, "export", tiny("bert"), "--to", "onnx", "--out", bundle)
    data = bundle / "onnx" / "model.onnx_data"
    content = bytearray(data.read_bytes())
    content[len(content) // 2 + 3] ^= 0x40  # the top byte of some float: far from what it was
    data.write_bytes(content)
    capsys.readouterr()
    assert run(monkeypatch, "check", bundle, "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["same"] is False
    assert any("model.onnx_data" in result["case"] for result in report["results"] if not result["pass"])


def test_all_says_why_a_form_is_missing(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = answer(monkeypatch, capsys, "export", tiny("bert_ner"), "--out", tmp_path / "bundle")
    assert "token-classification" in written["missing"]["gguf"]


def test_a_checkpoint_runs_on_a_backend_that_needs_an_export(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ISOFORM_CACHE", str(tmp_path / "cache"))
    question = ("run", "fill-mask", tiny("bert"), "The [MASK] sees a dog.")
    torch_answer = answer(monkeypatch, capsys, *question, "--backend", "torch")
    ort_answer = answer(monkeypatch, capsys, *question, "--backend", "onnxruntime")
    assert [a["token"] for a in torch_answer[0]] == [a["token"] for a in ort_answer[0]]
    (cached,) = (tmp_path / "cache").iterdir()
    before = (cached / "isoform.json").stat().st_mtime_ns
    answer(monkeypatch, capsys, *question, "--backend", "onnxruntime")
    assert (cached / "isoform.json").stat().st_mtime_ns == before


def test_tables_are_printed_for_people(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (("models",), ("backends",), ("inspect", tiny("bert"))):
        assert run(monkeypatch, *command) == 0
        assert len(capsys.readouterr().out.splitlines()) > 3
    assert run(monkeypatch, "export", tiny("bert"), "--to", "onnx", "--out", tmp_path / "b") == 0
    assert "the same" in capsys.readouterr().out


def test_every_backend_says_whether_it_is_ready(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    states = {state["backend"]: state for state in answer(monkeypatch, capsys, "backends")}
    assert states.keys() == {"torch", "torchscript", "onnxruntime", "openvino", "llamacpp"}
    assert all(state["ready"] for state in states.values())


def test_no_command_shows_the_help_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch) == 2
    printed = capsys.readouterr()
    assert "export" in printed.out
    assert printed.err == ""


@pytest.mark.parametrize("json", [False, True])
def test_a_reader_that_has_read_enough_is_no_error(json: bool) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(0.2); from isoform.cli import main; main()", "models"]
    with subprocess.Popen(command + ["--json"] * json, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_the_module_is_on_a_device_that_is_there(tiny: Tiny) -> None:
    import torch

    with pytest.raises(InputError, match="tpu"):
        api.load(tiny("llama"), device="tpu")
    with pytest.raises(InputError, match="int8"):
        api.load(tiny("llama"), dtype=torch.int8)
    if not torch.cuda.is_available():
        with pytest.raises(BackendUnavailable, match="cpu"):
            api.load(tiny("llama"), device="cuda")


def test_options_have_their_names_and_dtypes_torchs_too(tiny: Tiny, tmp_path: Path) -> None:
    half = api.load(tiny("llama"), dtype="float16").get_parameter("embed.weight")
    assert str(half.dtype) == "torch.float16"
    with pytest.raises(InputError, match="there is no option 'revison'; a checkpoint is opened with revision, token"):
        api.load(tiny("llama"), revison="main")
    with pytest.raises(InputError, match="there is no option 'formats'"):
        api.export(tiny("llama"), tmp_path / "out", formats="gguf")
    assert not (tmp_path / "out").exists()


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['isoform', '--help']\nfrom isoform.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = ('torch', 'numpy', 'onnx', 'onnxruntime', 'tokenizers')\n"
        "print([m for m in heavy if m in sys.modules], file=sys.stderr)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert time.perf_counter() - start < 30  # a hang, not a measurement
    assert done.stderr.strip() == "[]"
    assert "export" in done.stdout


def test_a_bundle_runs_in_the_dtype_it_was_written_in(tiny: Tiny, tmp_path: Path) -> None:
    api.export(tiny("bert"), tmp_path / "bundle", to="onnx", check=False)
    with pytest.raises(InputError, match="f16"):
        api.pipeline("fill-mask", tmp_path / "bundle", dtype="f16")


def test_the_target_is_looked_at_before_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(InputError, match="taken"):
        api.export("no/such-model", "~/taken")
