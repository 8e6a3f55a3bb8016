"""Bytes with a scale for each row of activations: what a row gives depends on no other, and nothing is hidden."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from isoform.exporters.onnx.forms import Channels
from isoform.exporters.onnx.operators.registry import PORTABLE, RUNTIME
from isoform.exporters.onnx.quantized import byte_tables
from isoform.exporters.onnx.translate import translate
from isoform.exporters.tracing import trace
from isoform.signature import BATCH, LENGTH, Port, Signature
from tests.exporters.onnx.test_files import session

WIDTH = 32
ROUNDED = 0.015  # of the size of a row: half a step of 1/127 of its largest value, in activations and in weights
FORMS = pytest.mark.parametrize("fused", [True, False], ids=["fused", "portable"])


class Layers(nn.Module):
    """Three layers that read the same value, one of them with a bias."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=bias) for bias in (True, False, False))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.q(x), self.k(x), self.v(x)


def made(fused: bool) -> onnx.ModelProto:
    axes = (BATCH, LENGTH, WIDTH)
    ports = Signature((Port("x", "float", axes),), tuple(Port(f"y{n}", "float", axes) for n in range(3)))
    module = Layers()
    tables = byte_tables("head.weight", RUNTIME if fused else PORTABLE, fused)
    model, parameters = translate(trace(module.to("meta"), ports, torch.float32), ports, torch.float32, {}, tables)
    weights = dict(Layers().named_parameters())
    for name, parameter in parameters.items():
        value = weights[parameter.weight].detach()
        if parameter.form is not None:
            value = Channels().encode(value)[parameter.part]
        value = value.T if value.dtype == torch.uint8 else value
        model.graph.initializer.append(onnx.numpy_helper.from_array(value.numpy(), name))
    return model


def run(fused: bool, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    found: list[Any] = session(made(fused).SerializeToString()).run(None, {"x": x})
    return found


def rows(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(1, count, WIDTH)).astype(np.float32)


@FORMS
def test_layers_that_read_one_value_quantize_it_once(fused: bool) -> None:
    kinds = Counter(node.op_type for node in made(fused).graph.node)
    assert kinds["QuantizeLinear"] == kinds["ReduceMax"] == kinds["Div"] == 1
    assert kinds["MatMulIntegerToFloat" if fused else "MatMulInteger"] == 3
    assert "DynamicQuantizeLinear" not in kinds


@FORMS
def test_a_large_row_changes_no_other(fused: bool) -> None:
    x = rows(4)
    x[0, 2] *= 1e4
    together = run(fused, x)
    for n in range(4):
        for whole, alone in zip(together, run(fused, x[:, n : n + 1]), strict=True):
            np.testing.assert_array_equal(whole[:, n : n + 1], alone)


@FORMS
@pytest.mark.parametrize("size", [1e-25, 1.0, 1e30])
def test_rows_of_every_size_are_rounded_by_their_own_step(fused: bool, size: float) -> None:
    x = rows(3) * np.float32(size)
    module = Layers().double()
    for layer, got in zip((module.k, module.v), run(fused, x)[1:], strict=True):
        want = layer(torch.from_numpy(x).double()).detach().numpy()
        error = np.linalg.norm(got.astype(np.float64) - want, axis=-1)
        assert (error < ROUNDED * np.linalg.norm(want, axis=-1)).all()


@FORMS
def test_a_row_of_zeros_gives_the_bias(fused: bool) -> None:
    x = rows(3)
    x[0, 1] = 0
    q, k, v = run(fused, x)
    np.testing.assert_array_equal(q[0, 1], Layers().q.bias.detach().numpy())
    assert not k[0, 1].any() and not v[0, 1].any()


@FORMS
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_shows_in_its_row_alone(fused: bool, value: float) -> None:
    for place in (0, 1, 7, WIDTH - 1):
        x = rows(3)
        good = run(fused, x)
        x[0, 1, place] = value
        for got, before in zip(run(fused, x), good, strict=True):
            assert not np.isfinite(got[0, 1]).any()
            np.testing.assert_array_equal(got[0, [0, 2]], before[0, [0, 2]])
