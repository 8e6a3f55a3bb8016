"""zero-shot-classification against transformers' pipeline."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isoform.errors import InputError, ItemError, UnsupportedModel
from isoform.validators.cases.requests import answer
from tests.runtimes.pipelines.text.test_pipelines import ours, same, theirs

Tiny = Callable[[str], Path]
TEXTS = ["The small cat reads a large red book.", "a", "naïve café " * 9]
CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((TEXTS[0], ["a cat", "red", "old house"]), {}),
    ((TEXTS[0],), {"candidate_labels": "a cat, red,, the old house "}),
    ((TEXTS[0], ["red", "cat"]), {"multi_label": True}),
    ((TEXTS[0], "cat"), {}),
    ((TEXTS, ["red", "the cat reads"]), {"hypothesis_template": "it is about {}, é"}),
    (([TEXTS[1]], ("b", "a")), {}),
]


def labelled(folder: Path, target: Path, *labels: str) -> Path:
    """A copy of a checkpoint whose classes have these names."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    config["id2label"] = {str(n): name for n, name in enumerate(labels)}
    config["label2id"] = {name: n for n, name in enumerate(labels)}
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("bert_seqcls_b", ("contradiction", "neutral", "entailment")),
        ("deberta_seqcls", ("Entail", "no", "neither")),
        ("roberta_seqcls", ("no", "ENTAILMENT")),
        ("bart_mnli", ("contradiction", "neutral", "entailment")),
        ("t5_seqcls", ("neutral", "entailment", "contradiction")),
        ("qwen2_seqcls", ("entailment", "neutral", "contradiction")),
    ],
)
def test_labels_are_ranked_as_transformers_ranks_them(
    name: str, labels: tuple[str, ...], tiny: Tiny, tmp_path: Path
) -> None:
    count = len(json.loads((tiny(name) / "config.json").read_text()).get("id2label", labels[:2]))
    folder = labelled(tiny(name), tmp_path / "m", *labels[:count], *("neither",) * (count - len(labels)))
    other = theirs("zero-shot-classification", folder)
    with ours("zero-shot-classification", folder) as pipe:
        assert pipe.entailment == other.entailment_id
        for inputs, options in CALLS:
            expected = other(*inputs, **options)
            same(pipe(*inputs, **options), expected)
            same(pipe(*inputs, **options, batch_size=2), expected)
        same(pipe(sequences=TEXTS[0], candidate_labels=["x", "y"]), other(TEXTS[0], ["x", "y"]))
        assert [one["sequence"] for one in pipe(iter(TEXTS), ["x", "y"])] == TEXTS


def test_a_long_text_is_cut_and_its_hypothesis_is_not(tiny: Tiny, tmp_path: Path) -> None:
    folder = labelled(tiny("bert_seqcls"), tmp_path / "m", "no", "entailment")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 16}))
    with ours("zero-shot-classification", folder, candidate_labels=["red", "a cat"]) as pipe:
        other = theirs("zero-shot-classification", folder)
        same(pipe("the old house " * 20), other("the old house " * 20, ["red", "a cat"]))
        long = ["the cat reads the book " * 5, "red"]  # alone it is longer than the limit, so that nothing is cut
        same(pipe("the house", candidate_labels=long), other("the house", long))


def test_a_model_that_was_not_trained_for_it_is_said(tiny: Tiny) -> None:
    with ours("zero-shot-classification", tiny("bert_seqcls")) as pipe:
        with pytest.warns(UserWarning, match="no label of .* begins with 'entail'"):
            got = pipe(TEXTS[0], ["red", "cat"])
        same(got, theirs("zero-shot-classification", tiny("bert_seqcls"))(TEXTS[0], ["red", "cat"]))
        with warnings.catch_warnings(), pytest.raises(UnsupportedModel, match="no label of the model"):
            warnings.simplefilter("error")
            answer(pipe, "zero-shot-classification")


def test_a_wrong_call_names_what_is_wrong_and_the_others_are_answered(tiny: Tiny, tmp_path: Path) -> None:
    folder = labelled(tiny("bert_seqcls"), tmp_path / "m", "entailment", "no")
    with ours("zero-shot-classification", folder) as pipe:
        for labels, message in (
            (None, "candidate_labels=None is neither a list"),
            ([], "names no label"),
            (" , ", "names no label"),
            (["a", 3], "neither a list of texts"),
        ):
            with pytest.raises(InputError, match=message):
                pipe("a", candidate_labels=labels)
        for template in ("no place", "{} and {}", "{name}", 3):
            with pytest.raises(InputError, match="hypothesis_template="):
                pipe("a", ["b"], hypothesis_template=template)
        with pytest.raises(InputError, match="no parameter 'multi_class'"):
            pipe("a", ["b"], multi_class=True)
        with pytest.raises(ItemError, match=r"input 1 \(''\).*none of them empty"):
            pipe(["a", "", "b"], ["x", "y"])
        found = pipe(["a", "", "b"], ["x", "y"], on_error="return")
        assert [isinstance(one, ItemError) for one in found] == [False, True, False]
        same([found[0], found[2]], pipe(["a", "b"], ["x", "y"]))
