"""Pictures (B, C, H, W): pooling, resizing, padding, sampling at points, channels to pixels, and turning around."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from isoform.errors import UnsupportedExport
from isoform.exporters.onnx.graph import Graph, RuntimeSize, Value
from isoform.exporters.onnx.operators.operands import END, Lowering, Types, tensor
from isoform.exporters.tracing import Type

MODES = ("linear", "nearest", "cubic")
"""grid_sampler's numbers, in order."""
BORDERS = ("zeros", "border", "reflection")


def max_pool(
    graph: Graph,
    out: Types,
    x: Value,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil: bool = False,
) -> Value:
    kernel, stride, padding, dilation = (_both(sizes, kernel) for sizes in (kernel, stride, padding, dilation))
    settings: dict[str, Any] = {"kernel_shape": kernel, "strides": stride, "pads": [*padding, *padding]}
    return graph.one("MaxPool", (x,), out[0], **settings, dilations=dilation, ceil_mode=int(ceil))


def average_pool(
    graph: Graph,
    out: Types,
    x: Value,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    ceil: bool = False,
    count_padding: bool = True,
    divisor: int | None = None,
) -> Value:
    if divisor is not None:
        raise UnsupportedExport(f"{graph.scope}: an average with a divisor of its own has no ONNX form here")
    kernel, stride, padding = (_both(sizes, kernel) for sizes in (kernel, stride, padding))
    settings: dict[str, Any] = {"kernel_shape": kernel, "strides": stride, "pads": [*padding, *padding]}
    settings |= {"ceil_mode": int(ceil), "count_include_pad": int(count_padding)}
    return graph.one("AveragePool", (x,), out[0], **settings)


def _both(sizes: list[int], kernel: list[int]) -> list[int]:
    """A number per axis; an empty list means the kernel's."""
    sizes = sizes or kernel
    return sizes * 2 if len(sizes) == 1 else sizes


def whole_average(graph: Graph, out: Types, x: Value, size: list[int]) -> Value:
    """The mean of a picture; of its parts there is no operator for any size."""
    if any(side != 1 for side in size):
        raise UnsupportedExport(f"{graph.scope}: pooling to {size} has no ONNX form here; pool to one value")
    return graph.one("GlobalAveragePool", (x,), out[0])


def resize(mode: str) -> Lowering:
    """torch's interpolate, to a size or by factors, as ONNX' Resize: the last argument holds the factors, or none."""

    def lower(graph: Graph, out: Types, x: Value, size: Any, *rest: Any) -> Value:
        corners = bool(rest[0]) if mode != "nearest" else False
        settings: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": "half_pixel"}
        if mode == "nearest":
            settings |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        elif mode == "cubic":
            settings |= {"coordinate_transformation_mode": "half_pixel", "cubic_coeff_a": -0.75}
        if corners:
            settings["coordinate_transformation_mode"] = "align_corners"
        factors = rest[-1] if isinstance(rest[-1], list) else None
        if factors and not isinstance(size, list):
            values = np.array([1.0, 1.0, *factors], np.float32)
            return graph.one("Resize", (x, None, graph.constant(values, torch.float32)), out[0], **settings)
        front = graph.shape(list(x.type.shape[:2]))
        sizes = graph.one("Concat", (front, graph.shape(list(size))), Type(torch.int64, (4,)), axis=0)
        return graph.one("Resize", (x, None, None, sizes), out[0], **settings)

    return lower


def pad(
    graph: Graph,
    out: Types,
    x: Value,
    sizes: Sequence[int | RuntimeSize],
    mode: str = "constant",
    value: float | None = None,
) -> Value:
    """torch counts from the last axis, a beginning and an end for each."""
    kinds = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}
    if mode not in kinds:
        raise UnsupportedExport(f"{graph.scope}: padding {mode!r} has no ONNX form here")
    count = len(sizes) // 2
    ends = [sizes[2 * (count - 1 - n) + side] for side in (0, 1) for n in range(count)]
    axes = graph.indices(*range(len(x.type.shape) - count, len(x.type.shape)))
    filling = graph.number(value or 0, x.type.dtype) if mode == "constant" else None
    return graph.one("Pad", (x, graph.shape(list(ends)), filling, axes), out[0], mode=kinds[mode])


def sample(graph: Graph, out: Types, x: Value, places: Value, mode: int, border: int, corners: bool) -> Value:
    """grid_sample: x (B, C, H, W) at places (B, rows, columns, 2), x before y, from -1 to 1."""
    settings: dict[str, Any] = {"mode": MODES[mode], "padding_mode": BORDERS[border], "align_corners": int(corners)}
    return graph.one("GridSample", (x, graph.cast(places, x.type.dtype)), out[0], **settings)


def pixel_shuffle(graph: Graph, out: Types, x: Value, factor: int) -> Value:
    return graph.one("DepthToSpace", (x,), out[0], blocksize=factor, mode="CRD")


def roll(graph: Graph, out: Types, x: Value, shifts: list[int], dims: list[int]) -> Value:
    """Along each axis in turn: what leaves at the end comes back at the beginning."""
    for shift, dim in zip(shifts, dims, strict=True):
        at = dim % len(x.type.shape)
        if shift == 0:
            continue
        cut = graph.indices(-shift)
        parts = [
            graph.one("Slice", (x, *bounds, graph.indices(at)), Type(x.type.dtype, _but(x.type.shape, at)))
            for bounds in ((cut, graph.indices(END)), (graph.indices(0), cut))
        ]
        x = graph.one("Concat", parts, Type(x.type.dtype, out[0].shape), axis=at)
    return x


def _but(shape: tuple[Any, ...], at: int) -> tuple[Any, ...]:
    return (*shape[:at], "?part", *shape[at + 1 :])


def repeat(graph: Graph, out: Types, x: Value, counts: list[int | RuntimeSize]) -> Value:
    """torch's repeat: more counts than axes make new ones in front."""
    missing = len(counts) - len(x.type.shape)
    if missing:
        shape = (*(1 for _ in range(missing)), *x.type.shape)
        x = graph.one("Unsqueeze", (x, graph.indices(*range(missing))), Type(x.type.dtype, shape))
    return graph.one("Tile", (x, graph.shape(list(counts))), out[0])


def full(graph: Graph, out: Types, *arguments: Any) -> Value:
    """full(size, value, …), full_like(x, value, …), new_full(x, size, value, …)."""
    value = next(x for x in arguments if isinstance(x, int | float) and not isinstance(x, list))
    return graph.one("Expand", (tensor(graph, value, out[0].dtype), graph.shape(list(out[0].shape))), out[0])
