"""Cells of a matrix: each in its own process, in a stable order, and a dead one is run again and named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from isoform.errors import InputError
from isoform.validators.check.matrix import Cell, make_cells, read_cell, run_cell, run_cells, write_cell
from isoform.validators.check.settings import Block, Settings
from isoform.validators.report import formats as reports
from isoform.validators.report.records import Report, Result
from tests import oracle

# Stands for `isoform check --cell`: sleeps or dies as the cell's model says, then writes a report.
STUB = """
import json, os, pathlib, signal, sys, time
path = pathlib.Path(sys.argv[1])
cell = json.loads(path.read_text())
kind, _, rest = cell["model"].partition(":")
state = path.with_suffix(".tries")
tries = int(state.read_text()) + 1 if state.exists() else 1
state.write_text(str(tries))
if kind == "dies" and tries <= int(rest):
    print("the last line", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(float(rest) if kind == "sleeps" else 0)
report = {"schema_version": 2, "same": True, "results": [
    {"model": cell["label"], "backend": "torch", "form": "onnx", "dtype": "f32", "level": "graph", "group": "x",
     "case": "x", "metric": "rms", "value": 0, "limit": 1, "pass": True}]}
pathlib.Path(str(path).replace(".cell.json", ".json")).write_text(json.dumps(report))
"""


def stub(path: Path) -> list[str]:
    return [sys.executable, "-S", "-c", STUB, str(path)]


def cell(model: str, **options: Any) -> Cell:
    return Cell(label=model, model=model, format="onnx", quantization="f32", **options)


def test_results_are_in_the_order_of_the_cells_whichever_ends_first() -> None:
    seen: list[tuple[str, int, int]] = []
    cells = [cell("sleeps:0.6"), cell("sleeps:0.1"), cell("quick")]
    report = run_cells(cells, jobs=3, command=stub, progress=lambda *step: seen.append(step))
    assert [result.model for result in report.results] == [one.label for one in cells]
    assert report.same
    assert seen[-1] == ("cells", 3, 3)


def test_a_process_that_dies_once_is_run_again_and_named() -> None:
    report = run_cells([cell("dies:1"), cell("quick")], jobs=2, command=stub)
    assert report.same
    (skip,) = report.skipped
    assert "SIGKILL" in skip.reason
    assert "the last line" in skip.reason
    assert skip.model == "dies:1"


def test_a_process_that_dies_twice_is_a_failure_and_the_others_go_on() -> None:
    report = run_cells([cell("dies:9"), cell("quick")], jobs=1, command=stub)
    assert not report.same
    assert [(r.metric, r.passed) for r in report.results] == [("died", False), ("rms", True)]
    assert "twice" in report.results[0].note


def test_memory_bounds_what_runs_at_once(tmp_path: Path) -> None:
    cells = [cell(f"sleeps:0.{n}", bytes=600) for n in (3, 2, 1)]
    start = time.perf_counter()
    run_cells(cells, jobs=3, memory=1000, command=stub)
    assert time.perf_counter() - start > 0.6  # one after the other
    with pytest.raises(InputError, match="--memory allows"):
        run_cells(cells, memory=500, command=stub, folder=tmp_path / "cells")
    assert not (tmp_path / "cells").exists()


def test_reports_that_are_there_are_collected_and_not_made_again(tmp_path: Path) -> None:
    run_cells([cell("quick")], command=stub, folder=tmp_path)
    assert read_cell(tmp_path / "quick-onnx-f32.cell.json").threads >= 1
    report = run_cells([cell("quick")], command=lambda path: pytest.fail("run again"), folder=tmp_path)
    assert report.same


def test_an_interrupt_ends_the_processes_and_theirs(tmp_path: Path) -> None:
    program = (
        "import sys, subprocess, pathlib\n"
        "from isoform.validators.check.matrix import Cell, run_cells\n"
        'inner = \'import subprocess, sys, time; p = subprocess.Popen([sys.executable, "-S", "-c", "import time; '
        'time.sleep(60)"]); print(p.pid, file=open(sys.argv[1], "w"), flush=True); time.sleep(60)\'\n'
        f"command = lambda path: [sys.executable, '-S', '-c', inner, {str(tmp_path / 'pid')!r}]\n"
        "run_cells([Cell(label='a', model='a', format='onnx', quantization='f32')], command=command)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not ((tmp_path / "pid").is_file() and (tmp_path / "pid").read_text().strip()):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    grandchild = int((tmp_path / "pid").read_text())
    while time.monotonic() < deadline:
        try:
            os.kill(grandchild, 0)
        except ProcessLookupError:
            return
        state = Path(f"/proc/{grandchild}/stat")
        if state.is_file() and state.read_text().split(") ")[1][0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the process of a cell's process lives on")


def settings(**options: Any) -> Settings:
    return Settings(folder=oracle.tiny("bert").parent, **options)


def test_a_matrix_is_every_combination_that_there_is() -> None:
    block = Block(models=("bert", "qwen2"), quantizations=("f32", "q8_0"))
    cells, skipped = make_cells(settings(matrix=(block,), seconds=60.0))
    assert [one.name for one in cells] == [
        f"{model} {form} {kind}"
        for model in ("bert", "qwen2")
        for kind, forms in (("f32", ("gguf", "onnx", "torchscript")), ("q8_0", ("gguf", "onnx")))
        for form in forms
    ]
    assert [(skip.model, skip.backend, skip.dtype) for skip in skipped] == [
        ("bert", "torchscript", "q8_0"),
        ("qwen2", "torchscript", "q8_0"),
    ]
    assert all(one.bytes > 0 and one.seconds == 60 for one in cells)
    only, _ = make_cells(settings(matrix=(replace(block, backends=("onnxruntime",), quantizations=("f32",)),)))
    assert [one.format for one in only] == ["onnx", "onnx"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"matrix": (Block(models=("nothing/here",)),)}, "nothing/here"),
        ({"matrix": (Block(models=("bert",), quantizations=("q7_x",)),)}, "q7_x"),
        ({"matrix": (Block(models=("bert", "./bert")),)}, "two cells"),
        ({"matrix": (Block(models=("bert",), formats=("onnx",), backends=("llamacpp",)),)}, "nothing to check"),
        ({"bundles": ("bert",)}, "isoform.json"),
        ({}, "nothing to check"),
    ],
)
def test_a_matrix_that_makes_no_sense_is_wrong_input(options: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match=said) as caught:
        make_cells(settings(**options))
    assert type(caught.value).__module__ == "isoform.errors"


def test_a_cell_exports_checks_and_reports(tmp_path: Path) -> None:
    source = str(oracle.tiny("qwen2"))
    path = write_cell(Cell(label="tiny", model=source, format="gguf", quantization="q8_0"), tmp_path)
    report = run_cell(path)
    assert report.same
    assert {result.model for result in report.results} == {"tiny"}
    assert {r.level for r in report.results} == {"files", "inputs", "weights", "deployment"}
    assert reports.read(tmp_path / "tiny-gguf-q8_0.json").results == report.results


def test_what_a_format_cannot_hold_is_skipped_and_what_is_wrong_fails(tmp_path: Path) -> None:
    source = str(oracle.tiny("bert"))
    refused = run_cell(write_cell(Cell(label="t", model=source, format="gguf", quantization="f32"), tmp_path))
    assert not refused.results
    assert "fill-mask" in refused.skipped[0].reason
    gone = run_cell(write_cell(Cell(label="g", model="/gone", format="onnx", quantization="f32"), tmp_path))
    assert [(r.metric, r.passed) for r in gone.results] == [("error", False)]


@pytest.mark.parametrize("text", ["", "{}", '{"label": "x"}', '{"label": "x", "model": "y", "more": 1}'])
def test_what_is_no_cell_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.cell.json").write_text(text)
    with pytest.raises(InputError, match="no cell"):
        read_cell(tmp_path / "x.cell.json")


def test_a_failed_cell_turns_the_whole_red(tmp_path: Path) -> None:
    bad = Report([Result("torch", "graph", "f32", "x", "x", "rms", 2, 1, False)])
    reports.save(bad, "json", tmp_path / "quick-onnx-f32.json")
    assert not run_cells([cell("quick"), cell("other")], command=stub, folder=tmp_path).same
    json.loads((tmp_path / "other-onnx-f32.json").read_text())
