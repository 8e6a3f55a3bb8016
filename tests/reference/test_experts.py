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
from isoform.exporters.onnx.external import write_weights
from isoform.exporters.onnx.translate import translate
from isoform.exporters.onnx.types import onnx_type
from isoform.exporters.tracing import trace
from isoform.reference.model import open_model
from isoform.reference.modules import ops
from isoform.reference.modules.experts import RoutedMLP
from isoform.reference.rules import Rename
from isoform.reference.text.qwen3_moe import Qwen3MoeConfig, plan
from isoform.reference.weights import Weight
from isoform.runtimes.backends.onnxruntime.graph_file import FOLDER_KEY, exact
from isoform.signature import BATCH, LENGTH, Port, Signature
from isoform.validators.levels.packed import held_weights
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
    found = ops.routed_experts(x, scores, *matrices, None, None, None, used, int(normalize), 1.0, 0.0, 0.0)
    expected = one_by_one(x.flatten(0, 1), scores.flatten(0, 1), matrices, used, normalize).view_as(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------ with biases, and values that are cut
def gpt_oss(count: int = 6, used: int = 3) -> tuple[RoutedMLP, Tensor, Tensor]:
    """GptOssMLP's weights in ours, an input that is cut at the limit, and what transformers makes of it."""
    from transformers.models.gpt_oss.configuration_gpt_oss import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_local_experts": count, "num_experts_per_tok": used}
    theirs = GptOssMLP(GptOssConfig(**sizes, swiglu_limit=2.0, swiglu_alpha=1.702)).eval()
    with torch.no_grad():
        for n, parameter in enumerate(theirs.parameters()):
            parameter.copy_(drawn(*parameter.shape, seed=n) * (0.5 if parameter.dim() == 2 else 0.3))
    mlp = RoutedMLP(32, 64, count, used, True, bias=True, alpha=1.702, shift=1.0, limit=2.0)
    stored = dict(theirs.named_parameters())
    both, biases = stored["experts.gate_up_proj"].transpose(1, 2), stored["experts.gate_up_proj_bias"]
    ours = {
        "router.weight": stored["router.weight"],
        "router.bias": stored["router.bias"],
        "experts.gate.weight": both[:, ::2],
        "experts.gate.bias": biases[:, ::2],
        "experts.up.weight": both[:, 1::2],
        "experts.up.bias": biases[:, 1::2],
        "experts.down.weight": stored["experts.down_proj"].transpose(1, 2),
        "experts.down.bias": stored["experts.down_proj_bias"],
    }
    mlp.load_state_dict({name: tensor.detach().contiguous() for name, tensor in ours.items()})
    x = drawn(2, 9, 32, seed=50).float()
    with torch.no_grad():
        return mlp, x, theirs(x)[0]


def in_memory(name: str, tensor: Tensor) -> Weight:
    return Weight(
        tuple(tensor.shape),
        "F32",
        lambda: tensor,
        lambda start, stop: tensor[start:stop],
        lambda: None,
        source=None,
        keys=(name,),
        rule=Rename(name, name),
    )


def test_biases_and_cut_gates_are_those_of_gpt_oss() -> None:
    mlp, x, wanted = gpt_oss()
    with torch.no_grad():
        torch.testing.assert_close(mlp(x), wanted, rtol=1e-5, atol=1e-5)
        mlp.limit = 0.0
        assert not torch.allclose(mlp(x), wanted, atol=1e-2)  # otherwise nothing is cut here


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", ["f32", "f32-portable", "int8", "q8_0", "q4_0", "q4a-16", "q8a-16"])
def test_a_graph_of_biases_and_cut_gates_is_that_of_gpt_oss(kind: str, normalize: bool, tmp_path: Path) -> None:
    """A batch, and a token, for which the portable graph reads the chosen matrices alone; weights as they are too."""
    mlp, x, wanted = gpt_oss()
    mlp.normalize = normalize
    signature = Signature((Port("x", "float", (BATCH, LENGTH, 32)),), (Port("y", "float", (BATCH, LENGTH, 32)),))
    held = {name: parameter.detach() for name, parameter in mlp.named_parameters()}
    with torch.device("meta"):
        traced = RoutedMLP(32, 64, 6, 3, normalize, bias=True, alpha=1.702, shift=1.0, limit=2.0)
    table = onnx_type(kind).lowerings("")
    graph, parameters = translate(trace(traced, signature, torch.float32), signature, torch.float32, {}, table)
    weights = {name: in_memory(name, tensor) for name, tensor in held.items()}
    write_weights(graph, parameters, weights, tmp_path / "g.onnx_data", tmp_path, lambda *_: None)
    (tmp_path / "g.onnx").write_bytes(graph.SerializeToString())
    packed = held_weights(tmp_path / "g.onnx")
    quantized = {name for name, weight in packed.items() if weight.bits}  # the router too: it is in no layer here
    assert quantized == (set() if kind.startswith("f32") else {name for name in held if name.endswith("weight")})
    with torch.no_grad():
        for name, parameter in mlp.named_parameters():
            if name in quantized:
                parameter.copy_(torch.from_numpy(packed[name].rows(0, len(parameter))))
        wanted = mlp(x) if quantized or not normalize else wanted
    source = exact(tmp_path / "g.onnx") or (tmp_path / "g.onnx").read_bytes()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(FOLDER_KEY, str(tmp_path))
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    for part, made in ((x, wanted), (x[:1, :1], wanted[:1, :1])):
        found = torch.from_numpy(session.run(None, {"x": part.numpy()})[0])
        torch.testing.assert_close(found, made, rtol=1e-4, atol=1e-4)


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
