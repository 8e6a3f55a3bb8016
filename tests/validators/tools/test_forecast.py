"""Float16 is forecast from the reference: a model that is scaled to overflow is caught before it is exported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from isoform import api
from isoform.reference.model import Model, open_model
from isoform.validators.report.remarks import remarks
from isoform.validators.tools.forecast import LARGEST, Forecast, Peak, float16
from tests.oracle import tiny


def scaled(folder: Path, name: str, changes: dict[str, Callable[[Tensor], Tensor]]) -> Model:
    """A copy of a tiny checkpoint with some tensors changed."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny(name), folder)
    tensors = load_file(folder / "model.safetensors")
    for key, change in changes.items():
        tensors[key] = change(tensors[key]).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return open_model(folder)


def places(found: Forecast) -> list[tuple[str, str]]:
    return [(peak.place, peak.kind) for peak in found.overflows]


@pytest.mark.parametrize("name", ["bert", "llama", "gemma2_b", "blip_vqa", "rt_detr_v2"])
def test_an_ordinary_model_fits(name: str) -> None:
    found = float16(open_model(tiny(name)))
    assert not (found.overflows or found.near or found.keep_wide)
    assert found.tokens > 50
    assert "fits into float16" in str(found)
    assert {peak.kind for peak in found.peaks} == {"input", "output", "scores", "squares"}


def test_the_product_of_an_mlp_is_named(tmp_path: Path) -> None:
    up = {
        "model.layers.1.mlp.up_proj.weight": lambda x: x * 3e4,
        "model.layers.1.mlp.down_proj.weight": lambda x: x / 3e4,
    }
    found = float16(scaled(tmp_path / "model", "llama", up))
    assert places(found)[0] == ("layers.1.mlp.up", "output")
    assert ("layers.1.mlp.down", "input") in places(found)
    assert "layers.0.mlp.down" not in found.keep_wide
    assert "overflows float16 at layers.1.mlp.up" in str(found)


def test_scores_overflow_though_no_module_does(tmp_path: Path) -> None:
    """Gemma's cap hides scores from every module's output."""
    keys = [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qk"]
    found = float16(scaled(tmp_path / "model", "gemma2_b", dict.fromkeys(keys, lambda x: x * 200)))
    assert places(found) == [("layers.0.attention", "scores")]
    assert torch.isfinite(torch.tensor(found.overflows[0].largest))


def test_weights_that_float16_cannot_hold_are_named(tmp_path: Path) -> None:
    found = float16(scaled(tmp_path / "model", "llama", {"model.norm.weight": lambda x: x * 1e6}))
    assert ("norm.weight", "weight") in places(found)


def test_squares_in_a_norm_are_measured_and_forgiven(tmp_path: Path) -> None:
    """Every exporter computes norms in float32."""
    found = float16(scaled(tmp_path / "model", "llama", {"model.embed_tokens.weight": lambda x: x * 300}))
    squares = [peak for peak in found.peaks if peak.kind == "squares" and peak.place == "layers.0.attn_norm"]
    assert squares[0].verdict == "overflows"
    assert found.overflows == []


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (LARGEST + 1, "overflows"),
        (float("inf"), "overflows"),
        (float("nan"), "overflows"),
        (1e4, "near"),
        (1e3, "fits"),
    ],
)
def test_verdicts(value: float, verdict: str) -> None:
    assert Peak("x", "output", value).verdict == verdict
    json.dumps(Peak("x", "output", value).to_json(), allow_nan=False)


def test_an_export_to_f16_warns_before_it_fails(tmp_path: Path) -> None:
    up = {
        "model.layers.1.mlp.up_proj.weight": lambda x: x * 3e4,
        "model.layers.1.mlp.down_proj.weight": lambda x: x / 3e4,
    }
    model = scaled(tmp_path / "model", "llama", up)
    _, report = api.export_and_check(model.checkpoint.folder, tmp_path / "out", to="onnx", dtype="f16")
    assert report is not None
    assert any(r.kind == "WARNING" and "layers.1.mlp.up" in r.text for r in remarks(report))
    assert not report.same


def test_the_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from isoform.cli import app

    run = CliRunner().invoke(app, ["forecast", str(tiny("llama")), "--json"])
    assert run.exit_code == 0
    assert json.loads(run.stdout)["fits"] is True
    model = scaled(tmp_path / "model", "llama", {"model.layers.0.mlp.up_proj.weight": lambda x: x * 1e5})
    run = CliRunner().invoke(app, ["forecast", str(model.checkpoint.folder)])
    assert run.exit_code == 1
    assert "overflows" in run.stdout
