"""Text that follows a grammar: transformers' tokens under the same constraint, in every mode and on every backend."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest

import isoform
from isoform.errors import InputError
from isoform.reference.classes import class_facts
from isoform.runtimes.generation.grammar import LONGEST, Grammar, GrammarOptions, Vocabulary
from isoform.runtimes.preprocess.text.tokenizer import TextTokenizer
from tests.exports import exported, portable
from tests.oracle import tiny

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
JSON: dict[str, Any] = {"response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}}
FORM: dict[str, Any] = {"regex": r"[a-c]{2}-[0-9]{3}"}
GBNF: dict[str, Any] = {"grammar": 'root ::= "x" ("y" | "z"){1,9} "!"'}
LARK: dict[str, Any] = {"grammar": 'start: "x" /[yz]{1,9}/ "!"'}
CHOICES = ["yes", "yes, of course", "no", "not yet", "ça va"]
OPEN: list[Any] = []
pipeline: Any = isoform.pipeline


@cache
def opened(name: str, backend: str) -> Any:
    source = tiny(name) if backend == "torch" else portable(name) if backend == "openvino" else exported(name)
    pipe = pipeline("text-generation", source, backend=backend, max_new_tokens=150, return_full_text=False)
    OPEN.append(pipe)
    return pipe


@pytest.fixture(scope="module", autouse=True)
def closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()
    opened.cache_clear()


def text_of(pipe: Any, inputs: Any = "the cat", **options: Any) -> str:
    made: str = pipe(inputs, **options)[0]["generated_text"]
    return made


def assert_person(text: str) -> None:
    found = json.loads(text)
    assert list(found) == ["name", "age", "tags"]
    assert len(found["name"]) <= 6
    assert 0 <= found["age"] <= 150
    assert set(found["tags"]) <= {"a", "b"}


# ------------------------------------------------------------------ against transformers
def test_a_regex_gives_transformers_tokens_under_the_same_constraint() -> None:
    """The oracle is `prefix_allowed_tokens_fn`, with the tokens found by comparing bytes."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name, pipe = "llama", opened("llama", "torch")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny(name)), AutoTokenizer.from_pretrained(tiny(name))
    special, end = set(tokenizer.all_special_ids), tokenizer.eos_token_id
    pieces = [b"" if n in special else piece for n, piece in enumerate(bytes_of(tokenizer))]
    letters = [b"aest", b"aest", b"aest", b"0123456789", b"0123456789"]

    def begins(text: bytes) -> bool:
        return len(text) <= len(letters) and all(byte in some for byte, some in zip(text, letters, strict=False))

    for text in ("the cat", "in"):
        prompt = tokenizer(text).input_ids

        def allowed(row: int, ids: Any, length: int = len(prompt)) -> list[int]:
            made = b"".join(pieces[n] for n in ids[length:].tolist())
            tokens = [n for n, piece in enumerate(pieces) if piece and begins(made + piece)]
            return tokens or [end]

        for options in ({}, {"num_beams": 3, "num_return_sequences": 2}, {"repetition_penalty": 1.8}):
            asked = {"do_sample": False, "max_new_tokens": 12, **options}
            wanted = model.generate(torch.tensor([prompt]), prefix_allowed_tokens_fn=allowed, **asked).tolist()
            got = pipe(text, regex="[aest]{3}[0-9]{2}", return_tensors=True, return_full_text=None, **asked)
            for one, row in zip(got, wanted, strict=True):
                assert one["generated_token_ids"] == row[: len(one["generated_token_ids"])]
                assert len(prompt) + 3 < len(one["generated_token_ids"])


def bytes_of(tokenizer: Any) -> list[bytes]:
    """The bytes of every token of a byte-level vocabulary."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [n for n in range(256) if n not in shown]
    table = {chr(n): n for n in shown} | {chr(256 + n): byte for n, byte in enumerate(others)}
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    return [bytes(table.get(letter, 0) for letter in token) for token in tokens]


# ------------------------------------------------------------------ modes, backends and vocabularies
MODES: list[dict[str, Any]] = [
    {"do_sample": False},
    {"do_sample": True, "seed": 1, "top_k": 5},
    {"do_sample": False, "num_beams": 3},
    {"do_sample": False, "prompt_lookup_num_tokens": 3},
    {"do_sample": True, "seed": 2, "num_assistant_tokens": 3},
]


def test_every_mode_follows_the_grammar() -> None:
    pipe, other = opened("llama", "torch"), opened("qwen2_b", "torch")
    for mode in MODES:
        more = {"assistant_model": pipe if "seed" in mode else other} if "num_assistant_tokens" in mode else {}
        assert_person(text_of(pipe, **JSON, **mode, **more))
        assert re.fullmatch(FORM["regex"], text_of(pipe, **FORM, **mode, **more))
        assert re.fullmatch("x[yz]{1,9}!", text_of(pipe, **GBNF, **mode, **more))
    assert text_of(pipe, **LARK, do_sample=False) == text_of(pipe, **GBNF, do_sample=False)
    assert text_of(pipe, **JSON, do_sample=False) == text_of(pipe, **JSON, **MODES[3])
    flat = {"response_format": {"type": "json_schema", "schema": SCHEMA, "strict": True}}
    assert text_of(pipe, **JSON, do_sample=False) == text_of(pipe, **flat, do_sample=False)
    assert "".join(pipe.stream("the cat", **JSON, do_sample=False)) == text_of(pipe, **JSON, do_sample=False)
    assert text_of(pipe, response_format={"type": "text"}, do_sample=False) == text_of(pipe, do_sample=False)
    assert text_of(pipe, response_format={"type": "json_object"}, do_sample=False).startswith("{")


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        *(("torch", name) for name in ("llama_b", "mistral_full", "qwen2_b")),
        *(("onnxruntime", "qwen2"), ("openvino", "qwen2"), ("torchscript", "qwen2"), ("llamacpp", "qwen2")),
    ],
)
def test_backends_and_vocabularies_follow_a_grammar(backend: str, name: str) -> None:
    pipe = opened(name, backend)
    answers = pipe(["the cat", "a dog ran", "in"], **JSON, do_sample=False, repetition_penalty=1.3)
    for (answer,) in answers:
        assert_person(answer["generated_text"])
    assert text_of(pipe, choices=CHOICES, num_beams=2, do_sample=False) in CHOICES


@pytest.mark.parametrize("name", ["bart", "pegasus_b", "t5", "m2m_100"])
def test_a_text_that_an_encoder_was_read_for_follows_the_grammar(name: str) -> None:
    """Its first piece has a space that is not shown; BART's first token is forced, and no part of the text."""
    choices = ["the small cat", "the small cat and the old house", "in"]
    with pipeline("text2text-generation", tiny(name), backend="torch", max_new_tokens=40, min_length=0) as pipe:
        for mode in ({"num_beams": 1}, {"num_beams": 3}, MODES[1] | {"num_beams": 1}, MODES[3] | {"num_beams": 1}):
            for one in choices:
                assert text_of(pipe, choices=[one], **mode) == one
            assert text_of(pipe, choices=choices, **mode) in choices
            assert re.fullmatch("x[yz]{1,9}!", text_of(pipe, **GBNF, **mode))
            assert re.fullmatch("[a-z]{3,5} [a-z]{2}", text_of(pipe, regex="[a-z]{3,5} [a-z]{2}", **mode))
            cut = text_of(pipe, **FORM, forced_eos_token_id=1, **{**mode, "max_new_tokens": 5})
            assert re.fullmatch("[a-c]{2}-[0-9]?", cut)
        (row,) = pipe("a", choices=[choices[0]], num_beams=1, return_tensors="np")
        own = pipe.text_tokenizer.encode([choices[0]], add_special_tokens=False)[0].ids
        assert [token for token in row["generated_token_ids"].tolist() if token in own] == own
        if name != "bart":
            with pytest.raises(InputError, match=r"cannot be met: no token of the model writes '\{'"):
                pipe("a", **JSON)


@pytest.mark.parametrize("name", ["gemma3_b", "gpt2", "llama_b", "moonshine", "qwen2", "smollm3", "t5", "whisper"])
def test_a_grammar_knows_the_bytes_of_every_token(name: str) -> None:
    tokenizer = TextTokenizer(tiny(name), class_facts(tiny(name)))
    end = tokenizer.token_id("eos_token") or 0
    vocabulary = Vocabulary(tokenizer.backend, None, (end,))
    text = "the small cat" if name == "t5" else 'the {"small": "çat ₤"}'  # without bytes, what is unknown stays so
    ids = list(tokenizer.encode([text], add_special_tokens=False)[0].ids)
    source = GrammarOptions(regex=" ?" + re.escape(text)).source()
    assert source is not None
    constraint = Grammar(source, vocabulary, "regex").constraint(2)
    scores = np.zeros(vocabulary.native.vocab_size, np.float32)
    for count in range(len(ids) + 1):
        kept = np.isfinite(constraint(np.array([9, 9, *ids[:count]]), scores))
        assert kept[ids[count] if count < len(ids) else end]
        assert kept[end] == (count == len(ids))
        assert not kept[sorted(tokenizer.special_ids - {end})].any()


def test_without_a_token_that_ends_the_grammar_does() -> None:
    pipe = opened("llama", "torch")
    assert re.fullmatch(FORM["regex"], text_of(pipe, **FORM, do_sample=False, eos_token_id=None))


# ------------------------------------------------------------------ what cannot be
class Forbids:
    """Leaves no digit to a text that begins with one token."""

    def __init__(self, first: int, tokens: Sequence[int]) -> None:
        self.first, self.tokens = first, list(tokens)

    def process(self, ids: Any, logits: Any) -> Any:
        changed = logits.copy()
        if ids[0] == self.first:
            changed[self.tokens] = -np.inf
        return changed


def test_the_answers_of_other_inputs_are_kept() -> None:
    pipe = opened("qwen2", "torch")
    digits = [pipe.text_tokenizer.encode([str(n)])[0].ids[0] for n in range(10)]
    first = pipe.text_tokenizer.encode(["dog"])[0].ids[0]
    options = {**FORM, "do_sample": False, "logits_processor": [Forbids(first, digits)], "on_error": "return"}
    one, bad, two = pipe(["the cat", "dog", "in"], **options)
    assert isinstance(bad, InputError)
    assert "regex allows no token that the other settings allow here" in str(bad)
    for answer in (one, two):
        assert re.fullmatch(FORM["regex"], answer[0]["generated_text"])


DEEP: dict[str, Any] = {"type": "string"}
for _ in range(400):
    DEEP = {"type": "array", "items": DEEP, "minItems": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regex": "("}, r"regex is not understood: .*unclosed group"),
        ({"regex": "(?=a)b"}, "look-around.* is not supported"),
        ({"regex": r"[^\s\S]"}, "regex cannot be met: no text follows it"),
        ({"regex": 3}, "regex=3 is no text"),
        ({"grammar": 'root ::= "a'}, "grammar is not understood: .*Unexpected end"),
        ({"grammar": "root ::= foo"}, "Rule 'foo' not found"),
        ({"grammar": 'start: start "a"'}, "grammar cannot be met"),
        ({"grammar": "root ::= " + "(" * 5000 + '"a"' + ")" * 5000}, "grammar is not understood: .*recursion depth"),
        ({"choices": []}, r"choices=\[\] is no list of texts"),
        ({"choices": "yes"}, "choices='yes' is no list of texts"),
        ({"choices": ["a", 3]}, "holds what is no text"),
        ({"choices": ["word"] * LONGEST}, f"and a grammar may have {LONGEST}"),
        ({"response_format": "json"}, "response_format='json' is not {'type': 'text'}"),
        ({"response_format": {"type": "json_schema"}}, "has no schema"),
        ({"response_format": {"type": "json_object", "strict": True}}, "has the key 'strict'"),
        ({"response_format": {"type": "json_schema", "schema": {"type": "wombat"}}}, "Invalid type: wombat"),
        ({"response_format": {"type": "json_schema", "schema": {"not": {}}}}, "Unimplemented keys"),
        ({"response_format": {"type": "json_schema", "schema": {"enum": []}}}, "Unsatisfiable schema"),
        ({"response_format": {"type": "json_schema", "schema": DEEP}}, "is not understood: .*recursion limit"),
        ({"response_format": {"type": "json_schema", "schema": False}}, "response_format"),
        ({**FORM, **GBNF}, "grammar and regex each say what the text looks like"),
        ({**FORM, "min_new_tokens": 20}, "regex allows no token that the other settings allow here"),
        ({"choices": ["y"], "num_beams": 3, "num_return_sequences": 3}, "choices has fewer texts than"),
    ],
)
def test_a_grammar_that_cannot_be_met_is_an_input_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        opened("llama", "torch")("the cat", do_sample=False, **options)


def test_a_hostile_grammar_comes_to_an_end() -> None:
    pipe = opened("llama", "torch")
    for options in (
        {"regex": "((a{1,1000}){1,1000}){1,1000}b"},
        {"regex": "(.*a){200}"},
        {
            "response_format": {
                "type": "json_schema",
                "schema": {"type": "array", "items": {"$ref": "#"}, "minItems": 9**9},
            }
        },
        {"grammar": 'root ::= root root | "a" | root "a" root'},
    ):
        try:
            pipe("the cat", do_sample=False, max_new_tokens=20, **options)
        except InputError as error:
            assert "takes too long to follow" in str(error) or "is not understood" in str(error)
