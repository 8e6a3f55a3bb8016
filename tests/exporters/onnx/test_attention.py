"""Attention in ONNX Runtime and in TorchScript against its torch body: biases per head, over every kind of cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from isoform.errors import UnsupportedExport
from isoform.exporters import torchscript
from isoform.exporters.onnx.graph import Graph, Value
from isoform.exporters.onnx.operators.operands import Types
from isoform.exporters.onnx.operators.registry import PORTABLE, RUNTIME
from isoform.exporters.onnx.translate import translate
from isoform.exporters.tracing import trace
from isoform.reference.modules import ops
from isoform.reference.modules.attention import (
    Attention,
    CrossAttention,
    EncoderStatesCache,
    GrowingCache,
    Heads,
    SwitchedCache,
)
from isoform.reference.modules.layers import hidden
from isoform.signature import (
    BATCH,
    ENCODER_LENGTH,
    LENGTH,
    PAST,
    PAST_ENCODER_LENGTH,
    SLOTS,
    TOTAL,
    Axis,
    Port,
    Signature,
)
from tests.exporters.onnx.test_files import session

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated")

Kind = Literal["none", "growing", "switched", "states"]
KINDS: tuple[Kind, ...] = ("none", "growing", "switched", "states")
DIM, WIDTH = 16, 12  # channels of the queries' side and of the encoder states
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-2}  # absolute, on outputs below 4; 24 and 11 bits of mantissa


class Layer(nn.Module):
    """One attention layer and its cache. Inputs: x (B, T, C), bias, encoder states (B, S, M), past, switch."""

    def __init__(self, kind: Kind, heads: Heads) -> None:
        super().__init__()
        self.kind = kind
        if kind == "states":
            self.cross = CrossAttention(DIM, heads, kv_dim=WIDTH, bias=True, k_bias=False)
        else:
            self.attn = Attention(DIM, heads, bias=True)

    def forward(self, x: Tensor, bias: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        if self.kind == "none":
            return (self.attn(x, bias),)
        if self.kind == "states":
            states, *past = rest
            crossed = EncoderStatesCache(*past)
            return self.cross.attend(x, states, bias, crossed), *crossed.present
        cache = (GrowingCache if self.kind == "growing" else SwitchedCache)(*rest)
        return self.attn.attend(x, bias, cache), *cache.present


def signature(kind: Kind, heads: Heads, bias: tuple[Axis, Axis, Axis]) -> Signature:
    """`bias`: the first axes of the bias; the last is that of the slots."""
    slots, past = {"none": (LENGTH, ""), "states": (ENCODER_LENGTH, PAST_ENCODER_LENGTH)}.get(kind, (TOTAL, PAST))
    inputs = [Port("x", "float", (BATCH, LENGTH, DIM)), Port("bias", "float", (*bias, slots))]
    outputs = [Port("y", "float", (BATCH, LENGTH, DIM))]
    if kind == "states":
        inputs.append(Port("states", "float", (BATCH, ENCODER_LENGTH, WIDTH)))
    if kind != "none":
        inputs += [Port(f"past_{name}", "float", (BATCH, heads.kv, past, heads.dim)) for name in "kv"]
        outputs += [Port(f"present_{name}", "float", (BATCH, heads.kv, slots, heads.dim)) for name in "kv"]
    if kind in ("switched", "states"):
        inputs.append(Port("switch", "bool", (1,), "switch"))
    return Signature(tuple(inputs), tuple(outputs), sizes=SLOTS if slots == TOTAL else ())


def filled(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return module.eval().requires_grad_(False)


def feeds(ports: Signature, kind: Kind, dtype: torch.dtype) -> Iterator[dict[str, Tensor]]:
    """Prefills and steps of sizes that no trace saw: several rows of one token, and one row of several."""
    for n, (batch, length, past) in enumerate(((1, 1, 0), (3, 7, 0), (3, 1, 5), (1, 4, 6))):
        sizes = {
            BATCH: batch,
            LENGTH: length,
            PAST: past,
            TOTAL: past + length,
            ENCODER_LENGTH: 9,
            PAST_ENCODER_LENGTH: 9,
        }
        generator = torch.Generator().manual_seed(n)
        for switch in (False, True) if kind in ("switched", "states") else (True,):
            found = {}
            for port in ports.inputs:
                shape = [sizes[axis] if isinstance(axis, str) else axis for axis in port.axes]
                values = torch.randn(shape, generator=generator, dtype=torch.float64)
                if port.name == "bias":  # hide slots that are before every query, and the future where it may be seen
                    padded = {"none": shape[-1] // 3, "growing": min(past, 2), "states": 3}.get(kind, 0)
                    values[::2, ..., :padded] = hidden(dtype)
                    if kind == "growing":
                        future = torch.ones(length, past + length, dtype=torch.bool).triu(past + 1)
                        values = values.expand(-1, -1, length, -1).masked_fill(future, hidden(dtype))
                found[port.name] = torch.tensor([switch]) if port.dtype == "bool" else values.to(dtype)
            yield found


HEADS = {
    "plain": Heads(4, 4, 8),
    "grouped": Heads(4, 2, 8),
    "narrow": Heads(4, 2, 6, 0.7),
    "capped": Heads(4, 2, 8, 1.0, 3.0),
}
BIASES = (
    ("plain", "each"),
    ("plain", "each, for all queries"),
    ("grouped", "shared"),
    ("grouped", "each"),
    ("narrow", "each, for all rows"),
    ("capped", "each"),
)
CASES = [
    (kind, shape, each)
    for kind in KINDS
    for shape, each in BIASES
    if not (kind == "growing" and each == "each, for all queries")  # such a bias cannot hide the future
]


def axes(each: str, heads: Heads) -> tuple[Axis, Axis, Axis]:
    return (
        1 if each == "each, for all rows" else BATCH,
        1 if each == "shared" else heads.count,
        1 if each == "each, for all queries" else LENGTH,
    )


@pytest.mark.parametrize("portable", [False, True], ids=["runtime", "portable"])
@pytest.mark.parametrize(("kind", "shape", "each"), CASES)
def test_onnx_runtime_computes_what_the_body_does(kind: Kind, shape: str, each: str, portable: bool) -> None:
    heads = HEADS[shape]
    ports = signature(kind, heads, axes(each, heads))
    if kind == "states" and heads.softcap:
        traced = trace(Layer(kind, heads).to("meta"), ports, torch.float32)
        with pytest.raises(UnsupportedExport, match="soft-cap"):
            translate(traced, ports, torch.float32, {}, PORTABLE if portable else RUNTIME)
        return
    for dtype in (torch.float32,) if portable else (torch.float32, torch.float16):
        module = filled(Layer(kind, heads)).to(dtype)
        skeleton = Layer(kind, heads).to("meta", dtype)
        graph, parameters = translate(
            trace(skeleton, ports, dtype), ports, dtype, {}, PORTABLE if portable else RUNTIME
        )
        named = dict(module.named_parameters())
        graph.graph.initializer.extend(numpy_helper.from_array(named[name].numpy(), name) for name in parameters)
        runtime = session(graph.SerializeToString())
        for given in feeds(ports, kind, dtype):
            expected = module(*given.values())
            got = runtime.run(None, {name: tensor.numpy() for name, tensor in given.items()})
            for port, a, b in zip(ports.outputs, got, expected, strict=True):
                assert a.shape == tuple(b.shape), port.name
                np.testing.assert_allclose(a, b.numpy(), rtol=0, atol=TOLERANCE[dtype], err_msg=port.name)


@pytest.mark.parametrize(("kind", "shape", "each"), CASES)
def test_torchscript_computes_what_the_body_does(kind: Kind, shape: str, each: str, tmp_path: Path) -> None:
    heads = HEADS[shape]
    ports = signature(kind, heads, axes(each, heads))
    module = filled(Layer(kind, heads))
    archive, order = torchscript._skeleton(Layer(kind, heads).to("meta"), ports)
    named = dict(module.named_parameters())
    sources = [torchscript._Source(name, named[name], named[name].clone, lambda: None) for name in order]
    torchscript._fill(archive, tmp_path / "model.pt", sources, lambda *_: None)
    loaded: Any = torch.jit.load(str(tmp_path / "model.pt"))
    for given in feeds(ports, kind, torch.float32):
        for a, b in zip(loaded(*given.values()), module(*given.values()), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("softcap", [0.0, 3.0])
def test_a_bias_per_head_is_one_layer_per_head(kind: Kind, softcap: float) -> None:
    """The body itself: with a bias of one head for all, each head of the output is that of the bias per head."""
    heads = Heads(4, 2, 8, 1.0, softcap)
    module = filled(Layer(kind, heads)).double()
    layer: Any = module.cross if kind == "states" else module.attn
    layer.out = nn.Identity()
    ports = signature(kind, heads, (BATCH, heads.count, LENGTH))
    for given in feeds(ports, kind, torch.float64):
        found = module(*given.values())[0].unflatten(-1, (heads.count, heads.dim))
        for n in range(heads.count):
            shared = module(*{**given, "bias": given["bias"][:, n : n + 1]}.values())[0]
            alone = shared.unflatten(-1, (heads.count, heads.dim))
            torch.testing.assert_close(found[:, :, n], alone[:, :, n], rtol=0, atol=1e-12)


def test_a_semantic_operation_may_take_a_list_of_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    def rolled(x: Tensor, shifts: list[int]) -> Tensor:
        return torch.roll(x, shifts, list(range(len(shifts))))

    class Rolled(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return (call(x, [1, 2]),)

    def lower(graph: Graph, out: Types, x: Value, shifts: list[int]) -> Value:
        return graph.one("Add", (x, graph.number(sum(shifts), x.type.dtype)), out[0])

    monkeypatch.setattr(ops, "OPS", dict(ops.OPS))
    call = ops.semantic(rolled)
    axes = (BATCH, LENGTH)
    ports = Signature((Port("x", "float", axes),), (Port("y", "float", axes),))
    graph, _ = translate(trace(Rolled(), ports, torch.float32), ports, torch.float32, {}, {"isoform::rolled": lower})
    (got,) = session(graph.SerializeToString()).run(None, {"x": np.zeros((2, 3), np.float32)})
    assert got.tolist() == [[3.0] * 3] * 2
