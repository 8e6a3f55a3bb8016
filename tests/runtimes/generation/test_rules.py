"""Rules that a caller adds to generation, ours and transformers', against transformers token for token."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    TextStreamer,
)

import isoform
from isoform.errors import InputError
from isoform.runtimes.generation.rules import LogitsRule, StopRule, is_transformers
from isoform.runtimes.generation.settings import context_length, vocabulary_size
from tests import oracle

NAME, PROMPT = "llama_b", "the cat sat"
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8}


class Second(LogitsProcessor):  # type: ignore[misc]
    """Forbids the best token, and the last."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        scores[:, input_ids[0, -1]] = -float("inf")
        scores[0, scores[0].argmax()] = -float("inf")
        return scores


class RowSecond(LogitsProcessor):  # type: ignore[misc]
    """The same for each of several rows."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return scores.scatter(1, scores.argmax(-1, keepdim=True), -float("inf"))


class Tenth(StoppingCriteria):  # type: ignore[misc]
    """Ends at ten tokens."""

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        assert scores is None
        return torch.full((len(input_ids),), input_ids.shape[1] >= 10, dtype=torch.bool)


class OurSecond:
    def process(self, ids: Any, logits: Any) -> Any:
        changed = logits.copy()
        changed[ids[-1]] = -np.inf
        changed[changed.argmax()] = -np.inf
        return changed


class OurTenth:
    def stops(self, ids: Any) -> bool:
        return len(ids) >= 10


@pytest.fixture(scope="module")
def ours() -> Iterator[Any]:
    with isoform.pipeline("text-generation", oracle.tiny(NAME)) as pipe:
        yield pipe


@cache
def theirs() -> Any:
    return transformers.pipeline("text-generation", str(oracle.tiny(NAME)), device="cpu", dtype=torch.float32)


CALLS: dict[str, dict[str, Any]] = {
    "a list of processors": {"logits_processor": LogitsProcessorList([Second()])},
    "beams": {"logits_processor": [RowSecond()], "num_beams": 3},
    "a function": {"logits_processor": [lambda ids, scores: scores.neg()]},
    "a processor of a setting's class": {
        "repetition_penalty": 1.3,
        "logits_processor": [RepetitionPenaltyLogitsProcessor(2.0)],
    },
    "a criterion": {"stopping_criteria": StoppingCriteriaList([Tenth()])},
    "a criterion of beams": {"stopping_criteria": [Tenth()], "num_beams": 2},
    "a length": {"stopping_criteria": [MaxLengthCriteria(9)]},
    "an end": {"stopping_criteria": [EosTokenCriteria(5)]},
    "allowed tokens": {"prefix_allowed_tokens_fn": lambda row, ids: [5, 6, int(ids[-1])]},
    "allowed tokens of beams": {"prefix_allowed_tokens_fn": lambda row, ids: [5 + row, 6, 7], "num_beams": 2},
    "a prefix and lengths": {"prefix": "Hello there ", "max_length": 12, "min_length": 11, "max_new_tokens": None},
    "a prompt that is cut": {"truncation": True, "max_length": 5},
    "an object": {"generation_config": GenerationConfig(max_new_tokens=5, do_sample=False, num_beams=2)},
}


@pytest.mark.parametrize("name", CALLS)
def test_what_a_caller_adds_gives_the_text_of_transformers(ours: Any, name: str) -> None:
    options = {name: value for name, value in {**GREEDY, **CALLS[name]}.items() if value is not None}
    if "generation_config" in options:
        options = CALLS[name]
    assert ours(PROMPT, **options) == theirs()(PROMPT, **options)


def test_our_protocols_do_the_same_over_numpy(ours: Any) -> None:
    assert isinstance(OurSecond(), LogitsRule)
    assert isinstance(OurTenth(), StopRule)
    for beams in (1, 2):
        options = {**GREEDY, "num_beams": beams}
        for mine, other in (
            ({"logits_processor": [OurSecond()]}, {"logits_processor": [Second()]}),
            ({"stopping_criteria": OurTenth()}, {"stopping_criteria": [Tenth()]}),
        ):
            answer = ours(PROMPT, **options, **mine)
            assert answer == ours(PROMPT, **options, **other)
            assert answer != ours(PROMPT, **options)


def test_a_generation_config_of_a_call_replaces_what_the_pipeline_was_made_with() -> None:
    config = GenerationConfig(max_new_tokens=4, do_sample=False)
    with isoform.pipeline("text-generation", oracle.tiny(NAME), max_new_tokens=2, repetition_penalty=3.0) as pipe:
        expected = theirs()(PROMPT, generation_config=config)
        assert pipe(PROMPT, generation_config=config) == expected
        assert pipe(PROMPT, generation_config={"max_new_tokens": 4, "do_sample": False}) == expected
        assert pipe(PROMPT, generate_kwargs={"max_new_tokens": 4, "do_sample": False, "repetition_penalty": 1.0}) == (
            expected
        )


class Recorded(transformers.generation.streamers.BaseStreamer):  # type: ignore[misc]
    def __init__(self) -> None:
        self.got: list[Any] = []

    def put(self, value: Any) -> None:
        self.got.append(value.cpu().tolist())

    def end(self) -> None:
        self.got.append("end")


def test_streamers_of_transformers_get_what_transformers_gives_them(ours: Any) -> None:
    def streamed(pipe: Any, prompt: Any) -> Any:
        streamer, printed = Recorded(), io.StringIO()
        pipe(prompt, streamer=streamer, **GREEDY)
        with redirect_stdout(printed):
            pipe(prompt, streamer=TextStreamer(theirs().tokenizer, skip_prompt=True), **GREEDY)
        pieces = TextIteratorStreamer(theirs().tokenizer, skip_prompt=True)
        thread = Thread(target=lambda: pipe(prompt, streamer=pieces, **GREEDY))
        if isinstance(prompt, str):
            thread.start()
            text = "".join(pieces)
            thread.join()
            return streamer.got, printed.getvalue(), text
        return streamer.got, printed.getvalue()

    for prompt in (PROMPT, "", [PROMPT, "a dog"]):
        assert streamed(ours, prompt) == streamed(theirs(), prompt)
    assert is_transformers(Recorded())
    assert not is_transformers(OurTenth())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logits_processor": [3]}, r"logits_processor holds 3, which has no process"),
        ({"stopping_criteria": object()}, r"stopping_criteria holds <object.*which has no stops"),
        ({"logits_processor": [lambda ids, scores: scores[0]]}, r"<lambda> gave \(\d+,\) for scores of shape \(1, "),
        ({"logits_processor": [lambda ids, scores: None]}, "<lambda> gave None for scores"),
        ({"stopping_criteria": [lambda ids, scores: torch.zeros(2)]}, r"gave \(2,\) values for one text"),
        ({"prefix_allowed_tokens_fn": lambda row, ids: []}, "allows no token"),
        ({"prefix_allowed_tokens_fn": lambda row, ids: [10**6]}, "allows 1000000, and there are"),
        ({"prefix_allowed_tokens_fn": 3}, "is no function of"),
        ({"assistant_model": object()}, "assistant_model: model=.* is not a folder"),
        ({"generation_config": 3}, "generation_config=3 is neither a mapping nor"),
        ({"return_dict_in_generate": True, "output_scores": True}, "output_scores=True would add numbers"),
    ],
)
def test_rules_that_are_none_are_refused(ours: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ours(PROMPT, **GREEDY, **options)


# ------------------------------------------------------------------ tokens that are none
Tiny = Callable[[str], Path]


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    "ids",
    [{"pad_token_id": -1}, {"eos_token_id": -1}, {"bos_token_id": None}, {"pad_token_id": []}, {"eos_token_id": [-1]}],
)
def test_a_negative_or_empty_token_of_the_model_is_none(
    tiny: Tiny, tmp_path: Path, file: str, ids: dict[str, Any]
) -> None:
    import json
    import shutil

    if file == "config.json" and ids == {"pad_token_id": []}:
        pytest.skip("a list is no number of config.json, which has a typed reader of its own")
    folder = Path(shutil.copytree(tiny(NAME), tmp_path / "model"))
    if file == "config.json":
        (folder / "generation_config.json").unlink(missing_ok=True)
    path = folder / file
    stated = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**stated, **ids}), encoding="utf-8")
    with isoform.pipeline("text-generation", folder) as pipe, isoform.pipeline("text-generation", tiny(NAME)) as plain:
        answer = pipe([PROMPT, "a"], **GREEDY)
        if "eos_token_id" in ids:
            assert answer == plain([PROMPT, "a"], **GREEDY, eos_token_id=None)
        else:
            assert answer == plain([PROMPT, "a"], **GREEDY)


def test_a_token_of_the_model_that_makes_no_sense_names_its_file(tiny: Tiny, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(tiny(NAME), tmp_path / "model"))
    (folder / "generation_config.json").write_text('{"pad_token_id": "none"}', encoding="utf-8")
    with pytest.raises(isoform.errors.CheckpointError, match=r"generation_config\.json.*pad_token_id='none'"):
        isoform.pipeline("text-generation", folder)


def test_padding_beyond_the_embedding_is_never_fed(tiny: Tiny, tmp_path: Path) -> None:
    import shutil

    prompts = ["the cat", "a house by the river", "x"]
    with isoform.pipeline("text-generation", tiny(NAME)) as plain:
        rows = plain(prompts, return_tensors=True, **GREEDY)
        end = rows[0][0]["generated_token_ids"][-2]  # ends the first text before the others
        expected = plain(prompts, eos_token_id=end, **GREEDY)
        assert expected[0] != plain(prompts[0], **GREEDY)
    folder = Path(shutil.copytree(tiny(NAME), tmp_path / "model"))
    (folder / "generation_config.json").write_text('{"pad_token_id": 9999}', encoding="utf-8")
    with isoform.pipeline("text-generation", folder) as pipe:
        assert pipe(prompts, eos_token_id=end, **GREEDY) == expected


def test_a_token_beyond_the_embedding_is_named(tiny: Tiny, tmp_path: Path) -> None:
    import json
    import shutil

    folder = Path(shutil.copytree(tiny(NAME), tmp_path / "model"))
    path = folder / "tokenizer.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    size = max(stored["model"]["vocab"].values(), default=0) + 1
    taken = {token["id"] for token in stored["added_tokens"]}
    for index in range(size, rows + 1):
        if index not in taken:
            token = "[PAD]" if index == rows else f"[{index}]"
            stored["added_tokens"].append({"id": index, "content": token, "special": True, **flags})
    path.write_text(json.dumps(stored), encoding="utf-8")
    with isoform.pipeline("text-generation", folder, **GREEDY) as pipe:
        assert pipe(["x"])
        with pytest.raises(InputError, match=rf"gives '\[PAD\]' the id {rows}, and the model's embedding has {rows}"):
            pipe("x [PAD] y")
        with pytest.raises(InputError, match=r"input 1 .*\[PAD\]"):
            pipe(["x", "x [PAD] y"])


def test_the_rows_of_an_embedding_are_no_positions() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1000}
    config = {"vocab_size": 300, "max_position_embeddings": 1000, "rope_scaling": scaling}
    assert (vocabulary_size(config), context_length(config)) == (300, 4000)
    assert vocabulary_size({"vocab_size": 300, "text_config": {"vocab_size": 302}}) == 302
    assert vocabulary_size({"vocab_size": 300, "text_config": {}}) == 300
    assert vocabulary_size({}) is None
