"""Each operation's lowering against torch, through a trace and ONNX Runtime; and what a trace refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoform.errors import UnsupportedExport
from isoform.exporters.onnx.operators.registry import ATEN, RUNTIME
from isoform.exporters.onnx.translate import translate
from isoform.exporters.tracing import trace
from isoform.signature import BATCH, LENGTH, Axis, Port, Signature
from tests.exporters.onnx.test_files import session

Body = Callable[[Tensor, Tensor], Any]


class Function(nn.Module):
    """`body` of x: float (B, T, 8) and ids: int64 (B, T)."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        y = self.body(x, ids)
        return y if isinstance(y, tuple) else (y,)


def signature(*outputs: tuple[Axis, ...]) -> Signature:
    inputs = (Port("x", "float", (BATCH, LENGTH, 8)), Port("ids", "int64", (BATCH, LENGTH)))
    return Signature(inputs, tuple(Port(f"y{n}", "float", axes) for n, axes in enumerate(outputs)))


def check(body: Body, *outputs: tuple[Axis, ...], dtype: torch.dtype = torch.float32) -> None:
    """The graph equals the body at sizes that no trace saw."""
    module, ports = Function(body), signature(*outputs)
    graph, parameters = translate(trace(module, ports, dtype), ports, dtype, {}, RUNTIME)
    assert not parameters
    runtime = session(graph.SerializeToString())
    for batch, length in ((1, 1), (2, 5), (4, 11)):
        generator = torch.Generator().manual_seed(batch)
        x = torch.randn(batch, length, 8, generator=generator).to(dtype)
        ids = torch.randint(0, 6, (batch, length), generator=generator)
        got = runtime.run(None, {"x": x.numpy(), "ids": ids.numpy()})
        for a, b in zip(got, module(x, ids), strict=True):
            assert a.shape == tuple(b.shape)
            np.testing.assert_allclose(a, b.numpy(), rtol=1e-5, atol=3e-6)


SAME = (BATCH, LENGTH, 8)
POINTWISE: dict[str, Body] = {
    "abs": lambda x, ids: x.abs(),
    "add": lambda x, ids: torch.add(x, ids.unsqueeze(-1), alpha=3),
    "alias": lambda x, ids: torch.ops.aten.alias(x) + 1,
    "amax": lambda x, ids: x * ids.amax((0, 1)) + x.amax(-1, keepdim=True) - x.amin(1, True),
    "bitwise": lambda x, ids: (((ids > 1) & ~(ids >= 4)) | (ids == 5)).unsqueeze(-1).to(x.dtype) * x,
    "bitwise_names": lambda x, ids: torch.bitwise_or(torch.bitwise_and(x < 1, x > 0), x < -1).to(x.dtype),
    "bounds": lambda x, ids: torch.maximum(torch.minimum(x, x.cos()), -x) + x.max() + torch.max(x, x.sin()),
    "ceil": lambda x, ids: x.ceil() + x.round() + (x * 2 + 0.5).round() + x.sign(),
    "chunk": lambda x, ids: torch.cat(x.chunk(2, -1)[::-1], -1),
    "clamp": lambda x, ids: x.clamp(-0.5, 0.5) + x.clamp(min=0.1) + x.clamp(max=0.2) + x.clamp_min(0.3),
    "compare": lambda x, ids: ((x < 0.5) | (x >= ids.unsqueeze(-1)) | (x <= -1) | (x != x)).to(x.dtype),
    "contiguous": lambda x, ids: x.transpose(1, 2).contiguous().detach().transpose(1, 2),
    "conv": lambda x, ids: F.conv1d(x.transpose(1, 2), x.new_ones(8, 4, 3) * 0.1, padding=1, groups=2).transpose(1, 2),
    "cos": lambda x, ids: x.cos() + x.sin(),
    "cumsum": lambda x, ids: x.cumsum(1) + ids.cumsum(1).unsqueeze(-1),
    "div": lambda x, ids: x / 3 + ids.unsqueeze(-1) / 7,
    "dropout": lambda x, ids: F.dropout(x, 0.5, training=False) * 2,
    "erf": lambda x, ids: x.erf(),
    "exp": lambda x, ids: x.exp(),
    "expand": lambda x, ids: x[:, :1].expand(-1, x.shape[1], -1) + ids.unsqueeze(-1).expand_as(x)[:, :, :1] * 0.5,
    "floor": lambda x, ids: x.floor(),
    "gather": lambda x, ids: x.gather(1, ids.argmax(1)[:, None, None].expand(-1, x.shape[1], 8)),
    "gelu": lambda x, ids: F.gelu(x),
    "gelu_tanh": lambda x, ids: F.gelu(x, approximate="tanh"),
    "full": lambda x, ids: (
        x + torch.full((x.shape[1], 8), 3.0, device=x.device) + torch.full_like(x, -2) + x.new_full((8,), 0.5)
    ),
    "leaky_relu": lambda x, ids: F.leaky_relu(x, 0.2),
    "layer_norm": lambda x, ids: F.layer_norm(x, (8,), None, None, 1e-5),
    "log": lambda x, ids: (x.abs() + 0.5).log(),
    "logical": lambda x, ids: torch.logical_or(torch.logical_and(x > 0, x < 1), torch.logical_not(x > -1)).to(x.dtype),
    "masked_fill": lambda x, ids: x.masked_fill((ids == 0).unsqueeze(-1), -7.0),
    "embedding": lambda x, ids: F.embedding(ids, x[0, 0].unsqueeze(-1).expand(-1, 8) * 2),
    "index_select": lambda x, ids: x.index_select(1, ids[0] * 0) + x.index_select(0, ids[:, 0] * 0),
    "mean": lambda x, ids: x - x.mean(-1, keepdim=True) - x.mean(1, True),
    "mul": lambda x, ids: x * 2 * ids.unsqueeze(-1),
    "neg": lambda x, ids: -x,
    "permute": lambda x, ids: x.permute(2, 0, -2).permute(1, 2, 0),
    "pow": lambda x, ids: x.abs().pow(1.5) + x**2,
    "relu": lambda x, ids: x.relu(),
    "reciprocal": lambda x, ids: (x.abs() + 1).reciprocal() + (x.abs() + 1).rsqrt(),
    "remainder": lambda x, ids: torch.remainder(x, 0.7) + torch.remainder(ids - 3, 4).unsqueeze(-1) + (-x) % 3.0,
    "repeat": lambda x, ids: x[:, :1, :4].repeat(1, x.shape[1], 2) + x[0, 0].repeat(x.shape[0], x.shape[1], 1),
    "roll": lambda x, ids: x.roll((1, -3), (1, 2)) + x.roll(0, 1),
    "rsub": lambda x, ids: (1 - x) + torch.rsub(x, ids.unsqueeze(-1), alpha=2),
    "sigmoid": lambda x, ids: x.sigmoid(),
    "silu": lambda x, ids: F.silu(x),
    "slice": lambda x, ids: torch.cat((x[:, 1:], x[:, :1]), 1) + torch.cat((x[..., ::2], x[..., 1::2]), -1),
    "softmax": lambda x, ids: x.softmax(-1) + x.log_softmax(1) + x.logsumexp(-1, keepdim=True),
    "split": lambda x, ids: torch.cat(x.split((2, 5, 1), -1)[::-1], -1),
    "sqrt": lambda x, ids: x.abs().sqrt(),
    "sub": lambda x, ids: torch.sub(x, ids.unsqueeze(-1), alpha=0.5),
    "tanh": lambda x, ids: x.tanh(),
    "to": lambda x, ids: ids.to(x.dtype).unsqueeze(-1) + x.double().to(x.dtype) + ids.type_as(x).unsqueeze(-1),
    "unflatten": lambda x, ids: x.unflatten(-1, (2, 4)).transpose(-1, -2).flatten(-2),
    "view": lambda x, ids: (
        x.view(x.shape[0], x.shape[1], 4, 2).transpose(1, 2).reshape(x.shape[0] * 4, -1).view(x.shape)
    ),
    "where": lambda x, ids: torch.where(x > 0, x, -1.0) + torch.where(ids.unsqueeze(-1) > 2, 0.0, x),
}


@pytest.mark.parametrize("name", POINTWISE)
def test_operation_agrees_with_torch(name: str) -> None:
    check(POINTWISE[name], SAME)


OTHERS: dict[str, tuple[Body, tuple[tuple[Axis, ...], ...]]] = {
    "arange": (
        lambda x, ids: torch.arange(ids.shape[1], device=ids.device).to(x.dtype) * 0.5 + ids,
        ((BATCH, LENGTH),),
    ),
    "arange_bounds": (
        lambda x, ids: torch.arange(1, ids.shape[1] * 2 + 1, 2, device=ids.device).to(x.dtype) + ids,
        ((BATCH, LENGTH),),
    ),
    "conv_2d": (
        lambda x, ids: F.conv2d(x.unsqueeze(1), x.new_ones(2, 1, 3, 4), x.new_ones(2), stride=(2, 4), padding=(1, 0)),
        ((BATCH, 2, "halves", 2),),
    ),
    "conv_size": (  # a size that no input has: of what a convolution gives
        lambda x, ids: (
            F.conv1d(x.transpose(1, 2), x.new_ones(6, 8, 3) * 0.1, stride=2, padding=1).unflatten(1, (2, -1)).flatten(2)
            + F.conv1d(x.transpose(1, 2), x.new_ones(6, 8, 3), stride=2, padding=1).shape[2]
        ),
        ((BATCH, 2, "some"),),
    ),
    "conv_transpose": (
        lambda x, ids: F.conv_transpose1d(x.transpose(1, 2), x.new_ones(8, 3, 2) * x.new_ones(2).cumsum(0), stride=2),
        ((BATCH, 3, "twice"),),
    ),
    "filled": (
        lambda x, ids: (
            torch.zeros_like(x)
            + torch.ones_like(x)
            + x.new_ones(x.shape[0], 1, 8)
            + x.new_zeros(8)
            + torch.ones(x.shape[1], 8, device=x.device)
            + torch.zeros(8, device=x.device)
        ),
        (SAME,),
    ),
    "group_norm": (
        lambda x, ids: (
            F.group_norm(torch.cat((x, x * x), 1).transpose(1, 2), 8, x.new_ones(8) * 2, x.new_ones(8), 1e-5)[:, :, :1]
            + F.group_norm(x.transpose(1, 2), 2, x.new_ones(8).cumsum(0), x.new_ones(8).cumsum(0) - 4, 1e-5)
        ),
        ((BATCH, 8, LENGTH),),
    ),
    "grid_sample": (
        lambda x, ids: torch.cat(
            [
                F.grid_sample(x.unsqueeze(1), x.tanh().unflatten(-1, (4, 2)) * 1.2, mode, border, corners).squeeze(1)
                for mode, border, corners in (
                    *(("bilinear", "zeros", False), ("bilinear", "border", True)),
                    *(("nearest", "zeros", False), ("bicubic", "reflection", False)),
                )
            ],
            -1,
        ),
        ((BATCH, LENGTH, 16),),
    ),
    "max": (lambda x, ids: x.max(-1).values + x.max(-1).indices, ((BATCH, LENGTH),)),
    "matmul": (lambda x, ids: (x @ x.transpose(1, 2)) @ torch.bmm(x, x.transpose(1, 2)), ((BATCH, LENGTH, LENGTH),)),
    "pad": (
        lambda x, ids: (
            F.pad(x, (1, 2, 2, 1), value=0.5)
            + F.pad(x, (1, 2, 2, 1))
            + F.pad(x, (1, 2), mode="reflect")[:, :1]
            + F.pad(x, (2, 1), mode="replicate")[:, :1]
        ),
        ((BATCH, "more", 11),),
    ),
    "pad_to_a_size": (lambda x, ids: F.pad(x, (0, 0, 0, x.shape[1])), ((BATCH, "twice", 8),)),
    "pixel_shuffle": (
        lambda x, ids: F.pixel_shuffle(x.unflatten(-1, (4, 2)).transpose(1, 2), 2),
        ((BATCH, 1, "y", 4),),
    ),
    "pool": (
        lambda x, ids: (
            F.max_pool2d(x.unsqueeze(1), 3, 2, 1).squeeze(1)
            + F.avg_pool2d(x.unsqueeze(1), (3, 3), 2, 1).squeeze(1)
            + F.avg_pool2d(x.unsqueeze(1), 3, 2, 1, count_include_pad=False).squeeze(1)
            + F.adaptive_avg_pool2d(x.unsqueeze(1), 1).squeeze(1)
        ),
        ((BATCH, "halves", 4),),
    ),
    "resize": (
        lambda x, ids: torch.cat(
            [
                F.interpolate(x.unsqueeze(1), scale_factor=2, mode=mode, **options).squeeze(1)
                for mode, options in (
                    *(("nearest", {}), ("bilinear", {"align_corners": False}), ("bilinear", {"align_corners": True})),
                    *(("bicubic", {"align_corners": False}), ("bicubic", {"align_corners": True})),
                )
            ],
            -1,
        ),
        ((BATCH, "twice", 80),),
    ),
    "resize_to": (
        lambda x, ids: torch.cat(
            [
                F.interpolate(x.unsqueeze(1), (x.shape[1] + 3, 5), mode=mode, **options).squeeze(1)
                for mode, options in (
                    *(("nearest", {}), ("bilinear", {"align_corners": False}), ("bilinear", {"align_corners": True})),
                    ("bicubic", {"align_corners": False}),
                )
            ],
            -1,
        ),
        ((BATCH, "more", 20),),
    ),
    "select": (lambda x, ids: x[:, 0] + x[:, -1], ((BATCH, 8),)),
    "sizes": (lambda x, ids: x / x.shape[1] + (x.shape[0] * 2 - 1) // 2, (SAME,)),
    "squeeze": (lambda x, ids: x[:, :1].squeeze(1), ((BATCH, 8),)),
    "stack": (lambda x, ids: torch.stack((x, -x), 1), ((BATCH, 2, LENGTH, 8),)),
    "sum": (lambda x, ids: x.sum(1), ((BATCH, 8),)),
    "topk": (
        lambda x, ids: (x.topk(3).values, x.topk(2, -1, False).values + x.topk(2, -1, False).indices),
        ((BATCH, LENGTH, 3), (BATCH, LENGTH, 2)),
    ),
    "twins": (lambda x, ids: (x + 1, x + 1, x), (SAME, SAME, SAME)),
    "unbind": (lambda x, ids: x[..., :2].unbind(-1), ((BATCH, LENGTH), (BATCH, LENGTH))),
}


@pytest.mark.parametrize("name", OTHERS)
def test_operation_with_other_shapes_agrees_with_torch(name: str) -> None:
    body, outputs = OTHERS[name]
    check(body, *outputs)


def test_every_operation_of_the_table_is_tested() -> None:
    kinds = set()
    for body, outputs in [*((body, (SAME,)) for body in POINTWISE.values()), *OTHERS.values()]:
        nodes = trace(Function(body), signature(*outputs), torch.float32).nodes
        kinds |= {node.kind.removeprefix("aten::") for node in nodes}
    assert set(ATEN) - kinds == set()
    assert list(ATEN) == sorted(ATEN)


def test_an_unknown_operation_is_named_with_its_module_and_the_way_out() -> None:
    inner = Function(lambda x, ids: torch.special.bessel_j0(x))
    outer = Function(lambda x, ids: inner(x, ids))
    outer.inner = inner
    ports = signature(SAME)
    with pytest.raises(UnsupportedExport, match=r"inner: aten::special_bessel_j0 has no ONNX form.*operators/"):
        translate(trace(outer, ports, torch.float32), ports, torch.float32, {}, RUNTIME)


def test_an_option_without_a_form_is_refused() -> None:
    ports = signature(SAME)
    traced = trace(Function(lambda x, ids: torch.div(x, 2, rounding_mode="floor")), ports, torch.float32)
    with pytest.raises(UnsupportedExport, match="aten::div with 3 arguments"):
        translate(traced, ports, torch.float32, {}, RUNTIME)


def test_a_size_frozen_in_python_is_found() -> None:
    with pytest.raises(UnsupportedExport, match="from an input's size in Python and freezes it"):
        trace(Function(lambda x, ids: x * float(int(x.shape[1]) ** 0.5)), signature(SAME), torch.float32)


def test_a_branch_on_a_size_is_found() -> None:
    def body(x: Tensor, ids: Tensor) -> Tensor:
        return x.cos() if x.shape[1] > 4 else x.sin()

    with pytest.raises(UnsupportedExport, match="another path for another input size"):
        trace(Function(body), signature(SAME), torch.float32)


def test_an_output_that_breaks_the_signature_is_named() -> None:
    ports = signature((BATCH, LENGTH, 4))
    with pytest.raises(UnsupportedExport, match=r"output y0 is .* the signature says"):
        translate(trace(Function(lambda x, ids: x), ports, torch.float32), ports, torch.float32, {}, RUNTIME)
