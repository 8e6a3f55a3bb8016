"""Linear layers of a float32 graph as convolutions over blocks of channels, which ONNX Runtime reads faster.

A linear layer is a convolution of 1 x 1. For those ONNX Runtime has kernels that hold channels in blocks (NCHWc, by the
width of the processor's vectors) and read weights faster than its matrix product does: a step of a decoder, which
reads every weight once, takes a sixth less time, and a long prompt no more. They add a bias and a residual, too, and
a constant that scales the result goes into the weights. The file keeps the plain layer; this is done to a graph when it
is opened for an x86-64 CPU. The weights are laid out here, in one array that sessions of the same file share.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.runtimes.backends.onnxruntime.graph_file import misplaced, nodes, place_of
from isoform.runtimes.backends.onnxruntime.prepare.graph_facts import ELEMENTWISE, Facts

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCKS = "com.microsoft.nchwc"
LINEAR = "FusedMatMul"
RANK = 3  # (B, T, C), here (1, channels, B, T): so the rows of a batch are one picture, and weights are read once
SIZES = (16, 8)  # channels of a block: vectors of 512 and of 256 bits
RESIDUAL_DEPTH = 16  # operations between the input of a residual block and its last linear layer, at most
_AXIS, _START = "channel_blocks.axis", "channel_blocks.input"


def in_blocks(model: Any, folder: Path) -> dict[str, NDArray[np.float32]]:
    """Put the linear layers of a model in blocks. Returns the weights to open it with, (out, in, 1, 1) by name.

    None changes unless its weight is a float32 matrix (out, in) in a file in `folder`, and `in` is a multiple of the
    block. Values keep their names, but for those between one linear layer and the next.
    """
    import onnx

    if (size := block_size()) is None or misplaced(folder, model):
        return {}  # the session says what is wrong
    uses = Counter(name for node in nodes(model.graph) for name in node.input)
    scope = Scope(Facts.of(model.graph), size, uses)
    layers = {layer.weight.name: layer for layer in scope.every_layer()}
    if not layers:
        return {}
    names = sorted(layers)
    shapes = {name: tuple(layers[name].weight.dims) for name in names}
    weights = _laid_out(shapes, lambda name: layers[name].matrix(folder), size)
    scope.change(folder)
    graph = model.graph
    used = {name for node in nodes(graph) for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(kept)
    graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.int64), _AXIS))
    graph.initializer.extend(_elsewhere(layers[name].weight, weights[_named(name)]) for name in names)
    model.opset_import.append(onnx.helper.make_opsetid(BLOCKS, 1))
    return weights


@dataclass
class LinearLayer:
    """A linear layer and what is done to its result at once: (x W^T + bias) * scale + residual."""

    node: Any
    weight: Any
    result: str
    bias: Any = None  # tensors (out,)
    scale: Any = None
    residual: str = ""
    folded: list[str] = field(default_factory=list)
    """The results of the operations that the convolution does as well."""

    @property
    def channels(self) -> int:
        return int(self.weight.dims[0])

    def can_scale(self, scale: Any) -> bool:
        """Whether all numbers that it would change can be read, and are not scaled yet."""
        return self.scale is None and _is_beside(scale) and (self.bias is None or _is_beside(self.bias))

    def matrix(self, folder: Path) -> NDArray[np.float32]:
        """(out, in), scaled."""
        matrix = _floats(self.weight, folder)
        return matrix if self.scale is None else matrix * _floats(self.scale, folder)[:, None]

    def scaled_bias(self, folder: Path) -> Any:
        """The tensor to add, None where there is none."""
        from onnx.numpy_helper import from_array

        if self.bias is None or self.scale is None:
            return self.bias
        return from_array(_floats(self.bias, folder) * _floats(self.scale, folder), f"{self.bias.name}.{self.result}")


class Scope:
    """The linear layers of a graph, or of a branch inside one, that become convolutions."""

    def __init__(self, facts: Facts, size: int, uses: Mapping[str, int]) -> None:
        """`uses` says how often every value is taken."""
        self.facts, self.graph, self.constants, self.size = facts, facts.graph, facts.constants, size
        self.branches = [Scope(inner, size, uses) for inner in facts.branches]
        linear = [node for node in facts.graph.node if self._is_linear(node)]
        self.layers = {
            node.output[0]: LinearLayer(node, self.constants[node.input[1]], node.output[0]) for node in linear
        }
        """By the result of the product."""
        self._users = facts.users()
        self._makers = {name: node for node in self.graph.node for name in node.output}
        for layer in self.layers.values():
            self._fold(layer, alone=uses[layer.weight.name] == 1)

    def every_layer(self) -> Iterator[LinearLayer]:
        yield from self.layers.values()
        for branch in self.branches:
            yield from branch.every_layer()

    def _is_linear(self, node: Any) -> bool:
        if node.op_type != LINEAR or len(node.input) != 2 or self.facts.ranks.get(node.input[0]) != RANK:
            return False
        if {attribute.name: attribute.i for attribute in node.attribute} != {"transB": 1}:
            return False
        weight = self.constants.get(node.input[1])
        return weight is not None and len(weight.dims) == 2 and _is_beside(weight) and weight.dims[1] % self.size == 0

    def _fold(self, layer: LinearLayer, *, alone: bool) -> None:
        """Take along what follows, while nothing else is done with the result; `alone`: nobody else has the weight."""
        while layer.channels % self.size == 0 and not layer.residual:
            match self._users.get(layer.result, ()):
                case [node] if node is not None and node.op_type in ("Add", "Mul") and len(node.input) == 2:
                    other = node.input[1] if node.input[0] == layer.result else node.input[0]
                case _:
                    return
            constant = self.constants.get(other)
            vector = constant is not None and list(constant.dims) == [layer.channels]
            if node.op_type == "Add" and vector and layer.bias is None and layer.scale is None:
                layer.bias = constant
            elif node.op_type == "Mul" and vector and alone and layer.can_scale(constant):
                layer.scale = constant
            elif node.op_type == "Add" and self._has_rows_of(layer.node.input[0], other, RESIDUAL_DEPTH):
                layer.residual = other
            else:
                return
            layer.result = node.output[0]
            layer.folded.append(layer.result)

    def _has_rows_of(self, value: str, other: str, depth: int) -> bool:
        """Whether a value is made of this one alone, row by row: then none of its axes is longer."""
        if value == other or depth == 0:
            return value == other and self.facts.ranks.get(value) == RANK and value not in self.constants
        node: Any = self._makers.get(value)
        inputs = [] if node is None else [node.input[n] for n in self.facts.rows(node)]
        return bool(inputs) and all(self._has_rows_of(name, other, depth - 1) for name in inputs)

    def change(self, folder: Path) -> None:
        """Put convolutions in the place of the layers."""
        from onnx.helper import make_node

        for branch in self.branches:  # first: the nodes that hold them are copied
            branch.change(folder)
        results = {layer.result: layer for layer in self.layers.values()}
        stay = self._stay(results)
        made: list[Any] = []
        inputs: dict[str, str] = {}
        folded = {name for layer in self.layers.values() for name in layer.folded}

        def into_blocks(name: str) -> str:
            if name in stay:
                return name
            if name in results and results[name].channels % self.size == 0:
                return f"{name}.blocks"
            if name not in inputs:
                flat, inputs[name] = f"{_START}.{name}.4d", f"{_START}.{name}"
                made.append(make_node("Unsqueeze", [name, _AXIS], [flat]))
                made.append(make_node("ReorderInput", [flat], [inputs[name]], domain=BLOCKS, channels_last=1))
            return inputs[name]

        for node in self.graph.node:
            if (layer := self.layers.get(node.output[0])) is None:
                made += [] if node.output[0] in folded else [node]
                continue
            name, bias = layer.result, layer.scaled_bias(folder)
            if bias is not None and bias is not layer.bias:
                self.graph.initializer.append(bias)
            taken = [into_blocks(node.input[0]), _named(layer.weight.name), "" if bias is None else bias.name]
            taken += [into_blocks(layer.residual)] if layer.residual else []
            product = name if name in stay else f"{name}.blocks"
            made.append(make_node("Conv", taken, [product], node.name, domain=BLOCKS, group=1))
            if name not in stay:
                last: dict[str, Any] = {"channels": layer.channels, "channels_last": 1}
                made.append(make_node("ReorderOutput", [product], [f"{name}.4d"], domain=BLOCKS, **last))
                made.append(make_node("Squeeze", [f"{name}.4d", _AXIS], [name]))
        del self.graph.node[:]
        self.graph.node.extend(made)

    def _stay(self, results: Mapping[str, LinearLayer]) -> set[str]:
        """The values that stay in blocks: made by a linear layer or elementwise of such, and taken by such alone."""
        widths = {name: layer.channels for name, layer in results.items() if layer.channels % self.size == 0}
        made = {}
        for node in self.graph.node:
            wide = {widths.get(name, 0) for name in node.input if not self.facts.is_number(name)}
            if node.op_type in ELEMENTWISE and node.output[0] not in results and len(wide) == 1 and 0 not in wide:
                widths[node.output[0]] = wide.pop()
                made[node.output[0]] = node
        stay = set(widths)

        def is_taken(name: str, user: Any) -> bool:
            if user is None:
                return False
            if user.output[0] in self.layers:
                return bool(user.input[0] == name)
            layer = results.get(user.output[0])
            return layer.residual == name if layer is not None else user.output[0] in stay

        def is_given(name: str) -> bool:
            return name not in made or all(v in stay or self.facts.is_number(v) for v in made[name].input)

        while lost := {
            name
            for name in stay
            if not (is_given(name) and all(is_taken(name, user) for user in self._users.get(name, ())))
        }:
            stay -= lost
        return stay


def _named(weight: str) -> str:
    return f"{weight}.blocks"


def _is_beside(tensor: Any) -> bool:
    """Whether these are float32 numbers in a file beside the graph, as many as its shape says."""
    from onnx import TensorProto

    place = place_of(tensor)
    return tensor.data_type == TensorProto.FLOAT and place is not None and place[2] == 4 * prod(tensor.dims) > 0


def _floats(tensor: Any, folder: Path) -> NDArray[np.float32]:
    """Numbers as they lie in their file, which `misplaced` has found whole."""
    location, offset, _ = place_of(tensor) or ("", 0, 0)
    return np.memmap(folder / location, np.float32, "r", offset, tuple(tensor.dims))


def _laid_out(
    shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], NDArray[np.float32]], size: int
) -> dict[str, NDArray[np.float32]]:
    """Weights (out, in, 1, 1) whose bytes are (out / size, in, size): rows are filled up with zeros to whole blocks.

    They lie in one array, for which NumPy asks the kernel for huge pages. One matrix is read at a time.
    """
    counts = {name: -(-out // size) for name, (out, _) in shapes.items()}
    room = np.empty(sum(counts[name] * size * width for name, (_, width) in shapes.items()), np.float32)
    found, at = {}, 0
    for name, (out, width) in shapes.items():
        matrix, whole = read(name), out // size
        blocks = room[at : at + counts[name] * size * width].reshape(-1, width, size)
        at += blocks.size
        blocks[:whole] = matrix[: whole * size].reshape(whole, size, width).transpose(0, 2, 1)
        if rest := out - whole * size:
            blocks[whole, :, :rest] = matrix[whole * size :].T
            blocks[whole, :, rest:] = 0
        found[_named(name)] = blocks.reshape(counts[name] * size, width, 1, 1)
    return found


def _elsewhere(tensor: Any, array: NDArray[Any]) -> Any:
    """A tensor in blocks. The session gets its bytes from memory, but looks whether there is such a file."""
    from onnx import TensorProto

    found = TensorProto()
    found.CopyFrom(tensor)
    found.name = _named(tensor.name)
    found.dims[:] = array.shape
    return found


@cache
def block_size() -> int | None:
    """The channels of a block on this processor, found by trying; None where nothing is known of them."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    width = 2 * max(SIZES)
    matrix = np.arange(width * width, dtype=np.float32).reshape(width, width) % 7
    given = np.arange(width, dtype=np.float32).reshape(1, 1, 1, width)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    for size in SIZES:
        weight = numpy_helper.from_array(_laid_out({"w": matrix.shape}, lambda _: matrix, size)[_named("w")], "w")
        steps = [
            helper.make_node("ReorderInput", ["x"], ["a"], domain=BLOCKS, channels_last=1),
            helper.make_node("Conv", ["a", "w"], ["b"], domain=BLOCKS, group=1),
            helper.make_node("ReorderOutput", ["b"], ["y"], domain=BLOCKS, channels=width, channels_last=1),
        ]
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 1, width]) for name in ("x", "y")]
        graph = helper.make_graph(steps, "blocks", values[:1], values[1:], [weight])
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(BLOCKS, 1)]
        content = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
        try:
            session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            (found,) = session.run(None, {"x": given})
        except Exception:  # noqa: BLE001  (its exceptions have no common base; without blocks it goes on as well)
            return None
        if np.array_equal(found.reshape(-1), matrix @ given.reshape(-1)):
            return size
    return None
