"""What no mode of generation can do is an error that says so; what a batch or another thread asks for is answered."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from threading import Thread
from typing import Any

import numpy as np
import pytest

import isoform
from isoform.errors import InputError, ItemError
from tests.exports import exported
from tests.oracle import tiny

pipeline: Any = isoform.pipeline
OPEN: list[Any] = []
ALL = range(607)  # the tokens of the decoder
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "seed": 1, "top_k": 1},
    "beams": {"num_beams": 3},
    "diverse beams": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "constrained beams": {"num_beams": 3, "force_words_ids": [[71]]},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "guidance": {"guidance_scale": 1.5},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "assistant": {"num_assistant_tokens": 3},
    "grammar": {"regex": "[aest]{3}"},
    "grammar of beams": {"choices": ["a cat", "the dog", "in"], "num_beams": 2},
}


@cache
def opened(task: str, name: str, backend: str = "torch") -> Any:
    source: Any = tiny(name) if backend == "torch" else exported(name)
    pipe = pipeline(task, source, backend=backend, threads=1, max_new_tokens=6, do_sample=False)
    OPEN.append(pipe)
    return pipe


@pytest.fixture(scope="module", autouse=True)
def closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()
    opened.cache_clear()


def options(mode: str) -> dict[str, Any]:
    draft = {"assistant_model": opened("text-generation", "gpt2")} if mode == "assistant" else {}
    return {**MODES[mode], **draft}


# ------------------------------------------------------------------ one bad item
@pytest.mark.parametrize("mode", MODES)
def test_one_prompt_that_is_too_long_leaves_the_others_their_answers(mode: str) -> None:
    pipe, call = opened("text-generation", "llama_b"), options(mode)
    good = ["the cat", "a dog ran", "", "in"]
    first, bad, *others = pipe([good[0], "the cat " * 300, *good[1:]], on_error="return", **call)
    assert isinstance(bad, ItemError)
    assert "the prompt has 602 tokens, and the model 512 positions" in str(bad)
    assert [first, *others] == [pipe(text, **call) for text in good]
    if mode != "guidance":  # a read text may be longer: its model has no positions that end
        reader, call = opened("summarization", "bart_b"), {"num_beams": 1, "min_length": 0, **MODES[mode]}
        first, bad, *others = reader([good[0], "word " * 300, *good[1:]], on_error="return", **call)
        assert isinstance(bad, ItemError)
        assert "too long for the model's" in str(bad)
        assert [first, *others] == [reader(text, **call)[0] for text in good]


def test_a_prompt_that_all_but_fills_the_context_is_continued_alike() -> None:
    pipe = opened("text-generation", "llama_b")
    words = pipe.text_tokenizer.encode(["the cat " * 254])[0].ids
    for length in (508, 511):
        text = pipe.text_tokenizer.decode(words[1:length])
        plain = pipe(text, return_tensors=True)
        assert len(plain[0]["generated_token_ids"]) <= 513
        for mode in ("prompt lookup", "assistant"):
            assert pipe(text, return_tensors=True, **options(mode)) == plain
    draft = opened("text-generation", "gpt2")  # its context is a quarter
    assert pipe("the cat " * 100, assistant_model=draft) == pipe("the cat " * 100)
    with pytest.raises(InputError, match="the negative prompt has 602 tokens, and the model 512 positions"):
        pipe("a", guidance_scale=2, negative_prompt="the cat " * 300)


# ------------------------------------------------------------------ numbers and settings
@pytest.mark.parametrize(
    ("call", "message"),
    [
        *(
            ({name: value}, f"{name}=.*is not a value")
            for name in ("length_penalty", "top_p")
            for value in (np.nan, np.inf)
        ),
        ({"typical_p": np.nan}, "typical_p=nan is not a value"),
        ({"max_time": np.nan}, "max_time=nan is not a value"),
        ({"diversity_penalty": np.nan, "num_beams": 2, "num_beam_groups": 2}, "diversity_penalty=nan is not a value"),
        ({"sequence_bias": [[[5], np.nan]]}, "sequence_bias=.* is not a value"),
        ({"sequence_bias": [[[5], np.inf]]}, "sequence_bias=.* is not a value"),
        ({"exponential_decay_length_penalty": [1, np.inf]}, "exponential_decay_length_penalty=.* is not a value"),
        ({"assistant_confidence_threshold": np.nan}, "assistant_confidence_threshold=nan is not a value"),
        ({"length_penalty": 1e308, "num_beams": 2}, r"length_penalty=1e\+308 leaves no scores"),
        ({"length_penalty": -1e3, "num_beams": 2}, "length_penalty=-1000.0 leaves no scores"),
        ({"temperature": 1e-40, "do_sample": True}, "temperature=1e-40 is too small"),
        *(
            ({"suppress_tokens": ALL, **MODES[mode]}, "the settings leave no token to go on with")
            for mode in MODES
            if "grammar" not in mode
        ),
        ({"regex": "[aest]{3}", "force_words_ids": [[71]], "num_beams": 3}, "follows regex and has the words"),
        ({"regex": "[aest]{3}", "suppress_tokens": ALL}, "regex allows no token that the other settings allow"),
        (
            {"penalty_alpha": 0.6, "top_k": 4, "guidance_scale": 2},
            "penalty_alpha=0.6 compares texts that guidance_scale",
        ),
        ({"penalty_alpha": 0.6, "top_k": 4, "prompt_lookup_num_tokens": 2}, "asks for contrastive search"),
        ({"num_beams": 2, "guidance_scale": 2}, "gives no probabilities that num_beams=2 could add up"),
    ],
)
def test_settings_that_leave_no_text_are_named(call: dict[str, Any], message: str) -> None:
    pipe = opened("text-generation", "llama_b")
    if call.get("num_assistant_tokens"):
        call = {**call, **options("assistant")}
    with pytest.raises(InputError, match=message):
        pipe("the cat", **call)


def test_settings_are_refused_for_a_call_and_not_for_each_of_its_texts() -> None:
    pipe = opened("text-generation", "llama_b")
    for call in (
        {"min_p": 3, "do_sample": True},
        {"num_return_sequences": 2},
        {"num_beams": 2, **MODES["prompt lookup"]},
    ):
        with pytest.raises(InputError) as caught:
            pipe(["the cat", "in"], on_error="return", **call)
        assert "input 0" not in str(caught.value)


def test_settings_of_which_one_wins_are_a_warning() -> None:
    with pytest.warns(UserWarning, match="min_new_tokens=9 is more than max_new_tokens=6"):
        assert opened("text-generation", "llama_b")("the cat", min_new_tokens=9)
    with pytest.raises(InputError, match="prefix=3 is no text"):
        opened("summarization", "bart_b")("the cat", prefix=3)


def test_contrastive_search_takes_no_token_that_is_left_out() -> None:
    """Its candidates are four, and the grammar allows one."""
    pipe, text = opened("text-generation", "llama_b"), "the small"
    for alpha in (0.6, 1.0):
        (answer,) = pipe("the the", choices=[text], penalty_alpha=alpha, top_k=4, return_full_text=False)
        assert answer["generated_text"] == text


# ------------------------------------------------------------------ threads
@pytest.mark.parametrize(
    ("task", "name", "backend"),
    [
        ("text-generation", "llama_b", "torch"),
        ("summarization", "t5", "llamacpp"),
        *(
            pytest.param(*case, marks=pytest.mark.nightly)
            for case in (
                *(("text-generation", "llama_b", backend) for backend in ("onnxruntime", "llamacpp", "torchscript")),
                *(("summarization", "bart", "onnxruntime"), ("summarization", "bart", "torchscript")),
            )
        ),
    ],
)
def test_threads_share_a_pipeline_in_different_modes(task: str, name: str, backend: str) -> None:
    pipe = opened(task, name, backend)
    modes = ["beams", "prompt lookup", "grammar", "grammar of beams"]
    modes += ["assistant", "guidance"] if task == "text-generation" else []
    calls = [
        (text, {"num_beams": 1, "min_length": 0, **options(mode)})
        for text in ("the cat", "a dog ran to the house")
        for mode in modes
    ]
    wanted = [pipe(text, **call) for text, call in calls]
    found: dict[int, Any] = {}

    def work(number: int) -> None:
        order = np.roll(range(len(calls)), number).tolist()
        found[number] = {n: pipe(calls[n][0], **calls[n][1]) for n in order}

    threads = [Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: dict(enumerate(wanted)) for n in range(3)}
