"""Deformable attention over one map: the operation, and its graph in both engines at sizes that no trace saw."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from isoform.exporters.onnx.operators.operands import Lowering
from isoform.exporters.onnx.operators.registry import PORTABLE, RUNTIME
from isoform.exporters.onnx.translate import translate
from isoform.exporters.tracing import trace
from isoform.reference.modules import ops
from isoform.signature import BATCH, HEIGHT, LENGTH, WIDTH, Port, Signature
from tests.exporters.onnx.test_files import session

HEADS, DIM, POINTS = 3, 4, 2
SUMS = 3e-6  # float32, interpolated and added in another order
METHODS = {"bilinear": 0, "nearest": 1}


class Sampled(nn.Module):
    def __init__(self, method: int) -> None:
        super().__init__()
        self.method = method

    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        return (ops.sampled_attention(value, locations, weights, HEADS, self.method),)


PORTS = Signature(
    (
        Port("value", "float", (BATCH, HEIGHT, WIDTH, HEADS * DIM)),
        Port("locations", "float", (BATCH, LENGTH, HEADS, POINTS, 2)),
        Port("weights", "float", (BATCH, LENGTH, HEADS, POINTS)),
    ),
    (Port("y", "float", (BATCH, LENGTH, HEADS * DIM)),),
)


def inputs(batch: int, queries: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points on edges and corners, between them and far outside among others; weights of all signs."""
    generator = torch.Generator().manual_seed(queries)
    locations = torch.rand(batch, queries, HEADS, POINTS, 2, generator=generator) * 1.4 - 0.2
    locations[0, 0, :, 0] = torch.tensor(((0.0, 0.0), (1.0, 1.0), (-9.0, 40.0)))
    locations[0, 0, :, 1] = torch.tensor(((0.5, 0.5), (0.5 / width, 1 - 0.5 / height), (1.0, 0.0)))
    weights = torch.randn(batch, queries, HEADS, POINTS, generator=generator)
    return torch.randn(batch, height, width, HEADS * DIM, generator=generator), locations, weights


def by_hand(value: Tensor, locations: Tensor, weights: Tensor, method: int) -> Tensor:
    """Cell by cell, in float64."""
    batch, height, width, _ = value.shape
    cells = value.double().numpy().reshape(batch, height, width, HEADS, DIM)
    y = np.zeros((batch, locations.shape[1], HEADS, DIM))
    for b, t, h, p in np.ndindex(*locations.shape[:-1]):
        x_at, y_at = (float(at) for at in locations[b, t, h, p])
        if method:
            row, column = (
                min(max(int(np.floor(at + 0.5)), 0), n - 1)
                for at, n in ((y_at * height, height), (x_at * width, width))
            )
            found = cells[b, row, column, h]
        else:
            found = np.zeros(DIM)
            for row, column in np.ndindex(height, width):
                near = (1 - abs(y_at * height - row - 0.5)), (1 - abs(x_at * width - column - 0.5))
                found = found + max(near[0], 0) * max(near[1], 0) * cells[b, row, column, h]
        y[b, t, h] += float(weights[b, t, h, p]) * found
    return torch.from_numpy(y).flatten(2)


SIZES = ((1, 1, 1, 1), (2, 5, 3, 7), (3, 4, 6, 2))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_points_are_read_where_they_lie(sizes: tuple[int, int, int, int], method: int) -> None:
    taken = inputs(*sizes)
    found = ops.sampled_attention(*taken, HEADS, method)
    assert found.dtype == torch.float32
    assert (found - by_hand(*taken, method)).abs().max() < SUMS


@pytest.mark.parametrize("table", [RUNTIME, PORTABLE], ids=["runtime", "portable"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_graph_reads_them_at_every_size(method: int, table: Mapping[str, Lowering], tmp_path: Path) -> None:
    from openvino import Core

    module = Sampled(method)
    graph, parameters = translate(trace(module, PORTS, torch.float32), PORTS, torch.float32, {}, table)
    assert not parameters
    onnx.checker.check_model(graph, full_check=True)
    runtime = session(graph.SerializeToString())
    onnx.save(graph, tmp_path / "model.onnx")
    portable = Core().compile_model(str(tmp_path / "model.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for sizes in SIZES:
        taken = inputs(*sizes)
        expected = by_hand(*taken, method)
        arrays = [array.numpy() for array in taken]
        (found,) = runtime.run(None, dict(zip(("value", "locations", "weights"), arrays, strict=True)))
        assert np.abs(found - expected.numpy()).max() < SUMS
        assert np.abs(portable(arrays)[0] - expected.numpy()).max() < SUMS


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_halves_lose_their_own_rounding_only(method: int) -> None:
    """Between cells of a half as well: what is computed is computed in float32, in torch and in the graph."""
    module = Sampled(method)
    graph, _ = translate(trace(module, PORTS, torch.float16), PORTS, torch.float16, {}, RUNTIME)
    runtime = session(graph.SerializeToString())
    value, locations, weights = (x.half() for x in inputs(2, 5, 30, 70))
    expected = by_hand(value, locations, weights, method)
    ours = ops.sampled_attention(value, locations, weights, HEADS, method)
    assert ours.dtype == torch.float16
    names = ("value", "locations", "weights")
    (found,) = runtime.run(None, {name: x.numpy() for name, x in zip(names, (value, locations, weights), strict=True)})
    limit = 2**-10 * float(expected.abs().max())
    assert (ours - expected).abs().max() < limit
    assert np.abs(found.astype(np.float32) - expected.numpy()).max() < limit


def test_a_trace_of_torch_reads_them_too() -> None:
    for method in METHODS.values():
        traced = torch.jit.trace(Sampled(method), inputs(2, 5, 3, 7))
        taken = inputs(3, 4, 6, 2)
        assert (traced(*taken)[0] - by_hand(*taken, method)).abs().max() < SUMS
