"""Linear layers of a float32 graph as convolutions over blocks of channels, which ONNX Runtime reads faster.

A linear layer is a convolution of 1 x 1. For those ONNX Runtime has kernels that hold channels in blocks (NCHWc, by the
width of the processor's vectors) and read weights faster than its matrix product does: a step of a decoder, which
reads every weight once, takes a sixth less time, and a long prompt no more. The file keeps the plain layer; this is
done to a graph when it is opened for an x86-64 CPU. The weights are laid out here, in one array that sessions of the
same file share.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.runtimes.onnx_facts import ELEMENTWISE, Facts
from isoform.runtimes.onnx_file import misplaced, nodes, place_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCKS = "com.microsoft.nchwc"
LINEAR = "FusedMatMul"
RANK = 3  # (B, T, C), here (1, channels, B, T): so the rows of a batch are one picture, and weights are read once
SIZES = (16, 8)  # channels of a block: vectors of 512 and of 256 bits
_AXIS, _START = "channel_blocks.axis", "channel_blocks.input"


def in_blocks(model: Any, folder: Path) -> dict[str, NDArray[np.float32]]:
    """Put the linear layers of a model in blocks. Returns the weights to open it with, (out, in, 1, 1) by name.

    None changes unless its weight is a float32 matrix (out, in) in a file in `folder`, and `in` is a multiple of the
    block. Values keep their names, but for those between one linear layer and the next.
    """
    import onnx

    if (size := block_size()) is None or misplaced(folder, model):
        return {}  # the session says what is wrong
    scope = Scope(Facts.of(model.graph), size)
    names = sorted({layer.input[1] for layer in scope.every_layer()})
    if not names:
        return {}
    shapes = {name: tuple(scope.constants[name].dims) for name in names}
    weights = _laid_out(shapes, lambda name: _matrix(scope.constants[name], folder), size)
    scope.change()
    graph = model.graph
    used = {name for node in nodes(graph) for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(kept)
    graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.int64), _AXIS))
    graph.initializer.extend(_elsewhere(scope.constants[name], weights[_named(name)]) for name in names)
    model.opset_import.append(onnx.helper.make_opsetid(BLOCKS, 1))
    return weights


class Scope:
    """The linear layers of a graph, or of a branch inside one, that become convolutions."""

    def __init__(self, facts: Facts, size: int) -> None:
        self.facts, self.graph, self.constants, self.size = facts, facts.graph, facts.constants, size
        self.branches = [Scope(inner, size) for inner in facts.branches]
        self.layers = {node.output[0]: node for node in facts.graph.node if self._is_linear(node)}
        """By their result."""

    def every_layer(self) -> Iterator[Any]:
        yield from self.layers.values()
        for branch in self.branches:
            yield from branch.every_layer()

    def _is_linear(self, node: Any) -> bool:
        from onnx import TensorProto

        if node.op_type != LINEAR or len(node.input) != 2 or self.facts.ranks.get(node.input[0]) != RANK:
            return False
        if {attribute.name: attribute.i for attribute in node.attribute} != {"transB": 1}:
            return False
        weight = self.constants.get(node.input[1])
        if weight is None or weight.data_type != TensorProto.FLOAT or len(weight.dims) != 2:
            return False
        out, width = weight.dims
        place = place_of(weight)
        return place is not None and place[2] == 4 * out * width > 0 and width % self.size == 0

    def change(self) -> None:
        """Put convolutions in the place of the layers."""
        from onnx.helper import make_node

        for branch in self.branches:  # first: the nodes that hold them are copied
            branch.change()
        users = self.facts.users()
        biases = self._biases(users)
        results = {biases[name].output[0] if name in biases else name: name for name in self.layers}
        stay = self._stay(results, users)
        made: list[Any] = []
        inputs: dict[str, str] = {}
        folded = {node.output[0] for node in biases.values()}

        def into_blocks(name: str) -> str:
            if name in stay:
                return name
            if name not in inputs:
                flat, inputs[name] = f"{_START}.{name}.4d", f"{_START}.{name}"
                made.append(make_node("Unsqueeze", [name, _AXIS], [flat]))
                made.append(make_node("ReorderInput", [flat], [inputs[name]], domain=BLOCKS, channels_last=1))
            return inputs[name]

        for node in self.graph.node:
            if node.output[0] not in self.layers:
                made += [] if node.output[0] in folded else [node]
                continue
            name = node.output[0]
            result = biases[name].output[0] if name in biases else name
            bias = [self._bias(biases[name], name)] if name in biases else []
            channels = self.constants[node.input[1]].dims[0]
            product = result if result in stay else f"{result}.blocks"
            taken = [into_blocks(node.input[0]), _named(node.input[1]), *bias]
            made.append(make_node("Conv", taken, [product], node.name, domain=BLOCKS, group=1))
            if result not in stay:
                flat = f"{result}.4d"
                settings = {"channels": channels, "channels_last": 1}
                made.append(make_node("ReorderOutput", [product], [flat], domain=BLOCKS, **settings))
                made.append(make_node("Squeeze", [flat, _AXIS], [result]))
        del self.graph.node[:]
        self.graph.node.extend(made)

    def _biases(self, users: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """By layer: the node that adds its bias, where that is all that is done with its result."""
        found = {}
        for name, layer in self.layers.items():
            channels = self.constants[layer.input[1]].dims[0]
            match users.get(name, ()):
                case [node] if node is not None and node.op_type == "Add" and channels % self.size == 0:
                    bias = self.constants.get(self._bias(node, name))
                    if bias is not None and list(bias.dims) == [channels]:
                        found[name] = node
        return found

    @staticmethod
    def _bias(node: Any, result: str) -> str:
        """The other summand."""
        return str(node.input[1] if node.input[0] == result else node.input[0])

    def _stay(self, results: Mapping[str, str], users: Mapping[str, Sequence[Any]]) -> set[str]:
        """The values that stay in blocks: made by a linear layer or elementwise of such, and taken by such alone."""
        widths = {result: self.constants[self.layers[name].input[1]].dims[0] for result, name in results.items()}
        widths = {result: width for result, width in widths.items() if width % self.size == 0}
        made = {}
        for node in self.graph.node:
            wide = {widths.get(name) for name in node.input if not self.facts.is_number(name)}
            if node.op_type in ELEMENTWISE and node.output[0] not in results and len(wide) == 1 and None not in wide:
                widths[node.output[0]] = wide.pop()
                made[node.output[0]] = node
        stay = set(widths)

        def is_taken(name: str, user: Any) -> bool:
            if user is None or user.output[0] not in self.layers:
                return user is not None and user.output[0] in stay
            return bool(user.input[0] == name)

        def is_given(name: str) -> bool:
            return name not in made or all(v in stay or self.facts.is_number(v) for v in made[name].input)

        while lost := {
            name for name in stay if not (is_given(name) and all(is_taken(name, user) for user in users.get(name, ())))
        }:
            stay -= lost
        return stay


def _named(weight: str) -> str:
    return f"{weight}.blocks"


def _matrix(tensor: Any, folder: Path) -> NDArray[np.float32]:
    """A weight (out, in) as it lies in its file, which `misplaced` has found whole."""
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
