"""What genai_config.json says, without the client that reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from isoform.demo import packaged_model
from isoform.exporters import onnx
from isoform.exporters.onnx.genai import LENGTH, NAME
from isoform.reference.model import open_model
from tests.oracle import tiny


def written(source: Path, folder: Path) -> dict[str, Any]:
    (artifact,) = onnx.write(open_model(source), folder, "f32", lambda *_: None)
    assert [file.path for file in artifact.files][2:] == [NAME]
    assert artifact.files[2].size == (folder / NAME).stat().st_size
    read: dict[str, Any] = json.loads((folder / NAME).read_text())
    return read


@pytest.mark.parametrize(("name", "in_place"), [("llama", True), ("gemma2", True), ("qwen2", False)])
def test_a_cache_is_shared_where_the_kernel_writes_in_place(tmp_path: Path, name: str, in_place: bool) -> None:
    config, model = written(tiny(name), tmp_path), open_model(tiny(name))
    assert config["search"]["past_present_share_buffer"] is in_place
    assert config["search"]["max_length"] <= min(LENGTH, config["model"]["context_length"])
    decoder = config["model"]["decoder"]
    assert (tmp_path / decoder["filename"]).is_file()
    assert (
        decoder["num_hidden_layers"],
        decoder["num_key_value_heads"],
        decoder["head_size"],
    ) == model.signature.layout()


def test_generation_settings_go_into_it(tmp_path: Path) -> None:
    source = tmp_path / "model"
    shutil.copytree(tiny("llama"), source)
    settings = {"eos_token_id": [7, 9], "do_sample": True, "top_k": 5, "temperature": 0.5, "cache_implementation": "x"}
    (source / "generation_config.json").write_text(json.dumps(settings))
    config = written(source, tmp_path / "out")
    assert config["model"]["eos_token_id"] == [7, 9]
    assert config["model"]["pad_token_id"] == 7  # any would do that is no word: batches are padded with it
    assert "bos_token_id" not in config["model"]
    assert {name: config["search"][name] for name in ("do_sample", "top_k", "temperature")} == {
        "do_sample": True,
        "top_k": 5,
        "temperature": 0.5,
    }
    assert "cache_implementation" not in config["search"]


def test_an_encoder_has_none(tmp_path: Path) -> None:
    (artifact,) = onnx.write(open_model(packaged_model()), tmp_path, "f32", lambda *_: None)
    assert len(artifact.files) == 2
    assert not (tmp_path / NAME).exists()
