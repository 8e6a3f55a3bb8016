"""Cross-encoders against sentence-transformers' CrossEncoder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from isoform import api
from isoform.errors import InputError, UnsupportedModel
from isoform.reference.model import open_model

Tiny = Callable[[str], Path]
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-5}  # float32 through a few layers, summed in another order
QUERY = "what does the small cat read?"
DOCUMENTS = ["The teacher opens a window.", "The small cat reads a large red book.", "", "every teacher knows: " * 60]
PAIRS = [(QUERY, text) for text in DOCUMENTS]


def cross_encoder(tmp_path: Path, source: Path, labels: int = 1, **config: Any) -> Path:
    """A copy of a sequence classifier with so many labels."""
    folder = tmp_path / f"cross-{len(list(tmp_path.iterdir()))}"
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    weights |= {key: value[:labels].clone() for key, value in weights.items() if key.startswith("classifier.")}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    names = {str(n): f"LABEL_{n}" for n in range(labels)}
    settings |= {"id2label": names, "label2id": {name: int(n) for n, name in names.items()}, **config}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def ranker(folder: Path, **options: Any) -> Any:
    return api.pipeline("text-ranking", folder, **options)


def theirs(folder: Path) -> Any:
    from sentence_transformers import CrossEncoder

    return CrossEncoder(str(folder), device="cpu")


FUNCTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "of today": {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5.0"}},
    "of old": {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
    "tanh": {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}},
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_scores_are_those_of_sentence_transformers(name: str, tiny: Tiny, tmp_path: Path) -> None:
    folder = cross_encoder(tmp_path, tiny("bert_seqcls"), **FUNCTIONS[name])
    other = theirs(folder)
    ranked = other.rank(QUERY, DOCUMENTS, return_documents=True)
    with ranker(folder) as pipe:
        answer = pipe(query=QUERY, documents=DOCUMENTS, return_documents=True)
        assert [(one["index"], one["text"]) for one in answer] == [(one["corpus_id"], one["text"]) for one in ranked]
        np.testing.assert_allclose([one["score"] for one in answer], [one["score"] for one in ranked], **CLOSE)
        np.testing.assert_allclose(pipe(PAIRS), other.predict(PAIRS), **CLOSE)
        np.testing.assert_allclose(pipe(PAIRS, batch_size=1), other.predict(PAIRS), **CLOSE)
        assert pipe(PAIRS[0]) == pytest.approx(float(other.predict(PAIRS[0])), abs=2e-5)


def test_every_form_of_a_call_gives_the_same_order(tiny: Tiny, tmp_path: Path) -> None:
    folder = cross_encoder(tmp_path, tiny("bert_seqcls"))
    asked = {"query": QUERY, "documents": DOCUMENTS}
    with ranker(folder) as pipe:
        answer = pipe(asked)
        assert sorted(one["index"] for one in answer) == [0, 1, 2, 3]
        assert [list(one) for one in answer] == [["index", "score"]] * 4
        for several in (pipe([asked, asked]), list(pipe(iter([asked, asked])))):
            for one in several:
                assert [row["index"] for row in one] == [row["index"] for row in answer]
                np.testing.assert_allclose([row["score"] for row in one], [row["score"] for row in answer], **CLOSE)
        assert pipe(asked, top_k=2) == answer[:2]
        assert pipe(query=QUERY, documents=[]) == []
        logits = pipe(PAIRS, function_to_apply="none")
        np.testing.assert_allclose(1 / (1 + np.exp(-np.array(logits))), pipe(PAIRS), **CLOSE)


def test_several_labels_give_rows_of_logits_and_no_order(tiny: Tiny, tmp_path: Path) -> None:
    folder = cross_encoder(tmp_path, tiny("bert_seqcls_b"), labels=2)
    other = theirs(folder)
    with ranker(folder) as pipe:
        np.testing.assert_allclose(pipe(PAIRS), other.predict(PAIRS), **CLOSE)
        softened = other.predict(PAIRS, apply_softmax=True)
        np.testing.assert_allclose(pipe(PAIRS, function_to_apply="softmax"), softened, **CLOSE)
        with pytest.raises(UnsupportedModel, match="2 labels, by which documents have no order"):
            pipe(query=QUERY, documents=DOCUMENTS)


def test_a_bundle_ranks_on_every_backend(tiny: Tiny, tmp_path: Path) -> None:
    folder = cross_encoder(tmp_path, tiny("bert_seqcls"))
    api.export(folder, tmp_path / "bundle")
    with ranker(folder) as pipe:
        expected = pipe(query=QUERY, documents=DOCUMENTS)
    for backend in ("onnxruntime", "torchscript"):
        with ranker(tmp_path / "bundle", backend=backend) as pipe:
            answer = pipe(query=QUERY, documents=DOCUMENTS)
        assert [one["index"] for one in answer] == [one["index"] for one in expected]
        np.testing.assert_allclose([one["score"] for one in answer], [one["score"] for one in expected], **CLOSE)


def test_a_cross_encoder_that_sentence_transformers_saved_is_no_embedding_model(tiny: Tiny, tmp_path: Path) -> None:
    other = theirs(cross_encoder(tmp_path, tiny("bert_seqcls"), **FUNCTIONS["of today"]))
    other.save_pretrained(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "modules.json").is_file()
    assert open_model(tmp_path / "saved").task.name == "text-classification"
    with ranker(tmp_path / "saved") as pipe:
        np.testing.assert_allclose(pipe(PAIRS), other.predict(PAIRS), **CLOSE)
    with pytest.raises(UnsupportedModel, match="CrossEncoder of sentence-transformers"):
        api.pipeline("sentence-similarity", tmp_path / "saved")


WRONG: list[Any] = [
    *("a text", {"query": "a"}, {"query": "a", "documents": "b"}, {"query": "a", "documents": [1]}),
    *([["a", "b", "c"]], 7),
]


@pytest.mark.parametrize("wrong", WRONG)
def test_other_inputs_are_refused(wrong: Any, tiny: Tiny, tmp_path: Path) -> None:
    with ranker(cross_encoder(tmp_path, tiny("bert_seqcls"))) as pipe:
        with pytest.raises(InputError, match="text-ranking takes query= and documents="):
            pipe(wrong)
        with pytest.raises(InputError, match="not both"):
            pipe(("a", "b"), query="a")
        with pytest.raises(InputError, match="none of none, sigmoid, softmax"):
            pipe(("a", "b"), function_to_apply="relu")


def test_a_function_that_is_code_is_refused_by_name(tiny: Tiny, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"sentence_transformers": {"activation_fn": "my.code.Function"}}
    with ranker(cross_encoder(tmp_path, tiny("bert_seqcls"), **settings)) as pipe:
        with pytest.raises(UnsupportedModel, match=r"'my.code.Function' is not computed"):
            pipe(("a", "b"))
        assert pipe(("a", "b"), function_to_apply="none") == pytest.approx(
            float(np.log(1 / (1 / pipe(("a", "b"), function_to_apply="sigmoid") - 1))), abs=1e-4
        )
