"""Optimal transport: Sinkhorn's iterations equal those over logarithms in float64, in torch, TorchScript and ONNX."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from isoform.exporters.onnx.operators.registry import PORTABLE
from isoform.exporters.onnx.translate import translate
from isoform.exporters.tracing import trace
from isoform.reference.modules import ops
from isoform.signature import BATCH, Port, Signature
from tests.exporters.onnx.test_files import session

STEPS = 100
EXACT = 2e-6  # products of exponentials
LOGARITHMS = 5e-5  # sums of logarithms up to 200, whose last bit is 1.5e-5
SIGNATURE = Signature(
    (
        Port("scores", "float", (BATCH, "rows", "columns")),
        Port("dustbin", "float", ()),
        Port("source", "float", (BATCH, "rows")),
        Port("target", "float", (BATCH, "columns")),
    ),
    (Port("mass", "float", (BATCH, "rows", "columns")),),
)


class Transport(nn.Module):
    """The dustbin of each side can take all that the other has."""

    def forward(self, scores: Tensor, dustbin: Tensor, source: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        return (ops.transport(scores, dustbin, *masses(source, target), STEPS),)


def masses(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    sums = source.sum(1, keepdim=True), target.sum(1, keepdim=True)
    return torch.cat((source, sums[1]), 1), torch.cat((target, sums[0]), 1)


def case(spread: float, rows: int = 9, columns: int = 13, batch: int = 2) -> tuple[Tensor, ...]:
    """Scores so far apart; a pair of the first picture is hidden, and a column of it has no mass."""
    scores = torch.randn(batch, rows, columns, generator=torch.Generator().manual_seed(int(spread))) * spread
    scores[0, 1], scores[0, :, 2] = (torch.finfo(torch.float32).min for _ in range(2))
    source, target = torch.ones(batch, rows), torch.ones(batch, columns)
    target[0, 3] = 0
    return scores, torch.tensor(1.3), source, target


def by_logarithms(scores: Tensor, dustbin: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """The definition, in float64."""
    scores, dustbin, source, target = (x.double() for x in (scores, dustbin, *masses(source, target)))
    every = torch.nn.functional.pad(scores, (0, 1, 0, 1))
    every[:, -1], every[:, :, -1] = dustbin, dustbin
    f, g = torch.zeros_like(source), (target > 0).double().log()
    for _ in range(STEPS):
        f = source.log() - torch.logsumexp(every + g.unsqueeze(1), 2)
        g = target.log() - torch.logsumexp(every + f.unsqueeze(2), 1)
    return (every + f.unsqueeze(2) + g.unsqueeze(1)).exp()[:, :-1, :-1]


@cache
def scripted() -> Any:
    return torch.jit.trace(Transport(), case(2, 3, 4, 1))


@cache
def graph() -> Any:
    """Compiled from a trace of other sizes."""
    made, _ = translate(trace(Transport(), SIGNATURE, torch.float32), SIGNATURE, torch.float32, {}, PORTABLE)
    kinds = [node.op_type for node in made.graph.node]
    assert kinds.count("Loop") == 1
    assert len(made.SerializeToString()) < 8000
    return session(made.SerializeToString())


def run(form: str, given: tuple[Tensor, ...]) -> Tensor:
    if form == "onnx":
        feed = {port.name: x.numpy() for port, x in zip(SIGNATURE.inputs, given, strict=True)}
        return torch.from_numpy(graph().run(None, feed)[0])
    result: Tensor = (scripted() if form == "torchscript" else Transport())(*given)[0]
    return result


@pytest.mark.parametrize("form", ["torch", "torchscript", "onnx"])
@pytest.mark.parametrize("spread", [1, 10, 200])
def test_the_iterations_are_those_over_logarithms(form: str, spread: float) -> None:
    """With scores of 200 the exponentials leave float32, and the other branch runs."""
    given = case(spread)
    found, want = run(form, given), by_logarithms(*given)
    assert torch.isfinite(found).all()
    assert float((found - want).abs().max()) < (LOGARITHMS if spread > 100 else EXACT)
    assert float(want.max()) > 0.05
    assert not found[0, 1].any()
    assert not found[0, :, 2].any()
    assert not found[0, :, 3].any()


def test_both_branches_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    given = case(3)
    first = run("torch", given)
    monkeypatch.setattr(ops, "kernel_bounds", lambda: (-1e30, 0.0, 1e-25))
    second = run("torch", given)
    assert not torch.equal(first, second)
    torch.testing.assert_close(first, second, rtol=0, atol=2e-6)


def test_masses_are_kept() -> None:
    scores, dustbin, source, target = case(5)
    found = run("torch", (scores, dustbin, source, target)).double()
    assert (found.sum(2) <= source + 1e-5).all()
    assert (found.sum(1) <= target + 1e-5).all()


def test_halves_are_computed_in_float32() -> None:
    given = tuple(x.half() for x in case(2))
    found = run("torch", given)
    assert found.dtype == torch.float16
    scores = given[0].float().masked_fill(torch.isinf(given[0]), torch.finfo(torch.float32).min)
    want = by_logarithms(scores, *(x.float() for x in given[1:]))
    assert float((found.double() - want).abs().max()) < 1e-3
    assert np.isfinite(found.numpy()).all()
