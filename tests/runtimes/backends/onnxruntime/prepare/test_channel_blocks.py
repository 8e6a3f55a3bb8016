"""Linear layers in blocks of channels: the same numbers, from every graph that has them; nothing else is touched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoform.errors import CheckpointError
from isoform.runtimes.backends.onnxruntime.graph_file import nodes
from isoform.runtimes.backends.onnxruntime.prepare import channel_blocks, prepared_graph
from isoform.runtimes.backends.onnxruntime.prepare.channel_blocks import BLOCKS, LINEAR, block_size, in_blocks
from isoform.runtimes.backends.onnxruntime.session import OnnxRuntimeSession
from tests.exports import exported
from tests.runtimes.backends.onnxruntime.prepare.graphs import SUMS, WIDTH, Graph, given, kinds, outputs_of

pytest.importorskip("onnxruntime")

needs_blocks = pytest.mark.skipif(block_size() is None, reason="nothing is known of this processor's blocks")


def in_graph(graph: Graph) -> Any:
    """The graph in blocks, None where nothing changes."""
    model = graph.model()
    return model.graph if in_blocks(model, graph.path.parent) else None


def both(graph: Graph, x: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[Any]]:
    """The outputs as the file has it, and in blocks."""
    with monkeypatch.context() as patch:
        patch.setattr(prepared_graph, "in_blocks", lambda *_: {})
        plain = outputs_of(graph.path, x)
    return plain, outputs_of(graph.path, x)


@needs_blocks
@pytest.mark.parametrize("out", [WIDTH, 3 * WIDTH, WIDTH + 5, 1])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 7), (3, 1), (4, 9)])
def test_a_layer_is_the_same_layer(
    out: int, batch: int, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = Graph(tmp_path)
    graph.linear("x", "y", out)
    graph.write(["y"])
    assert kinds(in_graph(graph)) == ["Unsqueeze", "ReorderInput", "Conv", "ReorderOutput", "Squeeze"]
    (plain,), (blocks,) = both(graph, given(batch, length, WIDTH), monkeypatch)
    assert plain.shape == blocks.shape == (batch, length, out)
    np.testing.assert_allclose(blocks, plain, rtol=0, atol=SUMS)


@needs_blocks
@pytest.mark.parametrize("out", [2 * WIDTH, WIDTH + 5])
def test_a_bias_goes_into_whole_blocks(out: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Graph(tmp_path)
    graph.op("Add", [graph.weight("bias", out), graph.linear("x", "product", out)], "y")
    graph.write(["y"])
    assert ("Add" in kinds(in_graph(graph))) is bool(out % WIDTH)
    (plain,), (blocks,) = both(graph, given(2, 3, WIDTH), monkeypatch)
    np.testing.assert_allclose(blocks, plain, rtol=0, atol=SUMS)


def residual_layer(graph: Graph, x: str, name: str, *, scaled: bool = True) -> str:
    """x + scale * (linear(gelu(linear(norm(x)))) + bias), as a transformer's second half has it."""
    wide = graph.linear(graph.norm(x, f"{name}.norm"), f"{name}.up", 3 * WIDTH)
    wide = graph.op(
        "Gelu", [graph.op("Add", [wide, graph.weight(f"{name}.up.bias", 3 * WIDTH)], f"{name}.b")], f"{name}.g"
    )
    y = graph.linear(wide, f"{name}.down", WIDTH, 3 * WIDTH)
    y = graph.op("Add", [y, graph.weight(f"{name}.bias", WIDTH)], f"{name}.y")
    y = graph.op("Mul", [y, graph.weight(f"{name}.scale", WIDTH)], f"{name}.scaled") if scaled else y
    return graph.op("Add", [x, y], f"{name}.sum")


@needs_blocks
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 7), (3, 1), (4, 9)])
def test_scales_and_residuals_are_part_of_the_convolution(
    batch: int, length: int, scaled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = Graph(tmp_path)
    first = residual_layer(graph, "x", "first", scaled=scaled)
    second = residual_layer(graph, first, "second", scaled=scaled)
    graph.norm(second, "y")
    graph.write(["y"])
    found = in_graph(graph)
    assert not {"Add", "Mul"} & {*kinds(found)}
    assert kinds(found).count("ReorderInput") == 3  # of two norms, and of the first residual
    for outputs in (["y"], ["y", first, "second.up"]):
        graph.write(outputs)
        plain, blocks = both(graph, given(batch, length, WIDTH), monkeypatch)
        for one, other in zip(plain, blocks, strict=True):
            np.testing.assert_allclose(other, one, rtol=0, atol=SUMS)


@needs_blocks
@pytest.mark.parametrize("how", ["shorter", "elsewhere", "used", "given", "twice", "wide", "shared"])
def test_what_is_no_residual_or_scale_stays(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has other axes or another origin, or where somebody else needs what comes before it."""
    graph = Graph(tmp_path)
    inside = graph.linear(graph.norm("x", "norm"), "inside", WIDTH)
    outputs = ["y"]
    if how == "shorter":  # (B, 1, C)
        bounds = [graph.integers(name, [value]) for name, value in (("start", 0), ("end", 1), ("axis", 1))]
        graph.op("Add", [graph.op("Slice", ["x", *bounds], "row"), inside], "y")
    elif how == "elsewhere":  # as large, but nothing says so
        turned = graph.op("Transpose", [graph.op("Transpose", ["x"], "t", perm=[0, 2, 1])], "u", perm=[0, 2, 1])
        graph.op("Add", [turned, inside], "y")
    elif how == "used":
        graph.op("Mul", [graph.op("Add", ["x", inside], "sum"), inside], "y")
    elif how == "given":
        graph.op("Add", ["x", inside], "y")
        outputs = ["y", "inside"]
    elif how == "twice":
        graph.op("Add", [inside, inside], "y")
    elif how == "wide":
        graph.op("Add", [graph.op("Mul", [inside, graph.weight("scale", 1, 1, WIDTH)], "scaled"), "x"], "y")
    else:
        again = graph.op(LINEAR, [inside, "inside.weight"], "again", "com.microsoft", transB=1)
        graph.op("Mul", [again, graph.weight("scale", WIDTH)], "y")
    graph.write(outputs)
    assert {"Add", "Mul"} & {*kinds(in_graph(graph))}
    plain, blocks = both(graph, given(2, 5, WIDTH), monkeypatch)
    for one, other in zip(plain, blocks, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=SUMS)


@needs_blocks
def test_what_lies_between_layers_stays_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gated activation, with a bias, a number and a use of one of the values outside."""
    graph = Graph(tmp_path)
    gate, up = graph.linear("x", "gate", 2 * WIDTH), graph.linear("x", "up", 2 * WIDTH)
    up = graph.op("Add", [up, graph.weight("bias", 2 * WIDTH)], "up.Add")
    gate = graph.op("Mul", [gate, graph.op("Sigmoid", [gate], "Sigmoid")], "silu")
    gated = graph.op("Mul", [graph.op("Mul", [gate, graph.weight("number", 1, 1)], "scaled"), up], "gated")
    graph.linear(gated, "y", WIDTH, 2 * WIDTH)
    graph.write(["y"])
    found = in_graph(graph)
    assert [kinds(found).count(kind) for kind in ("Conv", "ReorderInput", "ReorderOutput")] == [3, 1, 1]
    for outputs in (["y"], ["y", "silu"], ["y", "gated"]):
        graph.write(outputs)
        plain, blocks = both(graph, given(2, 5, WIDTH), monkeypatch)
        for one, other in zip(plain, blocks, strict=True):
            np.testing.assert_allclose(other, one, rtol=0, atol=SUMS)


@needs_blocks
def test_values_of_another_width_or_from_elsewhere_leave_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = Graph(tmp_path)
    wide, one = graph.linear("x", "wide", WIDTH), graph.linear("x", "one", 1)
    mixed = graph.op("Mul", [graph.op("Mul", [wide, one], "by.one"), "x"], "mixed")
    graph.linear(graph.op("Tanh", [mixed], "Tanh"), "y", WIDTH)
    graph.write(["y"])
    assert kinds(in_graph(graph)).count("ReorderOutput") == 3
    (plain,), (blocks,) = both(graph, given(2, 5, WIDTH), monkeypatch)
    np.testing.assert_allclose(blocks, plain, rtol=0, atol=SUMS)


@needs_blocks
def test_a_shared_weight_is_laid_out_once_and_kept_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Graph(tmp_path)
    first = graph.linear("x", "first", WIDTH)
    second = graph.op(LINEAR, [first, "first.weight"], "second", "com.microsoft", transB=1)
    graph.op("Add", [second, "first.weight"], "y")
    graph.write(["y"])
    assert [*in_blocks(graph.model(), tmp_path)] == ["first.weight.blocks"]
    (plain,), (blocks,) = both(graph, given(1, WIDTH, WIDTH), monkeypatch)
    np.testing.assert_allclose(blocks, plain, rtol=0, atol=SUMS)


@pytest.mark.parametrize(
    ("rank", "width", "settings"),
    [(2, WIDTH, {}), (4, WIDTH, {}), (3, WIDTH + 4, {}), (3, WIDTH, {"transA": 1}), (3, WIDTH, {"alpha": 2.0})],
    ids=["rows", "pictures", "no whole blocks", "turned", "scaled"],
)
def test_other_products_stay(rank: int, width: int, settings: Mapping[str, Any], tmp_path: Path) -> None:
    graph = Graph(tmp_path)
    graph.linear("x", "y", WIDTH, width, **settings)
    graph.write(["y"], rank, width)
    assert in_graph(graph) is None


@needs_blocks
@pytest.mark.parametrize("kept", [True, False])
def test_a_layer_over_the_mean_of_the_rows_stays(kept: bool, tmp_path: Path) -> None:
    """A reduction drops its axes unless it says otherwise: a pooled text is (B, C)."""
    graph = Graph(tmp_path)
    pooled = graph.op("ReduceSum", ["x", graph.integers("axes", [1])], "pooled", keepdims=int(kept))
    graph.linear(pooled, "y", WIDTH)
    graph.write(["y"])
    assert (in_graph(graph) is not None) is kept
    (found,) = outputs_of(graph.path, given(2, 3, WIDTH))
    assert found.shape == ((2, 1, WIDTH) if kept else (2, WIDTH))


def test_files_that_are_not_whole_are_left_to_the_session(tmp_path: Path) -> None:
    graph = Graph(tmp_path)
    graph.linear("x", "y", WIDTH)
    graph.write(["y"])
    weights = tmp_path / "weights"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert in_graph(graph) is None
    weights.unlink()
    assert in_graph(graph) is None
    outside = tmp_path.parent / f"{tmp_path.name}.weights"
    outside.write_bytes(bytes(4 * WIDTH * WIDTH))
    weights.symlink_to(outside)
    assert in_graph(graph) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("location", ""),
        ("offset", "-4"),
        ("offset", "x"),
        ("length", "4"),
        ("length", "9" * 30),
        ("location", "../weights"),
    ],
)
def test_places_that_do_not_fit_are_left_to_the_session(key: str, value: str, tmp_path: Path) -> None:
    import onnx

    graph = Graph(tmp_path)
    graph.linear("x", "y", WIDTH)
    graph.write(["y"])
    model = graph.model()
    (entry,) = [item for item in model.graph.initializer[0].external_data if item.key == key] or [
        model.graph.initializer[0].external_data.add(key=key)
    ]
    entry.value = value
    onnx.save(model, graph.path)
    before = graph.model().SerializeToString()
    assert in_blocks(model, tmp_path) == {} and model.SerializeToString() == before
    with pytest.raises(CheckpointError, match=r"model\.onnx"):
        OnnxRuntimeSession(graph.path)


def test_unknown_processors_go_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Graph(tmp_path)
    graph.linear("x", "y", WIDTH)
    graph.write(["y"])
    monkeypatch.setattr(channel_blocks, "block_size", lambda: None)
    assert in_graph(graph) is None
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert block_size.__wrapped__() is None


@needs_blocks
@pytest.mark.parametrize(
    "name", ["llama", "whisper", "moonshine_b", "vit_cls", "dinov2", "bert", "wav2vec2_large", "clip", "blip_vqa"]
)
def test_exported_models_have_their_layers_in_blocks(name: str) -> None:
    """Every linear layer on (B, T, C) whose width fills blocks."""
    import onnx

    for path in sorted((exported(name) / "onnx").glob("*.onnx")):
        model = onnx.load(path, load_external_data=False)
        whole = {tensor.name for tensor in model.graph.initializer if tensor.dims[1:2] and not tensor.dims[1] % WIDTH}
        graph, before = model.graph, kinds(model.graph).count(LINEAR)
        assert in_blocks(model, path.parent), path.name
        after = [node for node in nodes(graph) if node.op_type == LINEAR]
        made = [node for node in nodes(graph) if node.op_type == "Conv" and node.domain == BLOCKS]
        assert len(made) + len(after) == before, path.name
        assert len([node for node in after if node.input[1] in whole]) <= 2, path.name  # on (B, C)
        with OnnxRuntimeSession(path) as session:
            assert {*session._graph.arrays} == {node.input[1] for node in made}
