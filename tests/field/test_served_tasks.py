"""The task of a folder, and what an export says that its bundle serves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.field.making import Change, copied, isoform, keys
from tests.field.test_sentence_modules import another_kind, vectors, vectors_of_sentence_transformers
from tests.oracle import tiny
from tests.runtimes.pipelines.text.test_sentence_modules import folder_with, make


@pytest.mark.parametrize("name", ["qwen2_b", "gemma3_b", "qwen3_b", "bert", "bert_seqcls"])
def test_modules_make_the_task_and_every_form_serves_it(name: str, tmp_path: Path) -> None:
    config = json.loads((tiny(name) / "config.json").read_text())
    pool = make("Pooling", embedding_dimension=config.get("hidden_size") or config["n_embd"], pooling_mode="mean")
    folder, out = folder_with(tmp_path, tiny(name), pool), tmp_path / "out"
    ran = isoform("export", folder, "--to", "onnx", "--out", out)
    assert ran.code == 0, ran
    assert "modules.json makes the task feature-extraction" in " ".join(ran.out.split())
    serves = json.loads((out / "isoform.json").read_text())["serves"]
    assert serves == {"feature-extraction": "", "sentence-similarity": ""}
    expected = vectors_of_sentence_transformers(folder)
    np.testing.assert_allclose(vectors(out), expected, atol=2e-4)


@pytest.mark.parametrize(
    ("name", "change", "task", "said"),
    [
        ("bert_ner", lambda folder: (folder / "tokenizer.json").unlink(), "token-classification", "tokenizer.json"),
        ("llama", keys("tokenizer_config.json", tokenizer_class="MyTokenizer"), "text-generation", "MyTokenizer"),
        ("bert_embed", another_kind("custom.Normalize"), "sentence-similarity", "custom.Normalize"),
    ],
)
def test_an_export_says_what_its_bundle_does_not_serve(
    name: str, change: Change, task: str, said: str, tmp_path: Path
) -> None:
    folder, out = copied(name, tmp_path, change), tmp_path / "out"
    ran = isoform("export", folder, "--to", "onnx", "--out", out)
    assert ran.code == 0, ran
    assert f"doesnotserve{task}:" in "".join(ran.out.split())  # whatever the terminal's width breaks
    assert said in json.loads((out / "isoform.json").read_text())["serves"][task]


def test_an_export_says_nothing_of_ranking_by_several_labels(tmp_path: Path) -> None:
    assert isoform("export", tiny("bert_seqcls"), "--to", "onnx", "--out", tmp_path / "out").code == 0
    serves = json.loads((tmp_path / "out" / "isoform.json").read_text())["serves"]
    assert serves == {"text-classification": ""}
