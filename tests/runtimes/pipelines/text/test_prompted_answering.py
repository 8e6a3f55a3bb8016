"""question-answering by a model that writes, against transformers' generate() on the same prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import isoform
from isoform.errors import InputError, ItemError
from isoform.runtimes.pipelines.text.prompted_answering import PROMPT, _place
from tests.runtimes.pipelines.text.test_pipelines import same

Tiny = Callable[[str], Path]
CONTEXT = "The small cat reads a large red book in the old house, naïve."
QUESTION = {"question": "what reads the book?", "context": CONTEXT}
OTHER = {"question": "where? {context}", "context": "{question} in the house"}


def ours(folder: Path, **parameters: Any) -> Any:
    return isoform.pipeline("question-answering", folder, backend="torch", threads=1, **parameters)


def theirs(folder: Path, item: dict[str, str], chats: bool, **call: Any) -> tuple[str, float]:
    """The greedy answer and the mean probability of its tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    before, rest = PROMPT.split("{context}")
    middle, after = rest.split("{question}")
    text = f"{before}{item['context']}{middle}{item['question']}{after}"
    if chats:
        message = [{"role": "user", "content": text}]
        inputs = tokenizer.apply_chat_template(
            message, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
    else:
        inputs = tokenizer(text, return_tensors="pt")
        newlines = [tokenizer(n, add_special_tokens=False).input_ids[-1] for n in ("\n", "\n\n")]
        call |= {"stop_strings": ["\n"], "tokenizer": tokenizer, "begin_suppress_tokens": newlines}
    inputs.pop("token_type_ids", None)
    length = inputs["input_ids"].shape[1]
    out = model.generate(
        **inputs, do_sample=False, max_new_tokens=6, return_dict_in_generate=True, output_scores=True, **call
    )
    made = out.sequences[0, length:]
    chances = [float(scores[0].softmax(-1)[token]) for scores, token in zip(out.scores, made, strict=True)]
    ends = model.generation_config.eos_token_id
    kept = [c for c, t in zip(chances, made.tolist(), strict=True) if t not in torch.tensor(ends).reshape(-1).tolist()]
    return tokenizer.decode(made, skip_special_tokens=True).strip(), sum(kept) / len(kept)


@pytest.mark.parametrize(("name", "chats"), [("llama3_instruct", True), ("qwen2", True), ("llama_b", False)])
def test_an_answer_is_what_the_model_writes_to_the_prompt(name: str, chats: bool, tiny: Tiny) -> None:
    items = [QUESTION, OTHER]
    expected = [theirs(tiny(name), item, chats) for item in items]
    with ours(tiny(name), max_new_tokens=6) as pipe:
        assert pipe.task == "question-answering"
        answers = pipe(items, batch_size=2)
        assert [(one["answer"], one["score"]) for one in answers] == [
            (text, pytest.approx(score, rel=1e-4)) for text, score in expected
        ]
        assert list(answers[0]) == ["score", "start", "end", "answer"]
        same(pipe(question=QUESTION["question"], context=CONTEXT), answers[0])
        same(pipe(QUESTION["question"], CONTEXT, max_new_tokens=6, max_answer_len=6), answers[0])
        if chats:  # a plain prompt where it is asked for
            assert pipe(QUESTION, chat_template="")["answer"] == theirs(tiny(name), QUESTION, False)[0]
        several = pipe(QUESTION, top_k=3)
        assert 1 <= len(several) <= 3
        assert len({one["answer"] for one in several}) == len(several)


def test_an_answer_has_its_place_in_the_context() -> None:
    assert _place("large red", CONTEXT) == (22, 31)
    assert _place("Large Red.", CONTEXT) == (22, 31)
    assert _place("The small cat", CONTEXT) == (0, 13)
    assert _place("green", CONTEXT) == _place("", CONTEXT) == _place(".", CONTEXT[:-1]) == (None, None)
    assert _place("naïve.", CONTEXT) == (55, 61)
    assert _place("ss", "Straße") == (None, None)


def test_a_context_that_is_too_long_is_cut_or_refused(tiny: Tiny) -> None:
    long = {"question": "what?", "context": "the old house " * 200}
    with ours(tiny("llama_b"), max_new_tokens=5) as pipe:
        limit = pipe.context
        with pytest.raises(InputError, match=rf"the model {limit} positions; shorten it, or pass truncation=True"):
            pipe(long)
        ids = pipe._prompt("what?", long["context"], pipe._call(pipe._together({"truncation": True})))
        assert limit - 12 < len(ids) + 5 <= limit
        assert pipe(long, truncation=True)["answer"]
        found = pipe([long, QUESTION], on_error="return")
        assert isinstance(found[0], ItemError)
        same(found[1], pipe(QUESTION))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "{question}"}, "lacks {question} or {context}"),
        ({"top_k": 0}, "top_k=0"),
        ({"max_answer_len": 0}, "max_answer_len=0"),
        ({"max_answer_len": 3, "max_new_tokens": 4}, "max_new_tokens=4 and max_answer_len or top_k say two things"),
        ({"doc_stride": 3}, "no parameter 'doc_stride'"),
        ({"return_tensors": True}, "question-answering has no return_tensors"),
    ],
)
def test_wrong_requests_are_input_errors(options: dict[str, Any], message: str, tiny: Tiny) -> None:
    with ours(tiny("llama_b")) as pipe:
        with pytest.raises(InputError, match=message):
            pipe(QUESTION, **options)
        with pytest.raises(InputError, match="neither empty"):
            pipe({"question": "", "context": "a"})


def test_an_answer_follows_what_the_call_says_of_its_text(tiny: Tiny) -> None:
    with ours(tiny("llama_b"), max_new_tokens=12) as pipe:
        plain = pipe(QUESTION)
        for guesses in ({"assistant_model": pipe}, {"prompt_lookup_num_tokens": 3}):
            same(pipe(QUESTION, **guesses), plain)
        assert pipe(QUESTION, choices=["the cat", "a dog"], stop_strings=None)["answer"] in ("the cat", "a dog")
        with pytest.raises(InputError, match="question-answering has no return_scores"):
            pipe(QUESTION, return_scores=True)
