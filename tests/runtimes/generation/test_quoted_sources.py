"""Prompt lookup of models that read with an encoder: guesses are found in what it read, and greedy text stays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import isoform
from isoform.errors import InputError
from isoform.runtimes.generation.speculative import PromptLookup
from isoform.runtimes.pipelines.text import text_writer
from tests.exports import exported
from tests.oracle import tiny

TEXTS = ["the small cat reads a large book near the old house", "in", "a dog ran to the cat and the dog"]
pipeline: Any = isoform.pipeline
LOOKUP = {"prompt_lookup_num_tokens": 5}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many steps each batch of a pipeline took."""
    counts: list[int] = []
    module: Any = text_writer
    plain = module.steps

    def counting(*arguments: Any, **options: Any) -> Iterator[Any]:
        counts.append(0)
        for rows in plain(*arguments, **options):
            counts[-1] += 1
            yield rows

    monkeypatch.setattr(module, "steps", counting)
    return counts


@pytest.mark.parametrize(
    ("name", "backend"),
    [("bart", "torch"), ("t5", "onnxruntime"), pytest.param("t5", "llamacpp", marks=pytest.mark.nightly)],
)
def test_an_assistant_with_an_encoder_reads_the_source_too(name: str, backend: str, counted: list[int]) -> None:
    source: Any = tiny(name) if backend == "torch" else exported(name)
    call: dict[str, Any] = {"num_beams": 1, "max_new_tokens": 16, "min_length": 0}
    with pipeline("summarization", source, backend=backend, threads=1) as pipe:
        plain = [pipe(text, **call)[0] for text in TEXTS]
        steps = counted[0]
        for draft in (str(source), pipe):  # the model itself is always right
            guesses = {"assistant_model": draft, "num_assistant_tokens": 5, "assistant_confidence_threshold": 0}
            assert pipe(TEXTS[0], **call, **guesses)[0] == plain[0]
            assert counted[-1] <= steps / 3
            assert [pipe(text, **call, **guesses)[0] for text in TEXTS] == plain
            assert pipe(TEXTS, **call, **guesses) == plain
        sampled = {**call, "do_sample": True, "num_return_sequences": 3, "seed": 1}
        assert len(pipe(TEXTS[:2], **sampled, **guesses)[1]) == 3


def test_an_assistant_of_another_kind_or_vocabulary_is_refused() -> None:
    with pipeline("summarization", tiny("bart"), backend="torch", num_beams=1, max_new_tokens=3) as pipe:
        with pytest.raises(InputError, match="has another vocabulary"):
            pipe(TEXTS[0], assistant_model=str(tiny("t5")))
        with (
            pipeline("text-generation", tiny("llama_b"), backend="torch") as decoder,
            pytest.raises(InputError, match="is for text-generation, and guesses no text of summarization"),
        ):
            pipe(TEXTS[0], assistant_model=decoder)


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *(("bart", "torch"), ("t5", "onnxruntime"), ("t5", "llamacpp")),
        *(
            pytest.param(*case, marks=pytest.mark.nightly)
            for case in (("t5", "torch"), ("bart", "onnxruntime"), ("bart", "torchscript"), ("t5", "torchscript"))
        ),
    ],
)
def test_a_text_that_quotes_its_source_takes_fewer_steps(name: str, backend: str, counted: list[int]) -> None:
    source: Any = tiny(name) if backend == "torch" else exported(name)
    call: dict[str, Any] = {"num_beams": 1, "max_new_tokens": 24, "min_length": 0}
    with pipeline("summarization", source, backend=backend, threads=1) as pipe:
        for more in ({}, {"repetition_penalty": 1.3, "eos_token_id": list(range(0, 300, 7))}):
            plain = [pipe(text, **call, **more)[0] for text in TEXTS]
            assert [pipe(text, **call, **more, **LOOKUP)[0] for text in TEXTS] == plain
            assert pipe(TEXTS, **call, **more, **LOOKUP) == plain
        quote = {**call, "choices": [TEXTS[0]]}  # a model with weights of chance quotes nothing unasked
        assert pipe(TEXTS[0], **quote) == pipe(TEXTS[0], **quote, **LOOKUP) == [{"summary_text": TEXTS[0]}]
        assert counted[-1] <= counted[-2] / 3
        sampled = {**call, "do_sample": True, "num_return_sequences": 3, "seed": 1}
        assert len(pipe(TEXTS[:2], **sampled, **LOOKUP)[1]) == 3


def test_guesses_are_found_in_the_source_of_each_row() -> None:
    lookup = PromptLookup(3, 2, [[1, 2, 3, 4, 5, 0], [7, 8, 9, 0], [6]])
    assert [one.tokens for one in lookup.propose([[0, 2], [0, 2], [0, 6, 6]], [5, 5, 5])] == [
        [3, 4, 5],
        [],
        [6, 6, 6],
    ]
    lookup.select([1, 0])
    assert [one.tokens for one in lookup.propose([[0, 7], [0, 2, 3, 7, 2, 3]], [2, 1])] == [[8, 9], [7]]
    assert [one.tokens for one in lookup.propose([[0, 7], [0, 2, 1, 2]], [2, 1])] == [[8, 9], [3]]
