"""Routed experts: what each token takes, in the body of the operation and in every graph that is made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.exporters.onnx import Options
from isoform.exporters.tracing import trace
from isoform.reference.model import open_model
from isoform.reference.modules import ops
from isoform.reference.modules.experts import RoutedMLP
from isoform.reference.text.qwen3_moe import Qwen3MoeConfig, plan
from isoform.signature import BATCH, LENGTH, Port, Signature
from tests.exports import exported, file_of
from tests.oracle import tiny

NAMES = ("mixtral", "mixtral_b", "qwen3_moe", "qwen3_moe_b", "qwen3_moe_window")


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one_by_one(x: Tensor, scores: Tensor, matrices: tuple[Tensor, ...], used: int, normalize: bool) -> Tensor:
    """The definition, token by token."""
    gate, up, down = matrices
    rows = []
    for token, row in zip(x, scores.softmax(-1), strict=True):
        best = row.argsort(descending=True)[:used]
        weights = row[best] / row[best].sum() if normalize else row[best]
        made = [down[e] @ (F.silu(gate[e] @ token) * (up[e] @ token)) for e in best]
        rows.append(sum(w * y for w, y in zip(weights, made, strict=True)))
    return torch.stack([torch.as_tensor(row) for row in rows])


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(1, 6),
    used=st.integers(1, 6),
    batch=st.integers(1, 3),
    length=st.integers(1, 5),
    normalize=st.booleans(),
    seed=st.integers(0, 99),
)
def test_each_token_takes_the_experts_with_the_highest_scores(
    count: int, used: int, batch: int, length: int, normalize: bool, seed: int
) -> None:
    used = min(used, count)
    x, scores = drawn(batch, length, 5, seed=seed), drawn(batch, length, count, seed=seed + 1)
    matrices = drawn(count, 4, 5, seed=2), drawn(count, 4, 5, seed=3), drawn(count, 5, 4, seed=4)
    found = ops.routed_experts(x, scores, *matrices, used, int(normalize))
    expected = one_by_one(x.flatten(0, 1), scores.flatten(0, 1), matrices, used, normalize).view_as(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------ in graphs
def route(name: str, ids: Tensor) -> list[list[int]]:
    """The experts that the last token takes in the last layer that has some."""
    module = open_model(tiny(name)).module()
    layers: Any = module.layers
    layer = [layer for layer in layers if hasattr(layer.mlp, "router")][-1]
    scores: list[Tensor] = []
    layer.mlp.router.register_forward_hook(lambda module, given, made: scores.append(made))
    module(ids)
    return [sorted(row.topk(layer.mlp.used).indices.tolist()) for row in scores[0][0]]


@pytest.mark.parametrize("form", ["onnx", "portable", "torchscript"])
@pytest.mark.parametrize("name", NAMES)
def test_a_graph_routes_every_input_for_itself(name: str, form: str) -> None:
    """One token, whose experts alone are read in the portable graph, and many, where all of them are."""
    model = open_model(tiny(name))
    vocabulary = model.config.vocabulary or 0
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randint(5, vocabulary, (1, length), generator=draw) for length in (1, 1, 1, 1, 17, 40)]
    assert len({str(route(name, ids)) for ids in inputs[:4]}) > 1  # otherwise a frozen route would be right
    folder = exported(name, ["onnx"], onnx=Options(portable=True)) if form == "portable" else exported(name)
    path = file_of(folder, "torchscript" if form == "torchscript" else "onnx")
    states = [state.shape(1) for state in model.signature.states]
    for ids in inputs:
        mask, positions = torch.ones_like(ids), torch.arange(ids.shape[1]).view(1, -1)
        expected = model.module()(ids, mask, positions)[0]
        if form == "torchscript":
            with pytest.warns(DeprecationWarning):
                traced = torch.jit.load(str(path))
            found = traced(ids, mask, positions, *(torch.zeros(shape) for shape in states))[0]
        else:
            feed = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
            arrays = {key: value.numpy() for key, value in feed.items()}
            for state, shape in zip(model.signature.states, states, strict=True):
                arrays[state.input] = np.zeros(shape, np.float32)
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            found = torch.from_numpy(session.run(["logits"], arrays)[0])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_experts_larger_than_memory_are_traced() -> None:
    """Nothing is computed of 128 experts of real size: their matrices are on the meta device."""
    with torch.device("meta"):
        module = RoutedMLP(2048, 768, 128, 8, True)
    axes = (BATCH, LENGTH, 2048)
    found = trace(module, Signature((Port("x", "float", axes),), (Port("y", "float", axes),)), torch.float32)
    (node,) = (node for node in found.nodes if node.kind == "isoform::routed_experts")
    ((_, type_),) = node.outputs
    assert type_ is not None
    assert type_.shape == axes


# ------------------------------------------------------------------ its settings
def test_layers_have_experts_by_step_and_by_name() -> None:
    config = {"num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3]}
    made = plan(Qwen3MoeConfig.from_dict({"head_dim": 8, **config}))
    assert [kind.routed for kind in made.kinds] == [False, True, False, False, False, True]
    assert {"layers.1.mlp.router.weight", "layers.2.mlp.gate.weight"} <= made.shapes(True).keys()


def test_more_experts_than_there_are_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot take 9 of 8 experts"):
        plan(Qwen3MoeConfig.from_dict({"num_experts": 8, "num_experts_per_tok": 9}))


def test_another_activation_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="hidden_act"):
        Qwen3MoeConfig.from_dict({"hidden_act": "gelu"})
