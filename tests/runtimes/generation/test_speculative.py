"""Speculative decoding: transformers' greedy tokens in fewer steps, and the distributions of plain sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

import isoform
from isoform.errors import InputError, IsoformError
from isoform.runtimes.generation.draft import DraftModel, OtherVocabulary
from isoform.runtimes.generation.loop import generate, steps
from isoform.runtimes.generation.settings import model_settings, resolve
from isoform.runtimes.generation.speculative import found_before
from tests import oracle
from tests.runtimes.open_sessions import close_all, opened

Tiny = Callable[[str], Path]
pipeline: Any = isoform.pipeline
BACKENDS = (
    *("torch", "onnxruntime", "llamacpp"),
    *(pytest.param(name, marks=pytest.mark.nightly) for name in ("openvino", "torchscript")),
)
LOOKUP: dict[str, Any] = {"prompt_lookup_num_tokens": 5}
PROMPTS = [[5, 17, 33, 5, 17], [7, 8, 7, 8, 9, 7], [3, 3]]


@pytest.fixture(scope="module", autouse=True)
def closed() -> Iterator[None]:
    yield
    close_all()


@cache
def theirs(name: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(oracle.tiny(name), attn_implementation="eager")


def greedy(name: str, prompt: Sequence[int], **options: Any) -> list[int]:
    """transformers' plain greedy text, without its prompt."""
    import torch

    out = theirs(name).generate(torch.tensor([list(prompt)]), do_sample=False, num_beams=1, **options)
    return out[0, len(prompt) :].tolist()


# ------------------------------------------------------------------ greedy text
MODES: list[dict[str, Any]] = [
    {"max_new_tokens": 24},
    {"max_new_tokens": 24, "repetition_penalty": 1.2, "min_new_tokens": 9, "eos_token_id": list(range(0, 300, 5))},
    {"max_length": 13, "eos_token_id": list(range(0, 300, 3))},
    {"max_new_tokens": 12, "no_repeat_ngram_size": 3, "forced_eos_token_id": 7},
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_looked_up_tokens_leave_greedy_text_as_transformers_has_it(backend: str) -> None:
    for name in ("gemma3_b", "llama_b") if backend == "torch" else ("gemma3_b",):
        for options in MODES if backend == "torch" else MODES[:2]:
            settings = resolve({**options, **LOOKUP}, model_settings(oracle.tiny(name)))
            count = 0
            for rows in steps(opened(name, backend), PROMPTS, settings):  # noqa: B007
                count += 1
            for row in rows:
                assert row.made == greedy(name, row.prompt, **options)
            if name == "gemma3_b" and options == MODES[0]:
                assert count < 12  # 24 without


def test_what_followed_before_is_found() -> None:
    assert found_before([1, 2, 3, 4, 1, 2], 3, 2) == [3, 4, 1]
    assert found_before([1, 2, 3, 9, 2, 5, 1, 2], 2, 2) == [3, 9]  # two tokens agree before one does
    assert found_before([8, 1, 2, 3, 7, 1, 2, 4, 8, 1, 2], 1, 2) == [3]  # the one that more tokens agree with
    assert found_before([6, 1, 2, 3, 7, 1, 2, 4, 8, 1, 2], 1, 2) == [4]  # the last of equals
    assert found_before([4, 5, 4, 5], 5, 2) == [4, 5, 4, 5, 4]  # what overlaps the end goes on with itself
    assert found_before([1, 2, 3], 3, 2) == found_before([1], 3, 2) == found_before([1, 1], 0, 2) == []


def test_a_stream_and_a_stop_string_are_those_of_plain_text(tiny: Tiny) -> None:
    with pipeline("text-generation", tiny("gemma3_b"), do_sample=False, max_new_tokens=24) as pipe:
        text = "the cat the cat sat"
        plain = pipe(text, return_full_text=False)[0]["generated_text"]
        assert pipe(text, return_full_text=False, **LOOKUP)[0]["generated_text"] == plain
        assert "".join(pipe.stream(text, **LOOKUP)) == "".join(pipe.stream(text))
        end = plain[9:12]
        stopped = pipe(text, stop_strings=end, return_full_text=False)[0]["generated_text"]
        assert len(stopped) < len(plain)
        assert pipe(text, stop_strings=end, return_full_text=False, **LOOKUP)[0]["generated_text"] == stopped
        got: list[int] = []

        class Kept:
            def put(self, value: Any) -> None:
                got.extend(np.ravel(value).tolist())

            def end(self) -> None:
                got.append(-1)

        (out,) = pipe(text, return_tensors=True, streamer=Kept(), **LOOKUP)
        assert got == [*out["generated_token_ids"], -1]


def test_rows_with_encoder_states_that_rewind_together(tiny: Tiny) -> None:
    features = np.random.default_rng(1).standard_normal((3, 80, 100)).astype(np.float32)
    prompts = [[5, 6, 7], [9, 8, 9], [5, 5, 5]]
    ends = list(range(0, 300, 11))
    for backend in ("torch", "onnxruntime"):
        session = opened("whisper_b", backend)
        encoded = session.encode({"input_features": features})
        plain = resolve({"max_new_tokens": 18, "eos_token_id": ends})
        wanted = [row.made for row in generate(session.decoder(encoded), prompts, plain)]
        settings = resolve({"max_new_tokens": 18, "eos_token_id": ends, **LOOKUP})
        assert [row.made for row in generate(session.decoder(encoded), prompts, settings)] == wanted


def test_what_guessing_cannot_do_is_refused() -> None:
    from isoform.runtimes.generation.recomputing import RecomputingDecoder

    session = opened("llama_b", "torch")
    with pytest.raises(InputError, match=r"num_beams=2 grows several; pass num_beams=1"):
        generate(session, [[5]], resolve({"num_beams": 2, **LOOKUP}))
    with pytest.raises(InputError, match="the decoder of this model cannot forget tokens"):
        generate(RecomputingDecoder(session.decoder, 1, 8), [[5]], resolve(LOOKUP))
    for wrong in ({"prompt_lookup_num_tokens": 0}, {"max_matching_ngram_size": True}, {"max_matching_ngram_size": 0}):
        with pytest.raises(InputError, match="is not a value that generation understands"):
            resolve(wrong)


# ------------------------------------------------------------------ sampled text
TOKENS, LENGTH, DRAWS = 4, 4, 3000


class Table:
    """A decoder over a few tokens, of which a table says how likely each is after any two."""

    rewinds = "rows"

    def __init__(self, rows: int, seed: int) -> None:
        self.table = np.random.default_rng(seed).normal(size=(TOKENS, TOKENS, TOKENS)).astype(np.float32)
        self.rows: list[list[int]] = [[0] for _ in range(rows)]
        self.fed = 0

    def __len__(self) -> int:
        return len(self.rows)

    def step(self, tokens: Any, *, mask: Any = None, positions: Any = None, last: int | None = 1) -> Any:
        logits = np.full((*tokens.shape, TOKENS), np.nan, np.float32)
        for n, row in enumerate(self.rows):
            for slot in range(tokens.shape[1]):
                if mask is None or mask[n, slot]:
                    row.append(int(tokens[n, slot]))
                    logits[n, slot] = self.table[row[-2] if len(row) > 1 else 0, row[-1]]
        self.fed += 1
        return logits[:, -1] if last == 1 else logits

    def select(self, rows: Any) -> None:
        self.rows = [list(self.rows[n]) for n in rows]

    def rewind(self, counts: Any) -> None:
        for row, count in zip(self.rows, counts, strict=True):
            del row[len(row) - count :]

    def join(self, other: Any) -> None:
        raise NotImplementedError

    def likely(self, prompt: Sequence[int], power: float, best: int = TOKENS) -> Any:
        """The probability of every text of `LENGTH` tokens, by its number in base `TOKENS`."""
        found = np.ones((1,))
        ends = [(prompt[-2], prompt[-1])]
        for _ in range(LENGTH):
            shares = np.exp([self.table[end] * power for end in ends])
            shares *= shares >= np.sort(shares, 1)[:, [-best]]
            shares /= shares.sum(1, keepdims=True)
            found = (found[:, None] * shares).ravel()
            ends = [(end[1], token) for end in ends for token in range(TOKENS)]
        return found


def assert_drawn(rows: Sequence[Any], likely: Any) -> None:
    """Texts' counts: chi-square below the value that chance exceeds once in a thousand times (Wilson and Hilferty)."""
    numbers = [int(np.dot(row.made, TOKENS ** np.arange(LENGTH)[::-1])) for row in rows]
    counts, wanted = np.bincount(numbers, minlength=len(likely)), likely * len(rows)
    rare = wanted < 5
    counts, wanted = np.append(counts[~rare], counts[rare].sum()), np.append(wanted[~rare], wanted[rare].sum())
    freedom = len(wanted) - 1
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * np.sqrt(2 / (9 * freedom))) ** 3
    assert freedom > 40
    chi = float(((counts - wanted) ** 2 / wanted).sum())
    assert chi < limit, (chi, limit)


def test_looked_up_tokens_change_no_distribution() -> None:
    prompt = [1, 2, 3, 1, 2, 0, 1, 2]
    options = {"do_sample": True, "max_new_tokens": LENGTH, "top_k": 0, "temperature": 0.8, "seed": 5}
    for more in ({}, LOOKUP):
        decoder = Table(1, 3)
        rows = generate(decoder, [prompt], resolve({**options, **more, "num_return_sequences": DRAWS}))
        assert_drawn(rows, decoder.likely(prompt, 1 / 0.8))


# ------------------------------------------------------------------ draft models
class Rough:
    """A draft decoder whose logits are a model's own with noise, so that about half of its guesses are right."""

    def __init__(self, decoder: Any, noise: float) -> None:
        self._decoder, self._noise, self._random = decoder, noise, np.random.default_rng(0)
        self.rewinds = decoder.rewinds

    def step(self, tokens: Any, **options: Any) -> Any:
        logits = self._decoder.step(tokens, **options)
        return logits + self._random.normal(scale=self._noise, size=logits.shape).astype(np.float32)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_draft_model_leaves_greedy_text_as_transformers_has_it(backend: str) -> None:
    name, session = "llama_b", opened("llama_b", backend)
    drafts: Any = (0.4, {"num_assistant_tokens": 3}), (0.0, {}), (0.4, {"assistant_confidence_threshold": 0.0})
    for noise, more in drafts if backend == "torch" else drafts[:1]:
        assistant = DraftModel(lambda rows, noise=noise: Rough(session.decoder(len(rows)), noise))  # type: ignore[misc]
        for options in MODES if backend == "torch" else MODES[1:2]:
            settings = resolve({**options, **more}, model_settings(oracle.tiny(name)))
            count = 0
            for rows in steps(session, PROMPTS, settings, assistant=assistant):  # noqa: B007
                count += 1
            for row in rows:
                assert row.made == greedy(name, row.prompt, **options)
            if options == MODES[0] and noise == 0 and not more:
                assert count < 24


def test_a_draft_of_rows_that_rewind_together() -> None:
    features = np.random.default_rng(1).standard_normal((3, 80, 100)).astype(np.float32)
    session = opened("whisper_b", "torch")
    encoded = session.encode({"input_features": features})
    options = {"max_new_tokens": 18, "eos_token_id": list(range(0, 300, 11)), "assistant_confidence_threshold": 0.0}
    prompts = [[5, 6, 7], [9, 8, 9], [5, 5, 5]]
    wanted = [row.made for row in generate(session.decoder(encoded), prompts, resolve(options))]
    for noise, schedule in ((0.0, "constant"), (0.3, "heuristic"), (3.0, "heuristic_transient")):

        def begun(rows: Any, noise: float = noise) -> Any:
            return Rough(session.decoder(encoded.select(np.array(rows))), noise)

        settings = resolve({**options, "num_assistant_tokens": 4, "num_assistant_tokens_schedule": schedule})
        made = generate(session.decoder(encoded), prompts, settings, assistant=DraftModel(begun))
        assert [row.made for row in made] == wanted


def test_a_draft_model_changes_no_distribution() -> None:
    prompt = [1, 2]
    options = {"do_sample": True, "max_new_tokens": LENGTH, "top_k": 3, "seed": 5, "num_return_sequences": DRAWS}
    for width, count in ((None, 3), (TOKENS, 1)):
        decoder, draft = Table(1, 3), Table(DRAWS, 4)
        draft.rows = [[] for _ in range(DRAWS)]
        rows = generate(
            decoder,
            [prompt],
            resolve({**options, "num_assistant_tokens": count}),
            assistant=DraftModel(lambda rows, draft=draft: draft, vocabulary=width),  # type: ignore[misc]
        )
        assert_drawn(rows, decoder.likely(prompt, 1, 3))


class Turned(Table):
    """The same model with its tokens numbered from the other end."""

    def step(self, tokens: Any, **options: Any) -> Any:
        return super().step(TOKENS - 1 - tokens, **options)[..., ::-1]


def test_a_draft_of_another_vocabulary_reads_text() -> None:
    words = OtherVocabulary(
        DraftModel(lambda rows: emptied(Turned(len(rows), 3))),
        encode=lambda text: [int(letter) for letter in text],
        decode=lambda ids: "".join(map(str, ids)),
        their_encode=lambda text: [TOKENS - 1 - int(letter) for letter in text],
        their_decode=lambda ids: "".join(str(TOKENS - 1 - token) for token in ids),
    )
    settings = resolve({"max_new_tokens": 20, "assistant_confidence_threshold": 0.0, "num_assistant_tokens": 4})
    (wanted,) = generate(Table(1, 3), [[1, 2]], settings)
    *_, (count, (row,)) = enumerate(steps(Table(1, 3), [[1, 2]], settings, assistant=words))
    assert row.made == wanted.made
    assert count == 4  # steps of 5 tokens, after the first


def emptied(table: Table) -> Table:
    table.rows = [[] for _ in table.rows]
    return table


# ------------------------------------------------------------------ assistants of a pipeline
def test_a_pipeline_takes_an_assistant_by_name_or_opened(tiny: Tiny) -> None:
    text, options = "the cat sat on the", {"do_sample": False, "max_new_tokens": 12}
    with (
        pipeline("text-generation", tiny("llama_b"), assistant_model=str(tiny("qwen2_b")), **options) as named,
        pipeline("text-generation", tiny("llama_b"), backend="torch", **options) as plain,
        pipeline("text-generation", tiny("qwen2"), backend="torch") as same,
        pipeline("text-generation", tiny("qwen2_b"), backend="torch", **options) as other,
    ):
        wanted = plain(text)
        assert named(text) == wanted
        assert named(text, assistant_model=plain, num_assistant_tokens=3) == wanted
        assert named([text, "a dog"], assistant_model=tiny("llama_b")) == plain([text, "a dog"])
        assert other(text, assistant_model=same.model) == other(text)
        found: list[Any] = []
        threads = [Thread(target=lambda: found.append(named(text, assistant_model=plain))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [wanted, wanted]
        sampled = {"do_sample": True, "seed": 3, "max_new_tokens": 8}
        assert named(text, **sampled) == named(text, **sampled)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"assistant_model": "no/such/folder"}, "no/such/folder"),
        ({"assistant_model": 3}, "assistant_model: model=3 is not a folder"),
        ({"assistant_model": "bert"}, "text-generation"),
        ({"assistant_tokenizer": "llama_b"}, "comes without assistant_model"),
        ({"assistant_model": "llama_b", "num_beams": 2}, "an assistant model guesses the tokens of one text"),
        ({"assistant_model": "llama_b", **LOOKUP}, "guess by one of them"),
        ({"assistant_model": "llama_b", "num_assistant_tokens": 0}, "num_assistant_tokens=0 is not a value"),
        ({"num_assistant_tokens_schedule": "wild"}, "num_assistant_tokens_schedule='wild' is not a value"),
    ],
)
def test_assistants_that_are_none_are_refused(options: dict[str, Any], message: str, tiny: Tiny) -> None:
    options = {name: str(tiny(v)) if v in ("bert", "llama_b") else v for name, v in options.items()}
    with pipeline("text-generation", tiny("llama_b"), backend="torch", max_new_tokens=3) as pipe:
        plain = pipe("the cat", do_sample=False)
        with pytest.raises(IsoformError, match=message):
            pipe("the cat", **options)
        assert pipe("the cat", do_sample=False) == plain
