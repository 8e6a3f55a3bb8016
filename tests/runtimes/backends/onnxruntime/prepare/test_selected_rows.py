"""A choice of rows before the last layer gives what it gives after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoform.runtimes.backends.onnxruntime.prepare import prepared_graph
from isoform.runtimes.backends.onnxruntime.prepare.selected_rows import select_early
from isoform.runtimes.backends.onnxruntime.session import OnnxRuntimeSession
from tests.exports import exported, file_of
from tests.runtimes.backends.onnxruntime.prepare.graphs import SUMS, WIDTH, Graph, given, kinds, outputs_of

pytest.importorskip("onnxruntime")

LENGTH = 7


def layer(graph: Graph, x: str = "x", mask: str = "") -> str:
    """An encoder's layer (B, T, C): attention and a feed-forward network, with norms, biases and residual sums."""
    normed = graph.norm(x, "attn.norm")
    queries, keys, values = (graph.linear(normed, f"attn.{name}", WIDTH) for name in "qkv")
    inputs = [queries, keys, values, *(("", "", mask) if mask else ())]
    mixed = graph.op("MultiHeadAttention", inputs, "attn", "com.microsoft", num_heads=2)
    x = graph.op("Add", [x, graph.linear(mixed, "attn.out", WIDTH)], "attn.Add")
    wide = graph.linear(graph.norm(x, "mlp.norm"), "mlp.up", 3 * WIDTH)
    wide = graph.op("Gelu", [graph.op("Add", [wide, graph.weight("mlp.bias", 3 * WIDTH)], "mlp.Add")], "Gelu")
    return graph.op("Add", [x, graph.linear(wide, "mlp.down", WIDTH, 3 * WIDTH)], "layer")


def choose(graph: Graph, x: str, how: str) -> str:
    if how == "slice":
        ends = [graph.integers(name, [value]) for name, value in (("start", -2), ("end", 2**62), ("axis", 1))]
        return graph.op("Slice", [x, *ends], "chosen")
    return graph.op("Gather", [x, graph.integers("index", int(how))], "chosen", axis=1)


def moved(graph: Graph) -> Any:
    """The graph with the choice moved, None where nothing changes."""
    model = graph.model()
    return model.graph if select_early(model.graph) else None


def both(graph: Graph, x: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[Any]]:
    """The outputs as the file has it, and with the choice moved."""
    with monkeypatch.context() as patch:
        patch.setattr(prepared_graph, "select_early", lambda *_: False)
        plain = outputs_of(graph.path, x)
    return plain, outputs_of(graph.path, x)


@pytest.mark.parametrize("how", ["0", "3", "-1", "slice"])
def test_the_chosen_rows_are_those_of_all(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Graph(tmp_path)
    graph.linear(choose(graph, graph.norm(layer(graph), "norm"), how), "y", 5)
    graph.write(["y"])
    found = moved(graph)
    sliced = [node.input[0] for node in found.node if node.op_type == "Slice"]
    assert sorted(sliced) == ["attn.norm", "x"]  # for the queries and the residual sum; not for keys and values
    (plain,), (early,) = both(graph, given(2, LENGTH, WIDTH), monkeypatch)
    assert plain.shape == early.shape and plain.shape[-1] == 5
    np.testing.assert_allclose(early, plain, rtol=0, atol=SUMS)


@pytest.mark.parametrize("outputs", [["y", "layer"], ["y", "Gelu"], ["y", "attn.norm"]])
def test_what_others_take_is_made_for_all_rows(
    outputs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = Graph(tmp_path)
    graph.linear(choose(graph, layer(graph), "0"), "y", WIDTH)
    graph.write(outputs)
    plain, early = both(graph, given(2, LENGTH, WIDTH), monkeypatch)
    for one, other in zip(plain, early, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=SUMS)
    assert (moved(graph) is None) is (outputs[1] == "layer")


def test_attention_with_more_than_queries_keys_and_values_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = Graph(tmp_path)
    mask = graph.weight("bias", 1, 1, LENGTH, LENGTH)
    graph.linear(choose(graph, layer(graph, mask=mask), "2"), "y", WIDTH)
    graph.write(["y"])
    assert sorted(node.input[0] for node in moved(graph).node if node.op_type == "Slice") == ["attn", "x"]
    (plain,), (early,) = both(graph, given(2, LENGTH, WIDTH), monkeypatch)
    np.testing.assert_allclose(early, plain, rtol=0, atol=SUMS)


@pytest.mark.parametrize("case", ["positions", "other axis", "no product", "of two"])
def test_what_is_not_the_same_row_of_something_stops_the_choice(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = Graph(tmp_path)
    match case:
        case "positions":  # a constant for every row
            x = graph.op("Add", [graph.linear("x", "up", WIDTH), graph.weight("places", 1, LENGTH, WIDTH)], "sum")
        case "other axis":
            x = graph.norm(graph.linear("x", "up", WIDTH), "norm", axis=1, width=WIDTH, length=LENGTH)
        case "no product":
            x = graph.norm("x", "norm")
        case _:  # a row of the product of two activations depends on all rows of the second
            x = graph.op("MatMul", [graph.linear("x", "up", LENGTH), "x"], "product")
    graph.linear(choose(graph, x, "1"), "y", WIDTH)
    graph.write(["y"])
    assert moved(graph) is None
    (plain,), (early,) = both(graph, given(2, LENGTH, WIDTH), monkeypatch)
    np.testing.assert_allclose(early, plain, rtol=0, atol=SUMS)


@pytest.mark.parametrize("name", ["vit_cls", "llama", "qwen2_b", "gemma3_new", "whisper"])
def test_exported_models_choose_before_the_last_layer(
    name: str,
) -> None:
    import onnx

    for path in sorted((exported(name) / "onnx").glob("*model*.onnx")):
        if path.name.startswith(("encoder", "alignment")):
            continue
        graph = onnx.load(path, load_external_data=False).graph
        products = kinds(graph).count("FusedMatMul")
        assert select_early(graph), path.name
        assert kinds(graph).count("FusedMatMul") == products


@pytest.mark.parametrize("name", ["vit_cls", "llama"])
def test_bytes_are_made_of_the_chosen_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx

    bundle = exported(name, ["onnx"], "int8")
    path = file_of(bundle, "onnx", "int8")
    graph = onnx.load(path, load_external_data=False).graph
    before = kinds(graph)
    assert select_early(graph)
    for kind in ("MatMulIntegerToFloat", "QuantizeLinear"):
        assert kinds(graph).count(kind) == before.count(kind)
    places = [n for n, node in enumerate(graph.node) if "selected_rows" in "".join(node.output)]
    late = [node.op_type for node in graph.node[min(places) :]]
    assert late.count("MatMulIntegerToFloat") >= 3 and late.count("QuantizeLinear") >= 2
    outputs = []
    for early in (False, True):
        with monkeypatch.context() as patch:
            if not early:
                patch.setattr(prepared_graph, "select_early", lambda *_: False)
            with OnnxRuntimeSession(path, threads=1) as session:
                if name == "llama":
                    outputs.append(session.decoder(1).step(np.array([[5, 9, 7, 11, 3, 8]])))
                else:
                    sizes = [2, *(size for size in session.signature.inputs[0].axes[1:] if isinstance(size, int))]
                    outputs.append(session.run({"pixel_values": given(*sizes)})["logits"])
    np.testing.assert_array_equal(outputs[0], outputs[1])


def test_a_prompt_has_the_same_last_logits() -> None:
    ids = np.array([[5, 9, 7, 11, 3, 8], [2, 5, 6, 7, 8, 9]])
    with OnnxRuntimeSession(file_of(exported("llama"), "onnx")) as session:
        assert session.trims
        every = session.decoder(2).step(ids, last=None)
        last = session.decoder(2).step(ids)
    assert every.shape[:2] == ids.shape
    np.testing.assert_allclose(last, every[:, -1], rtol=0, atol=SUMS)
