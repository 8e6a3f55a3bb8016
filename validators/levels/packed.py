"""Quantized weights in an ONNX graph, read back by the operators' documentation and not by the code that wrote them.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md: MatMulNBits, GatherBlockQuantized and QMoE
hold blocks of a row, MatMulIntegerToFloat and MatMulInteger bytes of a turned matrix. Weights that are in blocks of 32
without zeros must be ggml's Q4_0 or Q8_0 bit for bit; others may be off by half a step, or at the ends by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import zip_longest
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import CheckpointError
from isoform.validators.report.records import Report, Result
from isoform.validators.report.subject import Subject

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from isoform.reference.model import Model
    from isoform.validators.report.departure import Departure
    from isoform.validators.truth.answers import Run

LEVEL = "weights"
PIECE = 2**20  # elements compared at a time
TURNED = {"MatMulIntegerToFloat": (1, 3), "MatMulInteger": (1, None)}  # which inputs are data and scales
BLOCKS = {"MatMulNBits": (1, 2, 3), "GatherBlockQuantized": (0, 2, 3)}  # and zeros
CONVOLUTION = 4  # axes of a kernel over pictures
EXPERTS = ((2, 3, 11), (5, 6, 12))
"""The same of QMoE, for what rises (gate and up, whose rows come in turn) and what falls."""


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight in a graph: `bits` 0 says that it is plain, `block` 0 that it is turned, with a scale per row.

    `by_row` says that activations have a scale per row before a turned weight, and not one for the whole tensor.
    """

    data: NDArray[Any]
    bits: int = 0
    block: int = 0
    scales: NDArray[Any] | None = None
    zeros: NDArray[Any] | None = None
    by_row: bool = False

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Some rows, as the operator takes them."""
        import numpy as np

        if self.scales is None:
            return np.asarray(self.data[start:stop], np.float32)
        if not self.block:
            part = np.asarray(self.data[:, start:stop].T, np.float32) - np.float32(128)
            return part * self.scales[start:stop, None].astype(np.float32)
        scales = self.scales[start:stop].astype(np.float32)
        values = self._held(start, stop).reshape(*scales.shape, self.block)
        zeros: Any = np.float32(2 ** (self.bits - 1))
        if self.zeros is not None:
            zeros = _integers(self.zeros[start:stop], self.bits)[..., : scales.shape[-1], None]
        return ((values - zeros) * scales[..., None]).reshape(*scales.shape[:-1], -1)

    def steps(self, start: int, stop: int) -> NDArray[np.float32]:
        """How far apart the values lie that can be held, for every value of some rows."""
        import numpy as np

        assert self.scales is not None
        scales = np.abs(self.scales[start:stop].astype(np.float32))
        return np.repeat(scales, self.block, -1) if self.block else scales[:, None]

    def at_an_end(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Which values of some rows are held as the smallest or the largest integer."""
        if not self.block:
            integers = _integers(self.data[:, start:stop].T, 8)
        else:
            integers = self._held(start, stop)
        ends: NDArray[np.bool_] = (integers == 0) | (integers == 2**self.bits - 1)
        return ends

    def _held(self, start: int, stop: int) -> NDArray[np.float32]:
        """The integers of some rows in blocks, or of some matrices of a stack."""
        assert self.scales is not None
        rows = self.scales[start:stop].shape[:-1]
        return _integers(self.data[start:stop].reshape(*rows, -1), self.bits)


def _integers(packed: NDArray[Any], bits: int) -> NDArray[np.float32]:
    """Rows of bytes, or of two 4-bit integers each, the first in the low half."""
    import numpy as np

    if bits == 4:
        packed = np.stack((packed & 15, packed >> 4), -1).reshape(*packed.shape[:-1], -1)
    return packed.astype(np.float32)


def held_weights(path: Path) -> dict[str, PackedWeight]:
    """Every weight of a graph by its canonical name. Raises CheckpointError for files that are missing or too short."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    from isoform.runtimes.backends.onnxruntime.graph_file import nodes

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except (OSError, DecodeError) as error:
        raise CheckpointError(f"{path} is no ONNX file ({error}); export the model again") from None
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    whole = {node.output[0] for node in nodes(graph) if node.op_type == "DynamicQuantizeLinear"}
    result: dict[str, PackedWeight] = {}
    parts: set[str] = set()

    def read(name: str) -> NDArray[Any]:
        parts.add(name)
        return _read(path, tensors[name])

    makers = {name: node for node in nodes(graph) for name in node.output}

    def stored(name: str) -> list[str]:
        """The weights that a value is put together from."""
        if not name or name in tensors:
            return [name] if name and ".weight" in name else []
        return [found for other in makers[name].input for found in stored(other)]

    for node in nodes(graph):
        settings = {attribute.name: attribute.i for attribute in node.attribute}
        for places in EXPERTS if node.op_type == "QMoE" else ():
            parts_of = ([*map(read, stored(node.input[n]))] if n < len(node.input) else [] for n in places)
            names = stored(node.input[places[0]])
            for name, data, scales, zeros in zip_longest(names, *parts_of):
                result[_weight(name)] = PackedWeight(
                    data, settings["expert_weight_bits"], settings["block_size"], scales, zeros
                )
        if node.op_type in BLOCKS:
            data, scales, zeros = (node.input[n] if n < len(node.input) else "" for n in BLOCKS[node.op_type])
            result[_weight(scales)] = PackedWeight(
                read(data), settings["bits"], settings["block_size"], read(scales), read(zeros) if zeros else None
            )
        elif node.op_type in TURNED:
            place, scaled = TURNED[node.op_type]
            if scaled is not None:
                scales = node.input[scaled]
            else:  # by a product with the activations' scale, further down
                data = node.input[place]
                scales = next(n for n in tensors if n.startswith(_weight(data)) and len(tensors[n].dims) == 1)
            by_row = node.input[0] not in whole
            result[_weight(node.input[place])] = PackedWeight(
                read(node.input[place]), 8, scales=read(scales), by_row=by_row
            )
    return result | {name: PackedWeight(_read(path, tensor)) for name, tensor in tensors.items() if name not in parts}


def _weight(part: str) -> str:
    """The weight that a part (`layers.0.attn.q.weight.scales`) belongs to."""
    return part[: part.index(".weight") + len(".weight")]


def _read(path: Path, tensor: Any) -> NDArray[Any]:
    import numpy as np
    import onnx

    entry = {item.key: item.value for item in tensor.external_data}
    if "location" not in entry:
        array: NDArray[Any] = onnx.numpy_helper.to_array(tensor)
        return array
    file, offset = path.parent / entry["location"], int(entry.get("offset", 0))
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    end = offset + prod(tensor.dims) * dtype.itemsize
    if not file.is_file() or file.stat().st_size < end:
        raise CheckpointError(f"{file} is missing or ends before byte {end}, where {tensor.name} does; export again")
    if not tensor.dims:
        return np.fromfile(file, dtype, 1, offset=offset)
    return np.memmap(file, dtype, "r", offset, tuple(tensor.dims))


def check_packed(model: Model, path: Path, dtype: str, backend: str) -> Report:
    """The weights level of a quantized graph: how many values are wrong, and how many weights missing or misshapen."""
    import numpy as np

    from isoform.validators.bisection.stored import SHOWN, missing_departure, weight_departure

    held = held_weights(path)
    missing: list[str] = []
    changed: list[str] = []
    departures: list[Departure] = []
    values = differing = packed = 0
    for name, weight in model.weights.items():
        if name not in held:
            missing.append(f"{name} is missing")
            departures.append(missing_departure(name, backend, dtype))
            continue
        rows = weight.shape[0] if weight.shape else 1
        step = max(1, PIECE // max(1, prod(weight.shape[1:])))
        packed += held[name].bits > 0
        count, other = 0, []
        source = weight.load()
        source = source if source.dim() else source.view(1)
        for start in range(0, rows, step):
            wanted = source[start : start + step].float().numpy()
            got = held[name].rows(start, start + step)
            if got.shape != wanted.shape:
                missing.append(f"{name} has rows of {list(got.shape[1:])}, not {list(wanted.shape[1:])}")
                departures.append(missing_departure(name, backend, dtype))
                break
            wrong = _wrong(held[name], got, wanted, start, start + step)
            count += int(np.count_nonzero(wrong))
            if wrong.any() and len(changed) < SHOWN:
                other.append((start, got, np.where(wrong, wanted, got)))
        weight.release()
        values += prod(weight.shape)
        differing += count
        if count:
            changed.append(f"{name} ({count} values)")
            if found := weight_departure(name, other, backend, dtype):
                departures.append(found)
    others = sorted(name for name in held.keys() - model.weights.keys() if name.endswith((".weight", ".bias")))
    missing += [f"{name} is in the file, and the model has no such weight" for name in others]
    if not packed and multiplies(model):
        missing.append(f"no weight is quantized in a file of type {dtype}")
    case = f"weights, {len(model.weights)} tensors, {packed} quantized, {values} values"
    subject = Subject(backend, LEVEL, dtype, "weights", case)
    counted = [("differing", differing, changed), ("wrong_tensors", len(missing), missing)]
    return Report(
        [Result.of(subject, metric, count, 0, ", ".join(names[:3])) for metric, count, names in counted],
        departures=departures,
    )


def _wrong(held: PackedWeight, got: NDArray[Any], wanted: NDArray[Any], start: int, stop: int) -> NDArray[np.bool_]:
    """Which values are not what the source should have become."""
    import numpy as np

    if held.scales is None:
        return got != wanted.astype(held.data.dtype).astype(np.float32)
    if held.block == 32 and held.zeros is None:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize, quantize

        kind = GGMLQuantizationType.Q4_0 if held.bits == 4 else GGMLQuantizationType.Q8_0
        expected = dequantize(quantize(np.ascontiguousarray(wanted), kind), kind)
        if held.scales.dtype == np.float16:
            return got != expected
        return got.view(np.int32) != np.asarray(expected, np.float32).view(np.int32)
    room = np.where(held.at_an_end(start, stop), 1.01, 0.505)  # rounded to the nearest, and cut off at the ends
    return np.abs(got - wanted) > held.steps(start, stop) * room + np.abs(wanted) * 2**-10


def imitate(model: Model, path: Path) -> tuple[Run, AbstractContextManager[Any]]:
    """Torch with a graph's weights, and the context in which it rounds activations as ONNX Runtime's CPU kernels may.

    MatMulNBits takes its input in blocks of 8-bit integers, as large as those of the weight; the products of bytes take
    a scale per row, or one scale and one zero for the whole tensor (DynamicQuantizeLinear).
    """
    return imitate_held(model, model.module(), held_weights(path))


def imitate_held(
    model: Model, module: nn.Module, held: Mapping[str, PackedWeight]
) -> tuple[Run, AbstractContextManager[Any]]:
    """The same with these weights by the names of the module's parameters."""
    import torch

    from isoform.validators.truth.answers import outputs_alone

    blocks: dict[int, int] = {}
    for name, parameter in module.named_parameters():
        if name in held:
            rows = len(parameter) if parameter.dim() else 1
            parameter.data = torch.from_numpy(held[name].rows(0, rows).copy()).view(parameter.shape)
            if held[name].bits:
                blocks[_key(parameter)] = parameter.shape[-1] if held[name].by_row else held[name].block
    return (lambda row: outputs_alone(model, module, row)), rounded_activations(blocks)


def _key(weight: torch.Tensor) -> int:
    """What a matrix and the stack that it is taken from have in common: where the memory of their tensor begins."""
    return weight.untyped_storage().data_ptr()


def rounded_activations(blocks: Mapping[int, int]) -> AbstractContextManager[Any]:
    """Round the factor of every matrix in `blocks` (its `_key` -> its block, 0 for the whole tensor)."""
    import torch
    import torch.nn.functional as F
    from torch.overrides import TorchFunctionMode

    def rounded(x: torch.Tensor, block: int) -> torch.Tensor:
        if block:
            parts = x.unflatten(-1, (-1, block))
            scale = parts.abs().amax(-1, keepdim=True) / 127
            return (torch.where(scale > 0, parts / scale, 0.0).round() * scale).flatten(-2)
        low, high = x.min().clamp(max=0), x.max().clamp(min=0)
        scale = (high - low) / 255
        zero = (-low / scale).round().clamp(0, 255)
        return ((x / scale + zero).round().clamp(0, 255) - zero) * scale

    class ByteActivations(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is F.linear and (key := _key(args[1])) in blocks:
                args = (rounded(args[0], blocks[key]), *args[1:])
            return function(*args, **(kwargs or {}))

    return ByteActivations()


def multiplies(model: Model) -> bool:
    """Whether a graph has a matrix product: one that looks up embeddings or convolves has nothing to quantize."""
    if model.signature.output("embeddings") is not None:
        return False
    shapes = [weight.shape for weight in model.weights.values()]
    return any(len(shape) > 1 and len(shape) != CONVOLUTION and shape[0] > 1 for shape in shapes)
