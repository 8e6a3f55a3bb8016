"""`isoform check` and its kin on the command line: files, exit codes, wrong input, no network, action and hook."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as xml

import pytest

from isoform import api
from tests.cli.test_bad_input import refused, run

Tiny = Callable[[str], Path]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests import oracle

    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    api.export_and_check(oracle.tiny("bert"), folder, to="torchscript", check=False)
    return folder


@pytest.fixture
def bundle(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "bundle"))


def damage(bundle: Path) -> None:
    path = bundle / "torchscript" / "model.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)


def test_every_report_is_written_and_a_regression_fails(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("report.xml", "report.md", "report.html", "base.json")
    files = [tmp_path / name for name in names]
    options = ("--junit", files[0], "--markdown", files[1], "--html", files[2], "--write-baseline", files[3])
    assert run(monkeypatch, "check", bundle, "--no-oracle", *options) == 0
    printed = capsys.readouterr()
    assert "the same" in printed.out
    assert re.search(r"about .*, up to .* GB of memory", printed.err)
    assert xml.parse(files[0]).getroot().get("failures") == "0"
    assert "✅ the same" in files[1].read_text(encoding="utf-8")
    assert "<svg" in files[2].read_text(encoding="utf-8")
    assert "evidence" not in json.loads(files[3].read_text(encoding="utf-8"))
    assert run(monkeypatch, "check", bundle, "--no-oracle", "--baseline", files[3]) == 0
    damage(bundle)
    capsys.readouterr()
    assert run(monkeypatch, "check", bundle, "--no-oracle", "--baseline", files[3], "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert any(r["level"] == "baseline" and not r["pass"] for r in report["results"])


def test_isoform_toml_in_the_working_directory_is_checked_cell_by_cell(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    block = f'[[matrix]]\nmodels = ["{tiny("bert")}"]\nformats = ["torchscript"]\n'
    (tmp_path / "isoform.toml").write_text(block)
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "check", "--json", "--jobs", "2") == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert {result["model"] for result in report["results"]} == {"bert"}
    assert {result["backend"] for result in report["results"]} == {"bundle", "torchscript"}
    assert printed.err.startswith("1 cell, up to")


def test_what_is_wrong_is_one_line(
    bundle: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.toml").write_text("[check]\nbugdet = '10m'\n")
    (tmp_path / "not.json").write_text("[]")
    other = tiny("qwen2")
    for arguments, said in (
        (("check",), "isoform.toml is not there"),
        (("check", "--config", "bad.toml"), "did you mean 'budget'"),
        (("check", "--cell", "gone.cell.json"), "not there"),
        (("check", bundle, "--baseline", "gone.json"), "gone.json is not there"),
        (("check", bundle, "--baseline", "not.json"), "no report"),
        (("check", bundle, "--budget", "soon"), "no time"),
        (("check", bundle, "--memory", "4"), "no size"),
        (("check", bundle, "--memory", "1M"), "allow more"),
        (("check", tmp_path), "isoform.json"),
        (("compare", bundle, "gone.gguf"), "not there"),
        (("compare", bundle, other), "other models"),
        (("compare", f"{bundle}::tpu", bundle), "tpu"),
        (("diff", bundle, "gone.onnx"), "not there"),
        (("diff", bundle, tmp_path), "neither a bundle"),
    ):
        assert said in refused(monkeypatch, capsys, *arguments), arguments


def test_compare_and_diff_print_tables_and_json(
    bundle: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "compare", tiny("bert"), bundle) == 0
    assert "the same" in capsys.readouterr().out
    assert run(monkeypatch, "diff", tiny("bert"), bundle) == 0
    assert "equal, 0 changed" in capsys.readouterr().out
    assert run(monkeypatch, "diff", tiny("bert"), tiny("bert_b"), "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["changed"]
    assert found["metadata"]
    assert run(monkeypatch, "diff", tiny("bert"), tiny("bert_b")) == 1


def test_the_schema_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "schema") == 0
    assert json.loads(capsys.readouterr().out)["$id"] == "urn:isoform:report:2"


OFFLINE = """
import socket, sys
def refuse(*_, **__):
    raise RuntimeError("a check reached for the network")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.create_connection = socket.getaddrinfo = refuse
from isoform.cli import main
main()
"""


def test_a_check_needs_no_network(bundle: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    command = [sys.executable, "-c", OFFLINE, "check", str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


def isoform_on_path(folder: Path) -> dict[str, str]:
    """An environment whose `isoform` is this interpreter's."""
    folder.mkdir()
    script = folder / "isoform"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m isoform "$@"\n')
    script.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.parametrize("state", [pytest.param("same", marks=pytest.mark.slow), "damaged", "gone"])
def test_the_action_s_steps_write_outputs_summary_and_reports(bundle: Path, tmp_path: Path, state: str) -> None:
    action = (ROOT / "action" / "action.yml").read_text(encoding="utf-8")
    step = re.findall(r"^      run: (.*)$", action, re.MULTILINE)[-1]
    given = dict(re.findall(r"^        ([A-Z]+): \$\{\{ inputs\.(\w+) \}\}$", action, re.MULTILINE))
    assert {"BUNDLE", "BASELINE", "REPORTS"} <= given.keys()
    if state == "damaged":
        damage(bundle)
    if state == "gone":
        shutil.rmtree(bundle)
    inputs: dict[str, Any] = dict.fromkeys(given, "") | {"BUNDLE": str(bundle), "REPORTS": "out reports"}
    inputs["BASELINE"] = "not-there-yet.json"
    files = {name: str(tmp_path / name) for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    environment = {**isoform_on_path(tmp_path / "bin"), **inputs, **files, "GITHUB_ACTION_PATH": str(ROOT / "action")}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == {"same": 0, "damaged": 1, "gone": 2}[state], done.stdout + done.stderr
    outputs = dict(line.split("=", 1) for line in Path(files["GITHUB_OUTPUT"]).read_text().splitlines())
    assert outputs == {"same": "true" if state == "same" else "false", "reports": "out reports"}
    if state == "gone":
        assert "::error" in done.stdout
        return
    summary = Path(files["GITHUB_STEP_SUMMARY"]).read_text(encoding="utf-8")
    assert ("✅" if state == "same" else "❌") in summary
    assert {path.name for path in (tmp_path / "out reports").iterdir()} == {
        *("report.html", "report.json", "report.md", "report.xml"),
    }
    json.loads((tmp_path / "out reports" / "report.json").read_text(encoding="utf-8"))


def test_the_hook_checks_the_bundles_of_changed_files_and_changes_nothing(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8")
    entry, pattern = (re.search(rf"^  {key}: (.*)$", text, re.MULTILINE) for key in ("entry", "files"))
    assert entry and entry[1] == "isoform check-changed"
    assert pattern and re.search(pattern[1], "models/bundle/torchscript/model.pt")
    before = (bundle / "isoform.json").read_bytes()
    changed = [bundle / "torchscript" / "model.pt", bundle / "isoform.json", tmp_path / "other.pt"]
    assert run(monkeypatch, "check-changed", *changed) == 0
    assert capsys.readouterr().out == ""
    damage(bundle)
    assert run(monkeypatch, "check-changed", *changed) == 1
    assert "not the same" in capsys.readouterr().out
    assert (bundle / "isoform.json").read_bytes() == before


@pytest.mark.slow
def test_pre_commit_itself_runs_the_hook(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("pre_commit", reason="pre-commit is not installed: make test-slow")
    project, hooks = tmp_path / "project", tmp_path / "hooks"
    shutil.copytree(bundle, project / "models")
    hooks.mkdir()
    shutil.copyfile(ROOT / ".pre-commit-hooks.yaml", hooks / ".pre-commit-hooks.yaml")
    environment = {
        **isoform_on_path(tmp_path / "bin"),
        "PRE_COMMIT_HOME": str(tmp_path / "cache"),
        **dict.fromkeys(("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"), "x@y"),
        "GIT_CONFIG_GLOBAL": os.devnull,
    }

    def command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)

    for folder in (hooks, project):
        assert command("git", "init", "-q", cwd=folder).returncode == 0
        command("git", "add", "-A", cwd=folder)
        assert command("git", "commit", "-qm", "x", cwd=folder).returncode == 0
    (project / ".pre-commit-config.yaml").write_text(
        f"repos:\n- repo: {hooks}\n  rev: {command('git', 'rev-parse', 'HEAD', cwd=hooks).stdout.strip()}\n"
        "  hooks:\n  - id: isoform-check\n"
    )
    command("git", "add", "-A", cwd=project)
    run_all = (sys.executable, "-m", "pre_commit", "run", "--all-files")
    done = command(*run_all, cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    damage(project / "models")
    command("git", "add", "-A", cwd=project)
    done = command(*run_all, cwd=project)
    assert done.returncode == 1
    assert "not the same" in done.stdout
