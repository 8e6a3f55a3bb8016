"""Which tensors and metadata differ, piece by piece, under canonical or the files' own names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from isoform.errors import CheckpointError
from isoform.validators.tools.diff import diff
from tests import oracle
from tests.validators.check.test_bundle import write


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("llama", tmp_path_factory.mktemp("bundles") / "llama")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return Path(shutil.copytree(oracle.tiny("llama"), tmp_path / "other"))


def edit(folder: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name, value in changes.items():
        tensors.pop(name.replace("_DOT_", "."), None)
        if value is not None:
            tensors[name.replace("_DOT_", ".")] = value
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("form", ["onnx", "torchscript", "gguf:f32"])
def test_every_form_holds_the_checkpoint_s_tensors(bundle: Path, form: str) -> None:
    found = diff(str(oracle.tiny("llama")), f"{bundle}::{form}")
    assert found.same, found.to_json()
    assert found.equal > 10
    assert "cannot be compared" in found.notes[0]


def test_heads_of_other_tasks_count_between_checkpoints_only(tmp_path: Path) -> None:
    source = oracle.tiny("bert_embed")
    folder = write("bert_embed", tmp_path / "out", types=("f32",))
    assert diff(str(source), f"{folder}::gguf").same
    assert diff(str(source), str(source)).same


def test_a_quantized_form_differs_by_little(bundle: Path) -> None:
    found = diff(f"{bundle}::gguf:f32", f"{bundle}::gguf:q8_0")
    change = next(c for c in found.changed if c.name == "layers.0.mlp.down.weight")
    assert change.dtypes == ("float32", "Q8_0")
    assert change.rms is not None
    assert 0 < change.rms < 0.01
    assert [key for key, *_ in found.metadata] == ["general.file_type"]


def test_values_shapes_tensors_and_settings_are_named(other: Path) -> None:
    weights = load_file(other / "model.safetensors")
    changed = weights["model.norm.weight"].clone()
    changed[3] += 0.5
    edit(other, model_DOT_norm_DOT_weight=changed)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    found = diff(str(oracle.tiny("llama")), str(other))
    (change,) = found.changed
    assert (change.name, change.differing) == ("norm.weight", 1)
    assert change.max_abs == pytest.approx(0.5)
    assert [(key, new) for key, _, new in found.metadata] == [("config.json.rms_norm_eps", "0.5")]
    edit(other, model_DOT_norm_DOT_weight=changed[:-1], extra=torch.zeros(2), lm_head_DOT_weight=None)
    raw = diff(str(oracle.tiny("llama")), str(other), raw=True)
    assert raw.added == ["extra"]
    assert [(c.name, c.differing) for c in raw.changed] == [("model.norm.weight", None)]
    assert all(name.startswith(("model.", "lm_head")) for name in raw.removed)


def test_an_unknown_model_is_compared_under_its_own_names(other: Path, tmp_path: Path) -> None:
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "unheard", "architectures": ["Unheard"]}))
    found = diff(str(other), str(other))
    assert found.same
    assert "own names" in found.notes[0]
    same = diff(str(other / "model.safetensors"), str(oracle.tiny("llama") / "model.safetensors"))
    assert same.same
    assert same.equal > 10


def test_a_zero_with_another_sign_and_nan_are_seen_and_nan_is_itself(tmp_path: Path) -> None:
    one = {"x": torch.tensor([0.0, float("nan"), 1.0]), "s": torch.tensor(2.0), "e": torch.zeros(0, 3)}
    two = {**one, "x": torch.tensor([-0.0, float("nan"), 1.0])}
    save_file(one, tmp_path / "a.safetensors")
    save_file(two, tmp_path / "b.safetensors")
    assert diff(str(tmp_path / "a.safetensors"), str(tmp_path / "a.safetensors")).equal == 3
    found = diff(str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"))
    assert [(c.name, c.differing) for c in found.changed] == [("x", 1)]
    json.dumps(found.to_json(), allow_nan=False)


def test_gguf_files_are_compared_under_llamacpp_s_names(bundle: Path) -> None:
    path = bundle / "gguf" / "model-q8_0.gguf"
    found = diff(str(path), str(path), raw=True)
    assert found.same
    assert found.equal > 10


def test_a_broken_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nonsense" * 10)
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        diff(str(tmp_path / "x.safetensors"), str(tmp_path / "x.safetensors"))
