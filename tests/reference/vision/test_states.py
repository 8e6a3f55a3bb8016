"""Towers up to the state after a layer: transformers' hidden states, and every weight of the others accounted for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from isoform.errors import CheckpointError
from isoform.reference.card import Family, Task
from isoform.reference.model import Model, open_model
from isoform.reference.multimodal import siglip
from isoform.reference.vision.clip_vision import ClipVision
from isoform.reference.vision.dinov2 import Dinov2
from isoform.reference.vision.patches import layers_before, left_out, pixels
from isoform.reference.vision.vit import ViT
from isoform.signature import BATCH, Port, Signature
from tests.oracle import tiny

BUILDS: dict[str, Callable[[Any, int], nn.Module]] = {
    "clip": lambda c, state: ClipVision(c.vision, state),
    "siglip": lambda c, state: siglip.Vision(c.vision, state),
    "dinov2": lambda c, state: Dinov2(c, False, state),
    "dinov2_registers": lambda c, state: Dinov2(c, False, state),
    "vit_b": lambda c, state: ViT(c, False, state),
}
ABOVE = {"clip": ("norm",), "siglip": ("norm", "pool"), "vit_b": ("norm", "pooler")}


class Tower(nn.Module):
    """The vision tower alone, where the family has it, or as the whole model."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.vision = tower

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        found = self.vision(pixel_values)
        return found if isinstance(found, tuple) else (found,)


def towered(name: str, state: int, carried: Callable[[Any], tuple[str, ...]]) -> Model:
    """The tiny checkpoint's model with one task that reads a state of the vision tower and nothing else."""
    model = open_model(tiny(name))
    nested = name in ("clip", "siglip")

    def build(c: Any) -> nn.Module:
        module = BUILDS[name](c, state)
        return Tower(module) if nested else module

    def signature(c: Any) -> Signature:
        v = c.vision if nested else c
        states = Port("last_hidden_state", "float", (BATCH, "tokens", v.hidden_size))
        return Signature((pixels(v.num_channels, v.image_size),), (states,))

    task = Task(
        name="states", architectures=model.task.architectures, build=build, signature=signature, carried=carried
    )
    family: Family = dataclasses.replace(model.family, tasks=(*model.family.tasks, task))
    return dataclasses.replace(model, family=family, task=task)


def unused(name: str, state: int) -> Callable[[Any], tuple[str, ...]]:
    def modules(c: Any) -> tuple[str, ...]:
        v = getattr(c, "vision", c)
        found = left_out(state, v.num_hidden_layers, *ABOVE.get(name, ("norm",)))
        if v is c:
            return (*found, "mask")
        others = ("text", "text_projection", "vision_projection", "logit_scale", "logit_bias")
        return (*(f"vision.{module}" for module in found), *others)

    return modules


@pytest.mark.parametrize("state", [0, 1, -2])
@pytest.mark.parametrize("name", BUILDS)
def test_a_state_is_that_of_transformers(name: str, state: int) -> None:
    from transformers import AutoModel

    model = towered(name, state, unused(name, state))
    theirs = AutoModel.from_pretrained(tiny(name)).eval()
    theirs = getattr(theirs, "vision_model", theirs)
    size = [axis for axis in model.signature.inputs[0].axes if isinstance(axis, int)]
    pictures = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        (got,) = model.module()(pictures)
        expected = theirs(pictures, output_hidden_states=True).hidden_states[state]
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", BUILDS)
def test_what_a_tower_leaves_out_is_not_read_and_is_saved(name: str, tmp_path: Path) -> None:
    model = towered(name, -2, unused(name, -2))
    tower = [key for key in model.all_weights if name not in ("clip", "siglip") or key.startswith("vision.")]
    unread = {key.partition("layers.")[2].partition(".")[0] for key in tower if key not in model.weights}
    assert len(unread - {""}) == 1, "the last layer is not read"
    model.save(tmp_path / "saved")
    stored, saved = (load_file(folder / "model.safetensors") for folder in (tiny(name), tmp_path / "saved"))
    assert stored.keys() == saved.keys()
    assert all(torch.equal(stored[key], saved[key]) for key in stored)


@pytest.mark.parametrize("name", BUILDS)
def test_a_weight_that_is_neither_read_nor_carried_is_an_error(name: str) -> None:
    model = towered(name, -2, lambda c: tuple(m for m in unused(name, -2)(c) if not m.endswith("norm")))
    with pytest.raises(CheckpointError, match="no place for"):
        _ = model.weights


def test_states_count_from_both_ends() -> None:
    assert [layers_before(state, 4) for state in (0, 1, 4, -1, -2, -5)] == [0, 1, 4, 4, 3, 0]
    for state in (5, -6):
        with pytest.raises(CheckpointError, match="tower of 4 layers"):
            layers_before(state, 4)
    assert left_out(-2, 4, "norm") == ("layers.3", "norm")
