"""An ONNX file before ONNX Runtime opens it: its exact variant, and why it cannot be opened, in one line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LARGEST = 2**31 - 1  # bytes of a protobuf message
FOLDER_KEY = "session.model_external_initializers_file_folder_path"
"""The session option that says where the weights of a model from memory lie."""


def is_larger(path: Path, most: int) -> bool:
    """Whether a graph and the weights beside it have more than so many bytes."""
    total = path.stat().st_size
    if total > most or (model := _read(path)) is None:
        return True
    for tensor in model.graph.initializer:
        total += (place_of(tensor) or ("", 0, 0))[2]
    return total > most


def exact(path: Path) -> bytes | None:
    """The graph with the input of every quantized layer left in float, or None where that changes nothing.

    The kernel of weights in blocks quantizes its input as well, for speed; without the permission it does not, but for
    experts of 8 bits, which become floats. Products of bytes become products of floats, but for those in branches.
    """
    graph = _read(path)
    permissions = [
        (node, attribute)
        for node in (nodes(graph.graph) if graph else ())
        if node.op_type in ("MatMulNBits", "QMoE")
        for attribute in node.attribute
        if attribute.name == "accuracy_level" and attribute.i
    ]
    for node, attribute in permissions:
        node.attribute.remove(attribute)
    products = graph is not None and (_multiply_floats(graph.graph) | _float_experts(graph.graph))
    return graph.SerializeToString() if permissions or products else None


def nodes(graph: Any) -> Iterator[Any]:
    """Every node of a graph, those of its branches after the one that holds them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from nodes(attribute.g)


def _multiply_floats(graph: Any) -> bool:
    """Put a product of floats in the place of every MatMulIntegerToFloat; False where there is none.

    The new values are named `{layer}.Exact.n`, counting on where a layer runs again; the product keeps its name, or has
    that of the product with the scales of its rows, where they have some.
    """
    from onnx import TensorProto
    from onnx.helper import make_node

    bytes_ = quantized_inputs(graph)
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    found: list[Any] = []
    counts: dict[str, int] = {}
    scaled: set[str] = set()
    for node in graph.node:
        if node.op_type != "MatMulIntegerToFloat" or node.input[0] not in bytes_:
            found += [] if node.output[0] in scaled else [node]
            continue
        source = bytes_[node.input[0]]
        _, data, _, scales, _, zero, *bias = node.input
        (result,) = node.output
        if source.by_row:
            match users.get(result, ()):
                case [last] if last.op_type == "Mul":
                    (result,) = last.output
                    scaled.add(result)
                case _:
                    found.append(node)
                    continue
        layer = re.sub(r"\.MatMulIntegerToFloat(\.\d+)?$", "", node.name)
        first = counts[layer] = counts.get(layer, -4) + 5
        step = [f"{layer}.Exact.{n}" for n in range(first, first + 5)]
        product = step[4] if bias else result
        found += [
            make_node("Cast", [data], [step[0]], name=step[0], to=TensorProto.FLOAT),
            make_node("Cast", [zero], [step[1]], name=step[1], to=TensorProto.FLOAT),
            make_node("Sub", step[:2], [step[2]], name=step[2]),
            make_node("Mul", [step[2], scales], [step[3]], name=step[3]),
            make_node("MatMul", [source.value, step[3]], [product], name=product),
        ]
        if bias:
            found.append(make_node("Add", [product, *bias], [result], name=result))
    if len(found) == len(graph.node):
        return False
    del graph.node[:]
    graph.node.extend(_needed(found, {value.name for value in graph.output}))
    return True


def _float_experts(graph: Any) -> bool:
    """Put MoE over floats in the place of every QMoE of 8 bits; False where there is none.

    The matrices are (integer - 128) * scale for each block, or less their own zero.
    """
    import numpy as np
    from onnx import AttributeProto, TensorProto, numpy_helper
    from onnx.helper import get_attribute_value, make_node

    found: list[Any] = []
    constants: dict[str, Any] = {}
    for node in graph.node:
        settings = {a.name: get_attribute_value(a) for a in node.attribute if a.type != AttributeProto.GRAPH}
        if node.op_type != "QMoE" or settings["expert_weight_bits"] != 8:
            found.append(node)
            continue
        layer = re.sub(r"\.QMoE(\.\d+)?$", "", node.name)
        given = [*node.input, *[""] * (13 - len(node.input))]
        size = settings["block_size"]
        constants |= {
            "exact.middle": np.float32(128),
            "exact.last": np.array([-1], np.int64),
            f"exact.blocks.{size}": np.array([0, 0, -1, size], np.int64),
            "exact.rows": np.array([0, 0, -1], np.int64),
        }
        matrices = []
        for n, (data, scales, zeros) in enumerate(((given[2], given[3], given[11]), (given[5], given[6], given[12]))):
            step = [f"{layer}.Exact.{9 * n + m}" for m in range(9)]
            found += [
                make_node("Cast", [data], [step[0]], name=step[0], to=TensorProto.FLOAT),
                make_node("Reshape", [step[0], f"exact.blocks.{size}"], [step[1]], name=step[1]),
                make_node("Cast", [scales], [step[2]], name=step[2], to=TensorProto.FLOAT),
                make_node("Unsqueeze", [step[2], "exact.last"], [step[3]], name=step[3]),
                make_node("Mul", [step[6], step[3]], [step[7]], name=step[7]),
                make_node("Reshape", [step[7], "exact.rows"], [step[8]], name=step[8]),
            ]
            middle = "exact.middle"
            if zeros:
                found[-4:-4] = [
                    make_node("Cast", [zeros], [step[4]], name=step[4], to=TensorProto.FLOAT),
                    make_node("Unsqueeze", [step[4], "exact.last"], [step[5]], name=step[5]),
                ]
                middle = step[5]
            found[-2:-2] = [make_node("Sub", [step[1], middle], [step[6]], name=step[6])]
            matrices.append(step[8])
        inputs = [*given[:2], matrices[0], given[4], matrices[1], given[7]]
        while not inputs[-1]:
            inputs.pop()
        kept = {k: v for k, v in settings.items() if k not in ("expert_weight_bits", "block_size", "accuracy_level")}
        found.append(make_node("MoE", inputs, node.output, name=node.name, domain=node.domain, **kept))
    if not constants:
        return False
    del graph.node[:]
    graph.node.extend(found)
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    return True


@dataclass(frozen=True, slots=True)
class Quantized:
    """What the bytes of a product were made of: a value, with a scale for each row or one for all."""

    value: str
    by_row: bool


def quantized_inputs(graph: Any) -> dict[str, Quantized]:
    """By the name of the bytes. Rows with a scale each are divided by their largest value, and then quantized."""
    makers = {name: node for node in graph.node for name in node.output}
    found = {}
    for node in graph.node:
        if node.op_type == "DynamicQuantizeLinear":
            found[node.output[0]] = Quantized(node.input[0], by_row=False)
        elif node.op_type == "QuantizeLinear" and (last := makers.get(node.input[0])) and last.op_type == "Div":
            found[node.output[0]] = Quantized(last.input[0], by_row=True)
    return found


def _needed(order: Iterable[Any], wanted: Iterable[str]) -> list[Any]:
    """The nodes that these values need, with all that their branches take."""
    needed, kept = set(wanted), []
    for node in reversed(list(order)):
        if needed & set(node.output):
            kept.append(node)
            needed |= {name for inner in (node, *_inner(node)) for name in inner.input}
            needed |= {value.name for attribute in node.attribute for value in attribute.g.output}
    return kept[::-1]


def _inner(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        yield from nodes(attribute.g)


def with_input(content: bytes, name: str) -> bytes | None:
    """A serialized model whose constant `name`, one int64, is an input instead; None if it has no such constant.

    The constant gets another name of the same length. The input is appended: serialized protobuf messages add up.
    """

    def message(number: int, parts: bytes) -> bytes:
        return bytes((number << 3 | 2, len(parts))) + parts

    constant, other = (message(8, text.encode()) for text in (name, name.upper()))
    if constant not in content:
        return None
    one = message(1, bytes((1 << 3, 1)))  # a dimension of 1
    type_ = message(1, bytes((1 << 3, 7)) + message(2, one))  # a tensor of int64
    added = message(7, message(11, message(1, name.encode()) + message(2, type_)))
    return content.replace(constant, other) + added


def complaint(path: Path, reason: str, version: str) -> str:
    """What is wrong with a file that ONNX Runtime `version` refused for `reason`, and the way out."""
    if path.stat().st_size > LARGEST:
        return (
            f"{path} has {path.stat().st_size} bytes, and an ONNX file ends at 2 GB: what is larger has its weights in "
            "a file beside it; export the model again"
        )
    graph = _read(path)
    if graph is None:
        return f"{path} is no ONNX file or an incomplete one; export the model again"
    for wrong in misplaced(path.parent, graph):
        return f"{path}: {wrong}; put the whole folder of the export in one place, or export the model again"
    reason = " ".join(reason.split())
    if match := re.search(r"official support for domain (\S+) is till opset (\d+)", reason):
        domain = "" if match[1] == "ai.onnx" else match[1]
        needed = max((o.version for o in graph.opset_import if o.domain == domain), default=0)
        return (
            f"{path} needs opset {needed} of {match[1]}, ONNX Runtime {version} has {match[2]}; "
            "pip install --upgrade onnxruntime"
        )
    if match := re.search(r"[Uu]nsupported model IR version: (\d+), max supported IR version: (\d+)", reason):
        return (
            f"{path} is in IR version {match[1]}, ONNX Runtime {version} reads up to {match[2]}; "
            "pip install --upgrade onnxruntime"
        )
    if match := re.search(
        r"No Op registered for (\w+)|implementation for (\w+)|:(\w+)\(-?\d+\) is not a registered", reason
    ):
        return (
            f"{path}: ONNX Runtime {version} has no operator {match[1] or match[2] or match[3]} for this; "
            "pip install --upgrade onnxruntime, or export the model in another type or with --portable"
        )
    return f"ONNX Runtime {version} cannot open {path}: {brief(reason)}; export the model again"


def brief(reason: str) -> str:
    """A message of ONNX Runtime without its prefix of error codes, and of no more than 400 letters."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", " ".join(reason.split()))
    return text if len(text) < 400 else text[:400] + "…"


def _read(path: Path) -> Any:
    """The model without its weights, or None."""
    try:
        return None if path.stat().st_size > LARGEST else parsed(path.read_bytes())
    except OSError:
        return None


def parsed(content: bytes) -> Any:
    """A serialized model without the weights beside it, or None."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load_model_from_string(content)
    except DecodeError:
        return None
    return model if (model.graph.node or model.graph.output) and _is_legible(model.graph) else None


def _is_legible(graph: Any) -> bool:
    """Whether names are text, and nodes give something: a damaged file may be a message all the same."""
    every = list(nodes(graph))
    tensors = [*graph.initializer, *(tensor for node in every for a in node.attribute for tensor in a.g.initializer)]
    texts = [
        *(text for node in every for text in (node.op_type, node.name, node.domain, *node.input, *node.output)),
        *(text for tensor in tensors for item in tensor.external_data for text in (item.key, item.value)),
        *(value.name for value in (*tensors, *graph.input, *graph.output)),
    ]
    return all(isinstance(text, str) for text in texts) and all(node.output for node in every)


def place_of(tensor: Any) -> tuple[str, int, int] | None:
    """File name, offset and length in bytes of a weight beside its graph, None where they are not well said."""
    entry = {item.key: item.value for item in tensor.external_data}
    numbers = entry.get("offset", "0"), entry.get("length", "0")
    if not entry.get("location") or not all(number.isdecimal() and len(number) < 20 for number in numbers):
        return None
    return entry["location"], int(numbers[0]), int(numbers[1])


def misplaced(folder: Path, model: Any) -> list[str]:
    """What is wrong with the files that hold the weights of a model in this folder."""
    needed: dict[str, int] = {}
    found = []
    for tensor in model.graph.initializer:
        if not tensor.external_data:
            continue
        if (place := place_of(tensor)) is None:
            found.append(f"{brief(tensor.name)} does not say clearly where in a file it is")
        else:
            needed[place[0]] = max(place[1] + place[2], needed.get(place[0], 0))
    base = folder.resolve()
    for location, size in needed.items():
        file = folder / location
        if not file.exists():
            found.append(f"its weights are in {location}, which is missing beside it")
        elif not file.resolve().is_relative_to(base):
            found.append(
                f"its weights are in {location}, which leaves the folder; ONNX Runtime reads no others (a hard link or "
                "a copy beside the graph will do)"
            )
        elif file.stat().st_size < size:
            found.append(f"{location} has {file.stat().st_size} bytes, the graph reads {size}")
    return found


def with_signed_bytes(content: bytes, folder: Path) -> tuple[bytes, dict[str, Any]] | None:
    """A serialized model whose byte products take signed weights, and those weights by name; None if it has none.

    The numbers are the same: value and zero move by 128. Processors with VNNI multiply them three times as fast; on
    others the sum of two products saturates, so files hold unsigned ones.
    """
    import numpy as np
    import onnx

    if b"MatMulIntegerToFloat" not in content:
        return None
    if (model := parsed(content)) is None or misplaced(folder, model):
        return None  # the session says what is wrong
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    products = [node for node in nodes(model.graph) if node.op_type == "MatMulIntegerToFloat" and len(node.input) > 5]
    uses: dict[str, int] = {}
    for node in nodes(model.graph):
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    zero, weights = "signed_zero", {}
    for node in products:
        data, middle = tensors.get(node.input[1]), tensors.get(node.input[5])
        if data is None or middle is None or data.data_type != onnx.TensorProto.UINT8 or uses[data.name] != 1:
            continue
        if (place := place_of(data)) is None or middle.dims or bytes(middle.raw_data) != b"\x80":
            continue
        location, offset, size = place
        raw = np.fromfile(folder / location, np.uint8, size, offset=offset)
        if size != int(np.prod(data.dims)):
            return None
        weights[data.name] = (raw ^ 128).view(np.int8).reshape(data.dims)
        data.data_type = onnx.TensorProto.INT8
        node.input[5] = zero
    if not weights:
        return None
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((), np.int8), zero))
    return model.SerializeToString(), weights


def multiplies_signed_bytes() -> bool:
    """Whether this processor multiplies unsigned by signed bytes without saturating (VNNI), as far as is known."""
    try:
        return "_vnni" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
