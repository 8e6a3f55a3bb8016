"""Keys and folders that other programs wrote: wrappers are taken off, and what is no model is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import isoform as package
from tests.field.making import Change, copied, isoform, refused
from tests.oracle import tiny


def renamed(change: Callable[[str], str], **more: Tensor) -> Change:
    def to(folder: Path) -> None:
        path = folder / "model.safetensors"
        held = {change(key): tensor.clone() for key, tensor in load_file(path).items()}
        save_file(held | more, path)

    return to


def below(prefix: str) -> Callable[[str], str]:
    return lambda key: prefix + key


WRAPPED: dict[str, Callable[[str], str]] = {
    "two": below("_orig_mod.module."),
    "inside the model": lambda key: key.replace("model.", "model._orig_mod.", 1),
    "around an adapter's": below("base_model.model._orig_mod."),
    "around a layer": lambda key: key.replace("layers.0.", "layers.0._checkpoint_wrapped_module."),
    "around some": lambda key: f"module.{key}" if "layers.0" in key else key,
    "TRL": below("pretrained_model."),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_are_taken_off_and_said(name: str, tmp_path: Path) -> None:
    folder, ids = copied("llama", tmp_path, renamed(WRAPPED[name])), torch.arange(5, 17).view(1, -1)
    torch.testing.assert_close(package.load(str(folder))(ids)[0], package.load(str(tiny("llama")))(ids)[0])
    assert "is taken off its keys" in isoform("inspect", folder, "--json").out


def _shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00002-of-00003.safetensors")


def _adapter(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (renamed(below("policy.")), "all keys are below 'policy.'"),
        (renamed(str, **{"ema.model.norm.weight": torch.ones(64)}), "no rule for ema.model.norm.weight"),
        (_shard, "one of 3 shards of a model"),
        (_adapter, "is a PEFT adapter, not a model"),
    ],
)
def test_keys_and_folders_that_are_no_model_are_named(change: Change, said: str, tmp_path: Path) -> None:
    folder = copied("llama", tmp_path, change)
    assert said in refused("export", folder, "--out", tmp_path / "out")
    assert said in refused("inspect", folder)


def test_a_value_head_beside_a_wrapper_is_left_out_with_a_note(tmp_path: Path) -> None:
    head = {"v_head.summary.weight": torch.ones(1, 64), "v_head.summary.bias": torch.zeros(1)}
    folder = copied("llama", tmp_path, renamed(below("pretrained_model."), **head))
    assert "v_head.summary.weight left out: the value head" in isoform("inspect", folder).out.replace("\n", " ")
