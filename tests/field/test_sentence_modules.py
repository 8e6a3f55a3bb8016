"""The modules of sentence-transformers after a model: its vectors, or the name of what is not computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import isoform as package
from isoform.errors import IsoformError
from tests.field.making import Change, isoform, keys, refused
from tests.oracle import tiny
from tests.runtimes.pipelines.text.test_sentence_modules import dense, folder_with, make, pooling

TEXTS = ["a small house", "the cat reads a large book today", "x"]


def vectors(folder: Path, **options: Any) -> Any:
    with package.pipeline("sentence-similarity", str(folder), **options) as pipe:
        return np.array(pipe(TEXTS))


def vectors_of_sentence_transformers(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").encode(TEXTS)


SENTENCES = "config_sentence_transformers.json"
MODULES: dict[str, tuple[Callable[[], list[Any]], list[Change], dict[str, Any]]] = {
    "dense": (lambda: [pooling("mean"), dense()], [], {}),
    "two norms": (lambda: [pooling("mean"), make("Normalize"), dense(), make("Normalize")], [], {}),
    "the old folder": (lambda: [pooling("cls"), dense()], [], {"inner": "0_BERT"}),
    "dropout": (lambda: [pooling("lasttoken"), make("Dropout", dropout=0.3)], [], {}),
    "fewer channels": (lambda: [pooling("mean"), make("Normalize")], [keys(SENTENCES, truncate_dim=8)], {}),
    "more channels than there are": (lambda: [pooling("mean")], [keys(SENTENCES, truncate_dim=99)], {}),
    "a prompt that pooling leaves out": (
        lambda: [pooling("mean", include_prompt=False)],
        [keys(SENTENCES, prompts={"q": "the query: "}, default_prompt_name="q")],
        {},
    ),
    "lower case, cut": (
        lambda: [pooling("mean")],
        [keys("sentence_bert_config.json", max_seq_length=4, do_lower_case=True)],
        {},
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_give_the_vectors_of_sentence_transformers(name: str, tmp_path: Path) -> None:
    kinds, changes, options = MODULES[name]
    folder = folder_with(tmp_path, tiny("bert_embed"), *kinds(), **options)
    for change in changes:
        change(folder)
    np.testing.assert_allclose(vectors(folder), vectors_of_sentence_transformers(folder), atol=2e-5)


def test_a_bundle_cuts_vectors_in_its_graph(tmp_path: Path) -> None:
    folder, out = folder_with(tmp_path, tiny("bert_embed"), pooling("mean"), dense()), tmp_path / "out"
    keys(SENTENCES, truncate_dim=5)(folder)
    assert isoform("export", folder, "--out", out, "--to", "onnx", "--to", "torchscript").code == 0
    expected = vectors_of_sentence_transformers(folder)
    assert expected.shape == (3, 5)
    for backend in ("onnxruntime", "torchscript"):
        np.testing.assert_allclose(vectors(out, backend=backend), expected, atol=2e-5)


@pytest.mark.parametrize("function", ["cosine", "dot", "euclidean", "manhattan"])
def test_vectors_are_compared_by_the_function_that_the_model_names(function: str, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = folder_with(tmp_path, tiny("bert_embed"), pooling("mean"))
    keys(SENTENCES, similarity_fn_name=function)(folder)
    model = SentenceTransformer(str(folder), device="cpu")
    expected = model.similarity(model.encode(TEXTS[:1]), model.encode(TEXTS[1:]))[0]
    with package.pipeline("sentence-similarity", str(folder)) as pipe:
        found = pipe({"source_sentence": TEXTS[0], "sentences": TEXTS[1:]})
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def another_kind(kind: str) -> Change:
    def to(folder: Path) -> None:
        listed = json.loads((folder / "modules.json").read_text())
        listed[-1]["type"] = kind
        (folder / "modules.json").write_text(json.dumps(listed))

    return to


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (another_kind("sentence_transformers.models.CNN"), "lists a CNN module"),
        (another_kind("custom.Normalize"), "custom.Normalize, which is code of another package"),
        (keys("2_Dense/config.json", activation_function="os.system"), "activation_function 'os.system'"),
        (keys("2_Dense/config.json", in_features=7), "the module takes 7 channels"),
        (keys("2_Dense/config.json", swirl=3), "swirl = 3 is not known for this module"),
        (keys("1_Pooling/config.json", pooling_mode_sum=True), "pooling_mode_sum = True is not known"),
        (keys(SENTENCES, truncate_dim=-1), "truncate_dim is -1"),
        (lambda folder: (folder / "2_Dense" / "model.safetensors").unlink(), "2_Dense holds no model.safetensors"),
    ],
)
def test_a_module_that_is_not_computed_is_named(change: Change, said: str, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, tiny("bert_embed"), pooling("mean"), dense())
    change(folder)
    assert said in refused("run", "sentence-similarity", folder, "x")


@pytest.mark.parametrize(
    ("file", "setting", "value"),
    [
        (SENTENCES, "similarity_fn_name", "jaccard"),
        ("sentence_bert_config.json", "max_seq_length", "long"),
        ("sentence_bert_config.json", "processing_kwargs", {"text": {"truncation": False}}),
        ("sentence_bert_config.json", "query_expansion", {"length": 32}),
        ("sentence_bert_config.json", "module_output_name", "other"),
    ],
)
def test_a_setting_of_the_transformer_that_is_not_computed_is_named(
    file: str, setting: str, value: Any, tmp_path: Path
) -> None:
    folder = folder_with(tmp_path, tiny("bert_embed"), pooling("mean"))
    keys(file, **{setting: value})(folder)
    with pytest.raises(IsoformError, match=setting):
        vectors(folder)


def test_what_sentence_transformers_saves_is_read(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = folder_with(tmp_path / "made", tiny("bert_embed"), pooling("mean"))
    SentenceTransformer(str(folder), device="cpu").save(str(tmp_path / "saved"))
    np.testing.assert_allclose(vectors(tmp_path / "saved"), vectors_of_sentence_transformers(folder), atol=2e-5)
