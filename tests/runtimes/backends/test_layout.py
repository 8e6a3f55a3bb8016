"""Kernels of convolutions lie with their channels last in torch's sessions, and nothing else changes."""

from __future__ import annotations

import torch
from torch import nn

from isoform.reference.model import open_model
from isoform.runtimes.backends.torch.layout import channels_last
from isoform.runtimes.open import open_session
from tests.oracle import tiny


def laid_out(module: nn.Module) -> dict[str, bool]:
    return {
        name: weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
        for name, weight in module.named_parameters()
        if weight.dim() == 4
    }


def test_only_kernels_over_neighbours_are_laid_out() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 6, (1, 3)), nn.Conv2d(6, 8, 8))
    before = [weight.detach().clone() for weight in model.parameters()]
    channels_last(model)
    assert laid_out(model) == {"0.weight": True, "1.weight": False, "2.weight": True, "3.weight": False}
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_session_lays_them_out_and_a_given_module_stays_as_it_is() -> None:
    model = open_model(tiny("superpoint_b"))
    with open_session(model, "torch") as session:
        assert sum(laid_out(session.module).values()) == 9  # type: ignore[attr-defined]
    own = model.module()
    with open_session(model, "torch", module=own) as session:
        assert not any(laid_out(own).values())
