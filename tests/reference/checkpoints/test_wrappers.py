"""What programs put around a model's keys is taken off or named; adapters and lone shards say what they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from isoform.errors import CheckpointError
from isoform.exporters.bundle import export
from isoform.manifest import Manifest
from isoform.reference.model import open_model
from isoform.validators.tools.inspection import inspect
from tests.cli.test_bad_input import run
from tests.oracle import tiny

Keys = Callable[[str], str]
WEIGHTS = "model.safetensors"


def renamed(name: str, folder: Path, change: Keys, **more: Tensor) -> Path:
    """A copy of a tiny checkpoint with other keys, and more of them."""
    copy = Path(shutil.copytree(tiny(name), folder / name))
    held = {change(key): tensor.clone() for key, tensor in load_file(copy / WEIGHTS).items()}
    save_file(held | more, copy / WEIGHTS)
    return copy


def logits(folder: Path) -> Tensor:
    module: Any = open_model(folder).module()
    found: Tensor = module(torch.arange(5, 17).view(1, -1))[0]
    return found


WRAPPERS: dict[str, Keys] = {
    "_orig_mod.": lambda key: f"_orig_mod.{key}",
    "module.": lambda key: f"module.{key}",
    "module._orig_mod.": lambda key: f"module._orig_mod.{key}",
    "base_model.model.": lambda key: f"base_model.model.{key}",
    "language_model.": lambda key: f"language_model.{key}",
    "model.language_model.": lambda key: key.replace("model.", "model.language_model.", 1),
    "model.": lambda key: f"model.{key}",
    "_forward_module.": lambda key: f"_forward_module.model.{key}",
    "_orig_mod. of every layer": lambda key: key.replace("self_attn.", "_orig_mod.self_attn."),
}


@pytest.mark.parametrize("name", ["llama", "llama_b", "bert_seqcls", "qwen2"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_is_taken_off(name: str, wrapper: str, tmp_path: Path) -> None:
    if "bert" in name and ("language_model" in wrapper or "layer" in wrapper):
        wrapper = "module."
    folder = renamed(name, tmp_path, WRAPPERS[wrapper])
    torch.testing.assert_close(logits(folder), logits(tiny(name)))  # another alignment, another kernel
    (note,) = open_model(folder).notes
    assert "is taken off its keys" in note
    assert not open_model(tiny(name)).notes


def test_a_value_head_is_left_out_with_a_note(tmp_path: Path) -> None:
    head = {"v_head.summary.weight": torch.ones(1, 64), "v_head.summary.bias": torch.zeros(1)}
    folder = renamed("llama", tmp_path, lambda key: key, **head)
    torch.testing.assert_close(logits(folder), logits(tiny("llama")))  # another alignment, another kernel
    note = "v_head.summary.bias, v_head.summary.weight left out: the value head"
    assert note in inspect(str(folder))["notes"]
    out = tmp_path / "out"
    export(open_model(folder), ["torchscript"], out)
    assert note in Manifest.read(out).notes[0]
    assert note in inspect(str(out))["notes"]


def test_one_parameter_under_two_names_is_refused(tmp_path: Path) -> None:
    folder = renamed("llama", tmp_path, lambda key: key, **{"module.model.norm.weight": torch.ones(64)})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight and module\.model\.norm\.weight are the same"):
        open_model(folder).module()


def test_an_adapter_that_is_not_merged_is_named(tmp_path: Path) -> None:
    def wrapped(key: str) -> str:
        return f"base_model.model.{key.replace('q_proj.', 'q_proj.base_layer.')}"

    lora = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.ones(2, 64)}
    with pytest.raises(CheckpointError, match=r"of a PEFT adapter that is not merged; merge it \(merge_and_unload\)"):
        open_model(renamed("llama", tmp_path, wrapped, **lora)).module()


@pytest.mark.parametrize("config", [True, False])
def test_an_adapter_folder_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: bool) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": "meta-llama/Llama-3.2-1B"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    save_file({"base_model.model.x.lora_A.weight": torch.ones(2, 2)}, tmp_path / "adapter_model.safetensors")
    if config:
        shutil.copyfile(tiny("llama") / "config.json", tmp_path / "config.json")
    message = (
        r"is a PEFT adapter of meta-llama/Llama-3\.2-1B, not a model: .* `isoform lora .* --base MODEL`, or merge it"
    )
    with pytest.raises(CheckpointError, match=message):
        open_model(tmp_path)
    assert run(monkeypatch, "inspect", tmp_path) == 2


def sharded(folder: Path, ending: str = "safetensors") -> Path:
    """Two shards without their index."""
    copy = Path(shutil.copytree(tiny("llama"), folder / "llama"))
    held = load_file(copy / WEIGHTS)
    (copy / WEIGHTS).unlink()
    keys = sorted(held)
    for n, part in enumerate((keys[::2], keys[1::2]), 1):
        tensors = {key: held[key].clone() for key in part}
        if ending == "bin":
            torch.save(tensors, copy / f"pytorch_model-{n:05}-of-00002.bin")
        else:
            save_file(tensors, copy / f"model-{n:05}-of-00002.safetensors")
    return copy


def test_all_shards_open_without_their_index(tmp_path: Path) -> None:
    torch.testing.assert_close(logits(sharded(tmp_path)), logits(tiny("llama")))  # another alignment, another kernel


def test_one_shard_of_several_is_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    (folder / "model-00002-of-00002.safetensors").unlink()
    message = r"holds model-00001-of-00002\.safetensors, one of 2 shards of a model, without model-00002-of-00002"
    with pytest.raises(CheckpointError, match=message):
        open_model(folder)
    with pytest.raises(CheckpointError, match=r"one of 2 shards of a model, without their index"):
        open_model(sharded(tmp_path / "pickled", "bin"))


def test_weights_under_another_name_are_named(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("llama"), tmp_path / "llama"))
    (folder / WEIGHTS).rename(folder / "consolidated.safetensors")
    with pytest.raises(
        CheckpointError, match=r"it holds consolidated\.safetensors: if that is the whole model, call it"
    ):
        open_model(folder)


@pytest.mark.parametrize("name", ["state_dict", "model_state_dict", "model", "module"])
def test_the_file_of_a_training_loop_is_read(tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(tiny("llama"), tmp_path / "llama"))
    held = {f"model.{key}" if name == "state_dict" else key: x for key, x in load_file(folder / WEIGHTS).items()}
    (folder / WEIGHTS).unlink()
    torch.save({"epoch": 3, "lr": [0.1], name: held}, folder / "pytorch_model.bin")
    torch.testing.assert_close(logits(folder), logits(tiny("llama")))  # another alignment, another kernel
