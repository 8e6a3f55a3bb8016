"""A model's forward pass as one flat graph, traced on tensors without data.

`torch.jit.trace` records the skeleton on the meta device, with every semantic operation of `reference.ops` as one
opaque node `isoform::name`. The trace is taken twice, at different sizes: what agrees is fixed, what differs follows an
axis of the signature, and a number that was computed from a size and frozen into the graph is found, not shipped.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from isoform.errors import UnsupportedExport
from isoform.reference.modules import ops
from isoform.signature import LENGTH, PAST, SLOTS, Axis, Port, Signature

_library = torch.library.Library("isoform", "FRAGMENT")
_operators: dict[str, Callable[..., Any]] = {}

COMPUTED = frozenset(
    (
        *("abs", "add", "arange", "bitwise_and", "bitwise_not", "bitwise_or", "clamp", "cos", "cumsum", "div", "eq"),
        *("erf", "exp", "ge", "gelu", "gt", "le", "logical_and", "logical_not", "logical_or", "lt", "masked_fill"),
        *("mul", "native_layer_norm", "ne", "neg", "pow", "relu", "rsub", "sigmoid", "silu", "sin", "sqrt", "sub"),
        *("tanh", "where"),
    )
)
"""Operations whose shapes are found by computing them."""

MOST = 2**22  # values that such an operation may read


@dataclass(frozen=True, slots=True)
class Type:
    """A tensor's dtype and shape; a size that varies is the name of its axis, or `"?…"` where no axis has it."""

    dtype: torch.dtype
    shape: tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """One operation: the names of its inputs, and per output a name and (for a tensor) a type.

    `value` holds a constant, or the attribute's name of prim::GetAttr. `scope` is the module's path ("layers.0.attn").
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[tuple[str, Type | None], ...]
    scope: str
    value: Any = None


@dataclass(frozen=True, slots=True)
class Trace:
    """`nodes` in order; `inputs` and `outputs` are value names in the signature's order, `root` is the module's.

    `parameters` and `buffers` are the module's, by path: types of the ones, values of the others.
    """

    nodes: tuple[Node, ...]
    root: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: Mapping[str, Type]
    buffers: Mapping[str, Tensor]


def operators() -> Mapping[str, Callable[..., Any]]:
    """Every semantic operation as an opaque torch operator with the same body, for `ops.lowered_by`."""
    for name, body in ops.OPS.items():
        if name not in _operators:
            _library.define(name + torch.library.infer_schema(body, mutates_args=()))
            _library.impl(name, body, "CompositeExplicitAutograd")
            _operators[name] = getattr(torch.ops.isoform, name)
    return _operators


def trace(module: nn.Module, signature: Signature, dtype: torch.dtype) -> Trace:
    """Trace a skeleton whose parameters are of `dtype` on the meta device; its buffers move there, too.

    Raises UnsupportedExport when the graph depends on the sizes it was traced with.
    """
    buffers = {name: buffer.detach().cpu() for name, buffer in module.named_buffers()}
    for owner in module.modules():
        for leaf, buffer in owner._buffers.items():
            owner._buffers[leaf] = None if buffer is None else buffer.to("meta")
    small, large = two_sizes(signature)
    graphs = [_record(module, examples(signature, sizes, dtype)) for sizes in (small, large)]
    names = {(small[name], large[name]): name for name in small}
    first, second = (list(graph.nodes()) for graph in graphs)
    if [n.kind() for n in first] != [n.kind() for n in second]:
        raise UnsupportedExport(
            "the model takes another path for another input size, which a graph cannot hold; "
            "write the branch with tensor operations"
        )
    root, *inputs = (value.debugName() for value in graphs[0].inputs())
    nodes = tuple(_node(a, b, names) for a, b in zip(first, second, strict=True))
    parameters = {
        name: Type(parameter.dtype, tuple(parameter.shape))
        for name, parameter in module.named_parameters(remove_duplicate=False)
    }
    return Trace(nodes, root, tuple(inputs), tuple(_returned(graphs[0])), parameters, buffers)


def two_sizes(signature: Signature) -> tuple[dict[str, int], dict[str, int]]:
    """A small and a large size for every named axis, in its unit; no two axes share a pair, none of them is 0 or 1.

    Those that the signature states go before. An axis that may be 0 is so in the small sizes, which proves that the
    graph serves both.
    """
    names = dict.fromkeys(axis for port in signature.inputs for axis in port.axes if isinstance(axis, str))
    relations = signature.sizes or (SLOTS if {LENGTH, PAST} <= names.keys() else ())
    for relation in relations:
        names.pop(relation.axis, None)
    small, large = (
        {name: (first + step * n) * signature.units.get(name, 1) for n, name in enumerate(names)}
        for first, step in ((2, 1), (5, 3))
    )
    for axis, (less, more) in signature.traced.items():
        small[axis], large[axis] = less, more
    for sizes in (small, large):
        for relation in relations:
            if (size := relation.value(sizes)) is not None:
                sizes[relation.axis] = 0 if relation.optional and sizes is small else size
    return small, large


def examples(signature: Signature, sizes: Mapping[str, int], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Inputs of these sizes on the meta device; floating ones are of `dtype`. A switch is on the CPU, and off."""

    def example(port: Port) -> Tensor:
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in port.axes]
        kind = {"bool": torch.bool, "int64": torch.int64}.get(port.dtype, dtype)
        return torch.zeros(shape, dtype=kind, device="cpu" if port.role == "switch" else "meta")

    return tuple(map(example, signature.inputs))


@contextmanager
def convolutions() -> Iterator[None]:
    """Within this block a convolution on the meta device is recorded as aten::_convolution, as it is elsewhere.

    torch gives the meta device a kernel of its own for the operation around that one, which the tracer leaves out.
    """
    library = torch.library.Library("aten", "IMPL")
    library.impl("_convolution", lambda *arguments: _convolved(*arguments[:9]), "Meta", allow_override=True)
    try:
        with _Recorded():
            yield
    finally:
        library._destroy()


class _Recorded(TorchFunctionMode):
    """Calls torch's innermost convolution for the outer ones, but for those whose padding is a word."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.conv1d, torch.conv2d, torch.conv3d):
            return _plain(function, False, *args, **(kwargs or {}))
        if function in (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d):
            return _turned(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _turned(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    return _plain(None, True, input, weight, bias, stride, padding, dilation, groups, output_padding)


def _plain(
    function: Any,
    transposed: bool,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    output_padding: Any = 0,
) -> Tensor:
    if isinstance(padding, str):
        return function(input, weight, bias, stride, padding, dilation, groups)
    axes = weight.dim() - 2
    sizes = [[x] * axes if isinstance(x, int) else list(x) for x in (stride, padding, dilation, output_padding)]
    sizes = [x * axes if len(x) == 1 else x for x in sizes]
    stride, padding, dilation, output_padding = sizes
    settings = stride, padding, dilation, transposed, output_padding, groups, False, False, True, True
    result: Tensor = torch._convolution(input, weight, bias, *settings)
    return result


def _convolved(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Tensor:
    """What a convolution gives, without its values. Raises UnsupportedExport for an input that is too small."""
    before, kernel = ([int(size) for size in tensor.shape] for tensor in (x, weight))  # they may be traced
    rows = zip(before[2:], kernel[2:], stride, padding, dilation, output_padding, strict=True)
    if transposed:
        sizes = [(n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, k, s, p, d, o in rows]
    else:
        sizes = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d, _ in rows]
    if min(sizes) < 1:
        raise UnsupportedExport(f"a convolution over {tuple(x.shape)} leaves nothing; state larger units in the card")
    return torch.empty(before[0], kernel[1] * groups if transposed else kernel[0], *sizes, dtype=x.dtype, device="meta")


class Shapes(TorchDispatchMode):
    """Finds the shapes of elementwise and semantic operations by computing them, on zeros.

    On the meta device torch does that in Python, and imports its compiler and a computer algebra system first: a second
    and a half, a quarter of a small export.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the default imports that compiler to keep it away

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, schema = kwargs or {}, func._schema
        name = schema.name.removeprefix("aten::")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if all(tensor.is_meta for tensor in tensors) and not schema.is_mutable:
            if name in ("mm", "addmm"):
                left, right = args[-2:]
                return torch.empty(left.shape[0], right.shape[1], dtype=left.dtype, device="meta")
            if name == "embedding":
                weight, ids = args[:2]
                return torch.empty(*ids.shape, weight.shape[1], dtype=weight.dtype, device="meta")
            wanted = name in COMPUTED or name.startswith("isoform::")
            if wanted and str(kwargs.get("device", "meta")) == "meta" and sum(x.numel() for x in tensors) < MOST:
                if "device" in kwargs:
                    kwargs = {**kwargs, "device": torch.device("cpu")}
                args, kwargs = tree_map_only(Tensor, _zeros, (args, kwargs))
                return tree_map_only(Tensor, _without_data, func(*args, **kwargs))
        return func(*args, **kwargs)


def _zeros(like: Tensor) -> Tensor:
    extent = sum((size - 1) * stride for size, stride in zip(like.shape, like.stride(), strict=True)) + 1
    return torch.zeros(extent if like.numel() else 0, dtype=like.dtype).as_strided(like.shape, like.stride())


def _without_data(like: Tensor) -> Tensor:
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="meta")


def _record(module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """The inlined graph (torch._C.Graph) of one forward pass on these inputs."""
    with warnings.catch_warnings(), torch.no_grad(), convolutions(), ops.lowered_by(operators()), Shapes():
        # "Might not generalize to other inputs": that is what the second trace finds out.
        warnings.simplefilter("ignore", TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(module, inputs, strict=False, check_trace=False)
    return traced.inlined_graph


def _returned(graph: Any) -> Iterator[str]:
    """The names of the returned tensors, tuples taken apart."""
    (result,) = graph.outputs()
    node = result.node()
    if node.kind() != "prim::TupleConstruct":
        yield result.debugName()
        return
    for value in node.inputs():
        yield value.debugName()


def _node(a: Any, b: Any, names: Mapping[tuple[int, int], str]) -> Node:
    """One node from the two traces, checked to hold the same constants."""
    kind, scope = a.kind(), a.scopeName().rpartition("__module.")[2]
    value = None
    if kind == "prim::GetAttr":
        value = a.s("name")
    elif kind == "prim::Constant":
        value, other = a.output().toIValue(), b.output().toIValue()
        if not _same(value, other):
            raise UnsupportedExport(
                f"{scope or 'the model'} computes {value!r} from an input's size in Python and freezes it; "
                "keep sizes as `tensor.shape[n]` in its forward pass"
            )
    outputs = tuple((x.debugName(), _type(x, y, names)) for x, y in zip(a.outputs(), b.outputs(), strict=True))
    return Node(kind, tuple(x.debugName() for x in a.inputs()), outputs, scope, value)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.device.type != "meta" and torch.equal(a, b)
    return type(a) is type(b) and (a == b or a != a)


def _type(a: Any, b: Any, names: Mapping[tuple[int, int], str]) -> Type | None:
    if a.type().kind() != "TensorType" or a.type().sizes() is None:
        return None
    pairs = zip(a.type().sizes(), b.type().sizes(), strict=True)
    return Type(a.type().dtype(), tuple(x if x == y else names.get((x, y), f"?{x}/{y}") for x, y in pairs))
