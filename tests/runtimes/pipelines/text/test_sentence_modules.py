"""The modules of sentence-transformers after a model, in every form, against sentence-transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from isoform import api
from isoform.cli import app
from isoform.errors import CheckpointError, InputError, UnsupportedModel
from isoform.reference.model import open_model
from isoform.runtimes.pipelines.text.pooling import ACTIVATIONS, Recipe
from isoform.sentence_modules import MODES, SENTENCE, read_sentence_modules

Tiny = Callable[[str], Path]
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-5}  # float32 through a few layers, summed in another order
TEXTS = ["The small cat reads a large red book.", "a", "", "naïve café 東京", "every teacher knows this: " * 6]
WIDTH = 40


def folder_with(tmp_path: Path, source: Path, *kinds: Any, inner: str = "", **config: Any) -> Path:
    """A copy of a checkpoint with these modules after it; they write themselves. `inner` is the model's folder."""
    folder = tmp_path / "m"
    shutil.copytree(source, folder / inner, ignore=shutil.ignore_patterns("*_Pooling", "*_Normalize", "modules.json"))
    settings = json.loads((folder / inner / "config.json").read_text()) | config
    (folder / inner / "config.json").write_text(json.dumps(settings))
    listed = [("0", inner, "Transformer")]
    for n, module in enumerate(kinds, 1):
        kind = type(module).__name__
        (folder / f"{n}_{kind}").mkdir()
        module.save(str(folder / f"{n}_{kind}"))
        listed.append((str(n), f"{n}_{kind}", kind))
    rows = [
        {"idx": n, "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (name, path, kind) in enumerate(listed)
    ]
    (folder / "modules.json").write_text(json.dumps(rows))
    return folder


def expected(folder: Path, texts: list[str] | None = None, **options: Any) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").encode(texts or TEXTS, **options)


def make(kind: str, **settings: Any) -> Any:
    """A module of sentence-transformers with weights that are not those it begins with."""
    from sentence_transformers.sentence_transformer import modules

    torch.manual_seed(len(kind))
    module = getattr(modules, kind)(**settings)
    for parameter in module.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape)
    return module


def pooling(*modes: str, **settings: Any) -> Any:
    return make("Pooling", embedding_dimension=WIDTH, pooling_mode=modes, **settings)


def dense(size_in: int = WIDTH, size_out: int = 12, activation: Any = None, **settings: Any) -> Any:
    sizes = {"in_features": size_in, "out_features": size_out}
    return make("Dense", **sizes, activation_function=activation or torch.nn.Tanh(), **settings)


STACKS: dict[str, Callable[[], list[Any]]] = {
    "dense": lambda: [pooling("mean"), dense(), make("Normalize")],
    "dense without bias": lambda: [pooling("cls"), dense(activation=torch.nn.Identity(), bias=False), dense(12, 7)],
    "dense on tokens": lambda: [dense(module_input_name="token_embeddings"), make("Pooling", embedding_dimension=12)],
    "residual": lambda: [pooling("mean"), dense(use_residual=True), dense(12, 12, use_residual=True)],
    "dropout": lambda: [pooling("mean"), make("Dropout", dropout=0.4), make("Normalize")],
    "layer norm": lambda: [pooling("mean", "max"), make("LayerNorm", dimension=2 * WIDTH), make("Normalize")],
    "every pooling": lambda: [pooling(*MODES)],
}


@pytest.mark.parametrize("name", STACKS)
def test_modules_give_the_vectors_of_sentence_transformers(name: str, tiny: Tiny, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, tiny("bert_embed"), *STACKS[name]())
    vectors = expected(folder)
    with api.pipeline("sentence-similarity", folder) as pipe:
        got = pipe(list(TEXTS))
        np.testing.assert_allclose(got, vectors, **CLOSE)
        np.testing.assert_allclose(pipe(list(TEXTS), batch_size=1), vectors, **CLOSE)
    with api.pipeline("feature-extraction", folder) as pipe:
        np.testing.assert_allclose(pipe(TEXTS[0], pooling="model"), vectors[0], **CLOSE)
        states = np.array(pipe(TEXTS[0])[0], np.float32)
    np.testing.assert_allclose(Recipe.read(folder).apply(states), vectors[0], **CLOSE)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_every_activation_is_torchs(activation: str, tiny: Tiny, tmp_path: Path) -> None:
    function = getattr(torch.nn, activation)()
    folder = folder_with(tmp_path, tiny("bert_embed"), pooling("mean"), dense(activation=function))
    vectors = expected(folder, TEXTS[:2])
    with api.pipeline("feature-extraction", folder) as pipe:
        for text, vector in zip(TEXTS, vectors, strict=False):
            np.testing.assert_allclose(pipe(text, pooling="model"), vector, **CLOSE)
            states = np.array(pipe(text)[0], np.float32)
            np.testing.assert_allclose(Recipe.read(folder).apply(states), vector, **CLOSE)


@pytest.mark.parametrize("name", ["bert_embed", "distilbert_base", "qwen2_b"])
def test_layers_are_weighed(name: str, tiny: Tiny, tmp_path: Path) -> None:
    settings = json.loads((tiny(name) / "config.json").read_text())
    width, depth = (
        settings.get("hidden_size") or settings["dim"],
        settings.get("num_hidden_layers") or settings["n_layers"],
    )
    layers = make("WeightedLayerPooling", embedding_dimension=width, num_hidden_layers=depth, layer_start=1)
    pooled = make("Pooling", embedding_dimension=width, pooling_mode="mean")
    folder = folder_with(tmp_path, tiny(name), layers, pooled, output_hidden_states=True)
    texts = [text for text in TEXTS if text]
    with api.pipeline("sentence-similarity", folder) as pipe:
        np.testing.assert_allclose(pipe(texts), expected(folder, texts), **CLOSE)


def test_layers_are_not_weighed_unless_the_model_gives_them(tiny: Tiny, tmp_path: Path) -> None:
    layers = make("WeightedLayerPooling", embedding_dimension=WIDTH, num_hidden_layers=2, layer_start=1)
    folder = folder_with(tmp_path, tiny("bert_embed"), layers, pooling("mean"))
    with api.pipeline("sentence-similarity", folder) as pipe:
        np.testing.assert_allclose(pipe(list(TEXTS)), expected(folder), **CLOSE)


def test_the_old_layout_has_the_model_in_a_folder_of_its_own(tiny: Tiny, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, tiny("bert_embed"), pooling("mean"), dense(), inner="0_Transformer")
    vectors = expected(folder)
    for given in (folder, folder / "0_Transformer"):
        with api.pipeline("sentence-similarity", given) as pipe:
            np.testing.assert_allclose(pipe(list(TEXTS)), vectors, **CLOSE)
    api.export(folder, tmp_path / "bundle", to="onnx")
    with api.pipeline("sentence-similarity", tmp_path / "bundle") as pipe:
        np.testing.assert_allclose(pipe(list(TEXTS)), vectors, **CLOSE)
    np.testing.assert_allclose(expected(_with_weights(tmp_path / "bundle", folder / "0_Transformer")), vectors, **CLOSE)
    assert api.check(tmp_path / "bundle").same


@pytest.mark.parametrize("inner", ["", "0_Transformer"])
def test_a_vocabulary_alone_serves_with_modules_behind_it(inner: str, tiny: Tiny, tmp_path: Path) -> None:
    """As repositories were before tokenizer.json."""
    folder = folder_with(tmp_path, tiny("bert_embed"), pooling("mean"), dense(), inner=inner)
    pieces = json.loads((folder / inner / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / inner / "vocab.txt").write_text("\n".join(sorted(pieces, key=pieces.__getitem__)) + "\n")
    vectors = expected(folder)
    (folder / inner / "tokenizer.json").unlink()
    with api.pipeline("sentence-similarity", folder) as pipe:
        np.testing.assert_allclose(pipe(list(TEXTS)), vectors, **CLOSE)
    api.export(folder, tmp_path / "bundle", to="onnx")
    assert api.check(tmp_path / "bundle").same
    with api.pipeline("sentence-similarity", tmp_path / "bundle") as pipe:
        np.testing.assert_allclose(pipe(list(TEXTS)), vectors, **CLOSE)


def _with_weights(bundle: Path, source: Path) -> Path:
    """A bundle beside the weights of its source: what sentence-transformers opens with its torch backend."""
    copy = bundle.with_name("opened")
    shutil.copytree(bundle, copy)
    shutil.copyfile(source / "model.safetensors", copy / "model.safetensors")
    return copy


def test_weights_of_a_module_may_be_pickled_or_half(tiny: Tiny, tmp_path: Path) -> None:
    module = dense().to(torch.bfloat16)
    folder = folder_with(tmp_path, tiny("bert_embed"), pooling("mean"), module)
    (folder / "2_Dense" / "model.safetensors").unlink()
    torch.save(module.state_dict(), folder / "2_Dense" / "pytorch_model.bin")
    with api.pipeline("sentence-similarity", folder) as pipe:
        vectors = pipe(list(TEXTS))
    np.testing.assert_allclose(vectors, expected(folder), **CLOSE)
    api.export(folder, tmp_path / "bundle", to="torchscript")
    states = np.random.default_rng(0).standard_normal((3, WIDTH), dtype=np.float32)
    x = torch.from_numpy(states.mean(0)) @ module.linear.weight.float().T + module.linear.bias.float()
    np.testing.assert_allclose(Recipe.read(tmp_path / "bundle").apply(states), x.tanh().detach(), **CLOSE)
    with pytest.raises(CheckpointError, match=r"2_Dense/model.safetensors is missing; export the model"):
        Recipe.read(folder).apply(states)


def test_a_bundle_serves_the_vectors_in_its_graph(tiny: Tiny, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, tiny("bert_embed"), pooling("lasttoken"), dense(), make("Normalize"))
    manifest = api.export(folder, tmp_path / "bundle")
    outputs = {artifact.format: [port.name for port in artifact.signature.outputs] for artifact in manifest.artifacts}
    assert outputs["onnx"] == outputs["torchscript"] == ["last_hidden_state", SENTENCE]
    assert outputs["gguf"] == ["last_hidden_state"]
    texts = ["The small cat.", "a"]
    for backend in ("onnxruntime", "torchscript", "llamacpp"):
        with api.pipeline("sentence-similarity", tmp_path / "bundle", backend=backend) as pipe:
            # llama.cpp looks GELU up in a table of float16, and the lookup is what is seen here.
            np.testing.assert_allclose(
                pipe(texts), expected(folder, texts), atol=5e-3 if backend == "llamacpp" else 2e-5
            )
    import onnxruntime

    file = next((tmp_path / "bundle" / "onnx").glob("*.onnx"))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["last_hidden_state", SENTENCE]


def test_a_prompt_that_pooling_leaves_out_is_left_out_in_every_form(tiny: Tiny, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, tiny("bert_embed"), pooling("mean", include_prompt=False), dense())
    api.export(folder, tmp_path / "bundle", to="onnx")
    for given in (folder, tmp_path / "bundle"):
        with api.pipeline("sentence-similarity", given) as pipe:
            for prompt in ("search: ", ""):
                np.testing.assert_allclose(pipe(list(TEXTS), prompt=prompt), expected(folder, prompt=prompt), **CLOSE)


def test_weighed_layers_are_refused_where_only_the_last_are_there(tiny: Tiny, tmp_path: Path) -> None:
    depth = json.loads((tiny("bert_embed") / "config.json").read_text())["num_hidden_layers"]
    layers = make("WeightedLayerPooling", embedding_dimension=WIDTH, num_hidden_layers=depth, layer_start=0)
    folder = folder_with(tmp_path, tiny("bert_embed"), layers, pooling("mean"), output_hidden_states=True)
    manifest = api.export(folder, tmp_path / "bundle")
    assert "WeightedLayerPooling" in manifest.missing["gguf"]
    for backend in ("onnxruntime", "torchscript"):
        with api.pipeline("sentence-similarity", tmp_path / "bundle", backend=backend) as pipe:
            np.testing.assert_allclose(pipe(list(TEXTS)), expected(folder), **CLOSE)


def test_weights_for_another_number_of_layers_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    layers = make("WeightedLayerPooling", embedding_dimension=WIDTH, num_hidden_layers=9, layer_start=0)
    folder = folder_with(tmp_path, tiny("bert_embed"), layers, pooling("mean"), output_hidden_states=True)
    with pytest.raises(CheckpointError, match="weighs 9 layers, the model has"):
        api.load(folder)


def test_modules_are_saved_with_the_model(tiny: Tiny, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, tiny("bert_embed"), pooling("mean"), dense(), make("Normalize"))
    model = open_model(folder)
    model.save(tmp_path / "same", verify=True)
    np.testing.assert_allclose(expected(tmp_path / "same"), expected(folder), **CLOSE)
    module = model.module()
    module.get_parameter("sentence.dense_1.linear.bias").data += 1
    model.save(tmp_path / "changed", module)
    with api.pipeline("sentence-similarity", tmp_path / "changed") as pipe:
        np.testing.assert_allclose(pipe(list(TEXTS)), expected(tmp_path / "changed"), **CLOSE)
        assert np.abs(pipe(TEXTS[0]) - expected(folder)[0]).max() > 0.01


def test_the_module_can_be_called_by_name(tiny: Tiny, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, tiny("bert_embed"), pooling("mean"))
    module = api.load(folder)
    ids = torch.tensor([[2, 7, 9, 3]])
    mask = torch.tensor([[1, 1, 1, 0]])
    states, vectors = module(ids, attention_mask=mask)
    torch.testing.assert_close(vectors, states[:, :3].mean(1))
    torch.testing.assert_close(module(input_ids=ids)[1], module(ids)[0].mean(1))


# ------------------------------------------------------------------ the task of a folder
@pytest.mark.parametrize(("name", "stored"), [("qwen2", "text-generation"), ("bert", "fill-mask")])
def test_modules_json_makes_it_an_embedding_model(name: str, stored: str, tiny: Tiny, tmp_path: Path) -> None:
    width = json.loads((tiny(name) / "config.json").read_text())["hidden_size"]
    folder = folder_with(
        tmp_path, tiny(name), make("Pooling", embedding_dimension=width, pooling_mode="lasttoken"), make("Normalize")
    )
    model = open_model(folder)
    assert model.task.name == "feature-extraction"
    note = f"modules.json makes the task feature-extraction, not {stored} (which --task {stored} asks for)"
    assert model.notes == (note,)
    manifest = api.export(folder, tmp_path / "bundle", to="onnx")
    assert (manifest.task, manifest.notes) == (model.task.name, [note])
    export = ["export", str(folder), "--out", str(tmp_path / "again"), "--to", "onnx", "--no-check"]
    result = CliRunner().invoke(app, export)
    assert note in " ".join(result.output.split())
    asked = open_model(folder, stored)
    assert (asked.task.name, asked.notes) == (stored, ())
    texts = [text for text in TEXTS if text]
    with api.pipeline("sentence-similarity", folder) as pipe:
        np.testing.assert_allclose(pipe(texts), expected(folder, texts), **CLOSE)


# ------------------------------------------------------------------ what is refused
@pytest.mark.parametrize("kind", ["CNN", "LSTM", "BoW", "WordEmbeddings", "Router"])
def test_other_modules_are_refused_by_name_and_the_states_remain(kind: str, tiny: Tiny, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, tiny("bert_embed"), pooling("mean"))
    listed = json.loads((folder / "modules.json").read_text())
    listed.insert(1, {"idx": 1, "name": "1", "path": f"1_{kind}", "type": f"sentence_transformers.models.{kind}"})
    (folder / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(UnsupportedModel, match=f"a {kind} module, which isoform does not compute"):
        api.pipeline("sentence-similarity", folder)
    with api.pipeline("feature-extraction", folder) as pipe:
        assert np.array(pipe("a cat")).shape[-1] == WIDTH
        with pytest.raises(UnsupportedModel, match=f"a {kind} module"):
            pipe("a cat", pooling="model")
    assert f"a {kind} module" in " ".join(open_model(folder).notes)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"in_features": 39}, CheckpointError, "takes 39 channels, the one before it gives 40"),
        ({"in_features": "40"}, CheckpointError, "in_features is '40'"),
        ({"out_features": 13}, CheckpointError, r"2_Dense.linear.(bias|weight) has shape"),
        ({"activation_function": "evil.code.Tanh"}, UnsupportedModel, "activation_function 'evil.code.Tanh'"),
        ({"activation_function": "torch.nn.Hardtanh"}, UnsupportedModel, "Hardtanh"),
        ({"module_input_name": "image"}, UnsupportedModel, "names the features 'image'"),
        ({"bias": False}, CheckpointError, "2_Dense.linear.bias"),
    ],
)
def test_a_dense_module_that_does_not_fit_is_refused(
    change: dict[str, Any], error: type[Exception], message: str, tiny: Tiny, tmp_path: Path
) -> None:
    folder = folder_with(tmp_path, tiny("bert_embed"), pooling("mean"), dense())
    path = folder / "2_Dense" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(error, match=message):
        api.pipeline("sentence-similarity", folder)


def test_a_module_of_another_package_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, tiny("bert_embed"), pooling("mean"))
    listed = json.loads((folder / "modules.json").read_text())
    listed[1]["type"] = "custom_st.Pooling"
    (folder / "modules.json").write_text(json.dumps(listed))
    assert "custom_st.Pooling, which is code of another package" in read_sentence_modules(folder).refusal
    with pytest.raises((UnsupportedModel, InputError), match="another package"):
        api.pipeline("sentence-similarity", folder)
