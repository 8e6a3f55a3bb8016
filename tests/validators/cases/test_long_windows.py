"""A window that no short row outgrows gets a row of its own, and a fault in it is seen."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from isoform.exporters import gguf, onnx
from isoform.reference.model import Model, open_model
from isoform.runtimes.open import open_session
from isoform.validators.cases import text
from isoform.validators.cases.case import STEPS
from isoform.validators.cases.text import token_cases
from isoform.validators.levels.graph import check_graph
from isoform.validators.truth.reference import Truth
from tests.oracle import tiny
from tests.validators.torch_session import TorchSession

WINDOW = 70


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = Path(shutil.copytree(tiny("gemma3_b"), tmp_path_factory.mktemp("window") / "model"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"sliding_window": WINDOW}
    (folder / "config.json").write_text(json.dumps(config))
    return open_model(folder)


@pytest.fixture(scope="module")
def truth(model: Model) -> Truth:
    return Truth(model, [case for case in token_cases(model) if case.group == "past the window"])


def test_there_is_one_case_and_it_asks_for_few_logits(truth: Truth) -> None:
    [case] = truth.cases
    [row] = case.rows
    assert case.name == f"past the window, of {WINDOW}, 1 row, chunks {WINDOW + 1} 1 1 {STEPS - 2}"
    assert len(row) == WINDOW + STEPS + 1
    assert truth.outputs(row)[0].shape[0] == row.asked == STEPS + 1
    assert truth.outputs(row)[1].shape[1] == len(row)


def test_a_dear_row_is_left_out(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "AFFORDABLE", 1000)
    assert not any(case.group == "past the window" for case in token_cases(model))


def test_honest_forms_pass_it(model: Model, truth: Truth, tmp_path: Path) -> None:
    [first] = onnx.write(model, tmp_path, "f32", lambda *_: None)
    [second] = gguf.write(model, tmp_path, ["f32"])
    for artifact, backend in ((first, "onnxruntime"), (second, "llamacpp")):
        path = tmp_path / artifact.files[0].path
        with open_session(path, backend, signature=model.signature, strict=True, threads=1) as session:
            assert check_graph(model, session, truth=truth).same


@pytest.mark.parametrize("window", [None, WINDOW + 1])
def test_a_window_that_is_ignored_or_one_too_long_is_seen(model: Model, truth: Truth, window: int | None) -> None:
    module = model.module()
    kinds: Any = module.kinds
    module.kinds = tuple(dataclasses.replace(kind, window=kind.window and window) for kind in kinds)  # type: ignore[assignment]
    assert not check_graph(model, TorchSession(model, module), truth=truth).same
    assert check_graph(model, TorchSession(model), truth=truth).same
