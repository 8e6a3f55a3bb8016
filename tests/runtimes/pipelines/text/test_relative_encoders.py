"""Pipelines over MPNet, DeBERTa and ModernBERT, whose attention knows distances, against transformers' pipelines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoform import api

Tiny = Callable[[str], Path]
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-5}  # float32 through a few layers, summed in another order
TEXTS = ["The small cat reads a large red book in the old house.", "naïve café 東京", "every teacher knows this: " * 6]


def theirs(task: str, folder: Path) -> Any:
    from transformers import pipeline

    return pipeline(task, str(folder), device="cpu")


def same(found: Any, expected: Any) -> None:
    """Equal in shape, keys and words, and close in numbers."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            same(found[key], value)
    elif isinstance(expected, list) and expected and not isinstance(expected[0], float):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    elif isinstance(expected, list | float | np.floating):
        np.testing.assert_allclose(found, expected, **CLOSE)
    else:
        assert found == expected


@pytest.mark.parametrize(
    ("task", "name"),
    [
        (task, f"{family}{suffix}")
        for task, suffix in {
            "feature-extraction": "_b",
            "fill-mask": "",
            "text-classification": "_seqcls",
            "token-classification": "_ner",
        }.items()
        for family in ("mpnet", "deberta", "modernbert")
    ],
)
def test_answers_are_those_of_transformers(task: str, name: str, tiny: Tiny) -> None:
    other = theirs(task, tiny(name))
    texts = [f"{text} {other.tokenizer.mask_token} ." for text in TEXTS] if task == "fill-mask" else TEXTS
    with api.pipeline(task, tiny(name)) as pipe:
        each = other(texts) if task == "text-classification" else [other(text) for text in texts]
        same(pipe(texts, batch_size=3), each)
        same(pipe(texts[0]), other(texts[0]))


@pytest.mark.parametrize("name", ["mpnet_qa", "deberta_qa"])
def test_a_span_is_the_likeliest_by_transformers_logits(name: str, tiny: Tiny) -> None:
    """transformers 5 has no such pipeline; its model's logits are the oracle."""
    import torch
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny(name))
    model = AutoModelForQuestionAnswering.from_pretrained(tiny(name)).eval()
    question, context = "what reads the book?", "The small cat reads a large red book."
    row = tokenizer(question, context, return_tensors="pt")
    names = {"input_ids", "attention_mask"}
    with torch.no_grad():
        out = model(**{key: value for key, value in row.items() if key in names})
    with api.pipeline("question-answering", tiny(name)) as pipe:
        answer = pipe(question=question, context=context)
    start, end = out.start_logits[0].softmax(-1), out.end_logits[0].softmax(-1)
    inside = [n for n, part in enumerate(row.sequence_ids()) if part == 1]
    offsets = tokenizer(question, context, return_offsets_mapping=True)["offset_mapping"]
    spans = ((a, b) for a in inside for b in inside if a <= b <= a + 14)
    first, last = max(spans, key=lambda span: float(start[span[0]] * end[span[1]]))
    span = context[offsets[first][0] : offsets[last][1]].strip()
    assert span in answer["answer"]  # which is made of whole words
    assert len(answer["answer"].split()) == len(span.split())
