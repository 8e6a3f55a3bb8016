"""Conversations: what is said equals transformers' answers, what is computed is what a turn adds, and what leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import isoform
from isoform.errors import InputError
from isoform.formats import FORMAT_OF
from isoform.runtimes.generation.kept_prefix import PIECE, PrefixDecoder, Stopped
from tests.exports import exported, portable

Tiny = Callable[[str], Path]

QUESTIONS = ("Hello, world!", "Who reads the red book in the old house?", "And now?", "It's 2024.", "Why?")
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def opened(task: str, model: Path, **options: Any) -> Any:
    return isoform.pipeline(task, model, **options)


@cache
def theirs(folder: Path) -> tuple[Any, Any]:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder), model.eval()


def their_answer(folder: Path, messages: Sequence[Mapping[str, Any]], count: int, **options: Any) -> tuple[int, str]:
    """The number of tokens of the prompt, and the greedy answer of transformers."""
    tokenizer, model = theirs(folder)
    inputs = tokenizer.apply_chat_template(
        list(messages), add_generation_prompt=True, return_tensors="pt", return_dict=True, **options
    )
    made = model.generate(**inputs, max_new_tokens=count, do_sample=False, pad_token_id=0)
    length = inputs["input_ids"].shape[1]
    return length, tokenizer.decode(made[0, length:], skip_special_tokens=True)


def where(backend: str, tiny: Tiny) -> Path:
    if backend == "openvino":
        return portable("llama3_instruct")
    formats = () if backend == "torch" else (FORMAT_OF[backend],)
    return exported("llama3_instruct", formats) if formats else tiny("llama3_instruct")


@pytest.fixture
def pipe(tiny: Tiny) -> Iterator[Any]:
    with opened("text-generation", tiny("llama3_instruct"), backend="torch") as made:
        yield made


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    "backend",
    [
        *("torch", "onnxruntime", "llamacpp"),
        pytest.param("torchscript", marks=pytest.mark.nightly),
        pytest.param("openvino", marks=pytest.mark.nightly),
    ],
)
def test_every_turn_is_transformers_answer_and_costs_what_it_adds(backend: str, tiny: Tiny) -> None:
    with opened("text-generation", where(backend, tiny), backend=backend) as pipe:
        talk = pipe.conversation("Be brief.", max_new_tokens=7, do_sample=False)
        for n, question in enumerate(QUESTIONS):
            if n == 3:
                talk.system = "Speak slowly."  # what has been computed is of use up to there only
            length, want = their_answer(tiny("llama3_instruct"), [*talk.messages, user(question)], 7)
            assert talk.ask(question) == want
            turn, before = talk.turns[-1], talk.turns[n - 1]
            assert turn.prompt_tokens == length
            assert turn.stepped_tokens == length - turn.reused_tokens + turn.new_tokens - 1
            if n in (0, 3):
                assert turn.reused_tokens < 24
            else:
                assert turn.reused_tokens >= before.prompt_tokens, "the prompt before begins this one"
            assert turn.anew is None


def test_a_cache_that_cannot_be_rewound_begins_anew_and_says_so(tiny: Tiny) -> None:
    """LongRoPE: beyond a length all angles are others, so that the cache is computed again there, and kept whole."""
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    folder = tiny("phi3_longrope")
    with opened("text-generation", folder, backend="torch") as pipe:
        talk = pipe.conversation(max_new_tokens=4, do_sample=False, chat_template=template)
        for question in ("a", "b", "c d"):
            length, want = their_answer(folder, [*talk.messages, user(question)], 4, chat_template=template)
            assert talk.ask(question) == want
            turn = talk.turns[-1]
            assert turn.prompt_tokens == length
            assert turn.reused_tokens == 0 or turn.anew is None
        assert talk.turns[0].prompt_tokens < pipe.facts["recompute_beyond"] < talk.turns[-1].prompt_tokens
        del talk.messages[2:]
        _, want = their_answer(folder, [*talk.messages, user("y")], 4, chat_template=template)
        assert talk.ask("y") == want
        assert "cannot be rewound" in str(talk.turns[-1].anew)
        assert talk.turns[-1].reused_tokens == 0


@pytest.mark.parametrize("name", ["llama_dynamic", "llama_longrope"])
def test_a_scaling_that_depends_on_the_length_reads_a_long_text_anew(name: str, tiny: Tiny) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with opened("text-generation", tiny(name), backend="torch") as pipe:
        talk = pipe.conversation(max_new_tokens=4, do_sample=False, chat_template=template)
        for question in ("a", "b", "c d", "e"):
            messages = [*talk.messages, user(question)]
            want = pipe(messages, max_new_tokens=4, do_sample=False, chat_template=template)
            assert talk.ask(question) == want[0]["generated_text"][-1]["content"]
        assert "rotary scaling" in str(talk.turns[-1].anew)


@pytest.fixture
def narrow(tiny: Tiny, tmp_path: Path) -> Iterator[Any]:
    """A model that reads 96 tokens."""
    folder = Path(shutil.copytree(tiny("llama3_instruct"), tmp_path / "narrow"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 96}))
    with opened("text-generation", folder, backend="torch") as made:
        yield made


def test_the_oldest_turns_leave_a_full_context_whole(narrow: Any, tiny: Tiny) -> None:
    talk = narrow.conversation("Be brief.", max_new_tokens=8, do_sample=False)
    gone = 0
    for n in range(7):
        kept = [*talk.messages[1 + 2 * gone :], user(f"Number {n}.")]
        talk.ask(f"Number {n}.")
        gone += (left := talk.turns[-1].left)
        seen = [talk.messages[0], *kept[2 * left :]]
        length, want = their_answer(tiny("llama3_instruct"), seen, 8)
        assert (talk.turns[-1].prompt_tokens, talk.messages[-1]["content"]) == (length, want)
        assert length + 8 <= 96
        assert not left or length <= 72, "a quarter of the context is free when turns have left"
    assert gone == talk.left > 1
    assert len(talk.messages) == 1 + 2 * 7, "what has left the context is still there to save"
    talk.system = None
    assert (
        talk.ask("And now?")
        == their_answer(tiny("llama3_instruct"), [*talk.messages[2 * (gone + talk.turns[-1].left) : -1]], 8)[1]
    )


def test_a_message_longer_than_the_context_is_an_error_and_the_conversation_goes_on(narrow: Any) -> None:
    talk = narrow.conversation(max_new_tokens=4, do_sample=False)
    first = talk.ask("Hello.")
    before = list(talk.messages)
    with pytest.raises(InputError, match=r"a prompt of \d\d\d tokens, and the model reads 96; shorten it"):
        talk.say("long " * 90)
    assert talk.messages == before
    assert talk.ask("Hello?")
    assert talk.messages[1]["content"] == first
    talk.set(max_new_tokens=500, eos_token_id=[])
    talk.ask("Say more.")
    assert talk.turns[-1].reason == "context"


def test_what_was_said_before_a_stop_stays_and_is_marked(pipe: Any) -> None:
    talk = pipe.conversation(max_new_tokens=40, do_sample=False, eos_token_id=[])
    for _ in talk.say("Hello, world!"):
        if len(talk.turns) == 0:
            talk.stop()
    assert talk.messages[1]["stopped"] is True
    assert talk.turns[0].reason == "stopped"
    assert 0 < talk.turns[0].new_tokens < 40
    plain = [{"role": m["role"], "content": m["content"]} for m in talk.messages]
    want = pipe([*plain, user("Go on.")], max_new_tokens=6, do_sample=False, eos_token_id=[])
    talk.set(max_new_tokens=6)
    assert talk.ask("Go on.") == want[0]["generated_text"][-1]["content"]
    pieces = talk.say("And now?")
    with pytest.raises(InputError, match="answering another message"):
        talk.say("What?")
    next(pieces)
    pieces.close()
    assert talk.messages[-1]["stopped"] is True
    assert len(talk.ask("Once more?")) > 0
    stopped = talk.say("And now?")
    talk._decoder.forget()
    talk.stop()  # before the first token
    assert list(stopped) == []
    assert talk.messages[-1]["role"] == "assistant"
    assert talk.messages[-2]["content"] == "Once more?"


def test_tools_and_documents_reach_the_template(pipe: Any, tiny: Tiny) -> None:
    template = "{{ tools | tojson }}{{ documents | tojson }}" + TEMPLATE
    tools = [{"type": "function", "function": {"name": "read", "parameters": {"type": "object", "properties": {}}}}]
    given = {"tools": tools, "documents": [{"title": "A", "text": "b"}], "chat_template": template}
    talk = pipe.conversation(max_new_tokens=4, do_sample=False, **given)
    length, want = their_answer(tiny("llama3_instruct"), [user("Hello, world!")], 4, **given)
    assert talk.ask("Hello, world!") == want
    assert talk.turns[0].prompt_tokens == length
    result = {"role": "tool", "name": "read", "content": "red"}
    _, want = their_answer(tiny("llama3_instruct"), [*talk.messages, result], 4, **given)
    assert talk.ask(result) == want


def test_a_conversation_can_be_cleared_and_another_one_loaded(pipe: Any) -> None:
    talk = pipe.conversation("Be brief.", max_new_tokens=4, do_sample=False)
    first = talk.ask("Hello!")
    saved = list(talk.messages)
    talk.ask("And now?")
    talk.clear()
    assert (talk.messages, talk.turns) == ([{"role": "system", "content": "Be brief."}], [])
    assert talk.ask("Hello!") == first
    talk.load(saved)
    assert talk.messages == saved
    for wrong in ([3], [{"role": "user"}], [{"content": "x"}]):
        with pytest.raises(InputError):
            talk.load(wrong)
    assert talk.messages == saved


def test_what_a_conversation_cannot_do_is_refused_by_name(pipe: Any, tiny: Tiny) -> None:
    talk = pipe.conversation(max_new_tokens=4)
    for parameters, named in (
        ({"temprature": 0.2}, "did you mean 'temperature'"),
        ({"num_beams": 3}, "num_beams=1"),
        ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences=1"),
        ({"penalty_alpha": 0.6, "top_k": 4, "do_sample": False}, "pass penalty_alpha=0"),
        ({"guidance_scale": 2}, "pass guidance_scale=1"),
        ({"streamer": print}, "say"),
        ({"truncation": True}, "oldest turns leave"),
        ({"temperature": "hot"}, "temperature='hot'"),
    ):
        with pytest.raises(InputError, match=named):
            talk.set(**parameters)
    assert talk.parameters == {"max_new_tokens": 4}
    with (
        opened("text-generation", tiny("gpt2"), backend="torch") as bare,
        pytest.raises(InputError, match="no chat template"),
    ):
        bare.conversation()


@pytest.mark.parametrize("guesses", [{"prompt_lookup_num_tokens": 4}, {"assistant_model": "itself"}])
def test_guessed_tokens_change_no_turn(pipe: Any, guesses: dict[str, Any]) -> None:
    asked = {"max_new_tokens": 8, "do_sample": False}
    plain = pipe.conversation(**asked)
    talk = pipe.conversation(**asked, **{name: pipe if value == "itself" else value for name, value in guesses.items()})
    for message in ("Hello! Hello! Hello!", "And now?", "And now?"):
        assert talk.ask(message) == plain.ask(message)
        one, other = talk.turns[-1], plain.turns[-1]
        assert (one.prompt_tokens, one.new_tokens, one.reason) == (other.prompt_tokens, other.new_tokens, other.reason)
    assert talk.turns[-1].reused_tokens > 0


def test_an_error_leaves_the_conversation_as_it_was(pipe: Any) -> None:
    talk = pipe.conversation(max_new_tokens=6, do_sample=False)
    first = talk.ask("Hello!")

    def fail(ids: Any, scores: Any) -> Any:
        raise ValueError("no")

    before = list(talk.messages)
    talk.set(logits_processor=[fail])
    with pytest.raises(ValueError, match="no"):
        talk.ask("And now?")
    assert talk.messages == before
    talk.set(logits_processor=None)
    want = pipe([*before, user("And now?")], max_new_tokens=6, do_sample=False)[0]["generated_text"][-1]["content"]
    assert talk.ask("And now?") == want
    assert first


class Counting:
    """A decoder that notes what it is fed."""

    def __init__(self, log: list[Any], rewinds: bool = True) -> None:
        self.log, self.rewinds = log, rewinds

    def __len__(self) -> int:
        return 1

    def step(self, tokens: Any, **options: Any) -> Any:
        if tokens[0, -1] == 9999:
            raise RuntimeError("broken")
        self.log.append(tokens.shape[1])
        return np.zeros((1, 3), np.float32)

    def select(self, rows: Any) -> None:
        self.log.append("select")

    def join(self, other: Any) -> None:
        raise AssertionError

    def rewind(self, counts: Any) -> None:
        if not self.rewinds:
            raise InputError("a window cannot be rewound")
        self.log.append(-counts)


def test_a_prompt_costs_what_the_cache_does_not_hold() -> None:
    log: list[Any] = []
    stop = [False]
    decoder = PrefixDecoder(lambda: Counting(log), lambda: stop[0])

    def prompt(*ids: int) -> tuple[list[Any], int]:
        log.clear()
        decoder.begin()
        decoder.step(np.array([ids]))
        return list(log), decoder.reused

    assert prompt(1, 2, 3) == ([3], 0)
    decoder.step(np.array([[4]]))
    assert decoder.stepped == 4
    assert prompt(1, 2, 3, 4, 5, 6) == ([2], 4)
    assert prompt(1, 2, 3, 4, 5, 6) == ([-1, 1], 5), "the last token is computed for its logits"
    assert prompt(1, 2, 7) == ([-4, 1], 2)
    assert prompt(8, 2) == ([2], 0), "nothing in common"
    decoder.rewind(1)
    assert prompt(8, 2, 3) == ([2], 1)
    decoder.select(np.array([0, 0]))
    assert prompt(8, 2, 3) == ([3], 0), "rows that moved are no prefix"
    with pytest.raises(RuntimeError):
        prompt(8, 2, 9999)
    assert prompt(8, 2, 3) == ([3], 0), "a decoder is of no use after an error"
    assert prompt(*range(PIECE + 2)) == ([PIECE, 2], 0)
    stop[0] = True
    with pytest.raises(Stopped):
        prompt(5, 6)
    decoder = PrefixDecoder(lambda: Counting(log, rewinds=False))
    prompt(1, 2, 3)
    assert prompt(1, 2, 4, 5) == ([4], 0)
    assert decoder.anew == "a window cannot be rewound"
