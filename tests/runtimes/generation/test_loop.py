"""Generation against transformers': the processors on the same logits, and greedy text token for token."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from isoform.errors import InputError
from isoform.reference.classes import class_facts
from isoform.reference.model import open_model
from isoform.runtimes.backends.decoder import GraphDecoder
from isoform.runtimes.backends.torch.session import TorchSession
from isoform.runtimes.generation import processors as sampling
from isoform.runtimes.generation.loop import Request, Scheduler, generate
from isoform.runtimes.generation.settings import GenerationConfig, context_length, model_settings, resolve
from isoform.runtimes.generation.text_stream import TextStream
from isoform.runtimes.preprocess.text.tokenizer import TextTokenizer
from isoform.signature import Signature, decoder_signature
from tests import oracle
from tests.oracle.texts import HAND

Tiny = Callable[[str], Path]
SCORES: dict[str, Any] = {"rtol": 2e-6, "atol": 2e-6}  # float32, summed in another order


class Scripted:
    """A session over 16 tokens whose logits prefer a given token at each step; it records what it was fed."""

    backend = "scripted"

    def __init__(self, *script: int, vocabulary: int = 16) -> None:
        self.signature: Signature = decoder_signature(1, 1, 2, vocabulary)
        self.script, self.vocabulary = script, vocabulary
        self.fed: list[tuple[list[list[int]], ...]] = []

    def decoder(self, rows: Any) -> ScriptedDecoder:
        return ScriptedDecoder(self, rows)

    def logits(self, feeds: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        self.fed.append(tuple(feeds[name].tolist() for name in ("input_ids", "attention_mask", "position_ids")))
        logits = np.zeros((len(feeds["input_ids"]), self.vocabulary), np.float32)
        logits[:, self.script[min(len(self.fed), len(self.script)) - 1]] = 5
        return logits

    def run(self, inputs: Any) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        pass

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class ScriptedDecoder(GraphDecoder):
    def __init__(self, session: Scripted, rows: int) -> None:
        super().__init__(session.signature, rows)
        self.session = session

    def _pass(self, feeds: dict[str, NDArray[Any]], *_: Any, **__: Any) -> NDArray[np.float32]:
        return self.session.logits(feeds)

    def _reorder(self, rows: NDArray[np.int64], held: Any, slots: int) -> None:
        """It has no states."""

    def _truncate(self, slots: int) -> None:
        raise NotImplementedError

    def _rebuild(self, plan: Any, slots: int) -> None:
        """It has no states."""


def made(session: Any, prompts: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
    arguments = {k: options.pop(k) for k in ("context", "decode", "first_row") if k in options}
    return [row.made for row in generate(session, prompts, resolve(options), **arguments)]


# ------------------------------------------------------------------ processors
PROCESSED: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3},
    {"encoder_repetition_penalty": 1.4},
    {"encoder_repetition_penalty": 0.7, "repetition_penalty": 1.3},
    {"encoder_no_repeat_ngram_size": 1},
    {"encoder_no_repeat_ngram_size": 3, "no_repeat_ngram_size": 3},
    {"bad_words_ids": [[3], [5, 6], [7, 8, 9], [2]]},
    {"sequence_bias": [[[4], 2.5], [[5, 6], -3.0], [[8, 9, 6], 1.5]]},
    {"min_length": 30},
    {"min_new_tokens": 5},
    {"forced_eos_token_id": 2, "max_length": 13},
    {"forced_eos_token_id": [2, 3], "max_new_tokens": 1},
    {"remove_invalid_values": True},
    {"exponential_decay_length_penalty": (0, 1.4)},
    {"suppress_tokens": [1, 4, 9]},
    {"begin_suppress_tokens": [1, 4, 9]},
    {"renormalize_logits": True},
]
SAMPLED: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6},
    {"top_k": 5},
    {"top_k": 1},
    {"top_k": 0, "top_p": 0.7},
    {"top_p": 0.05},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"typical_p": 0.5},
    {"epsilon_cutoff": 0.02},
    {"eta_cutoff": 0.3},
    {"top_h": 0.4},
    {
        "temperature": 1.7,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.02,
        "repetition_penalty": 1.2,
        "renormalize_logits": True,
    },
]


def theirs(
    config: dict[str, Any], prompt: int, ids: NDArray[np.int64], logits: NDArray[np.float32], source: NDArray[np.int64]
) -> NDArray[Any]:
    """transformers' LogitsProcessorList for these settings, on the same ids and logits."""
    import torch
    from transformers import GenerationConfig as TheirConfig

    c = TheirConfig(eos_token_id=[2, 11], **config)
    c.update(**TheirConfig._get_default_generation_params(), defaults_only=True)
    c._eos_token_tensor = torch.tensor([2, 11])
    return _processed(c, config, prompt, ids, logits, source)


def processed_by_transformers(
    own: Any, config: dict[str, Any], prompt: int, ids: NDArray[np.int64], logits: NDArray[np.float32]
) -> NDArray[Any]:
    """The same with the settings that a model comes with; what its encoder read does not count."""
    import copy

    import torch
    from transformers import GenerationConfig as TheirConfig

    c = copy.deepcopy(own)
    c.update(**{name: value for name, value in config.items() if name != "seed"})
    c.update(**TheirConfig._get_default_generation_params(), defaults_only=True)
    ends = c.eos_token_id
    c._eos_token_tensor = None if ends is None else torch.tensor(ends if isinstance(ends, list) else [ends])
    if c.max_new_tokens is not None:
        c.max_length = prompt + c.max_new_tokens
    return _processed(c, {"max_length": c.max_length}, prompt, ids, logits, ids[:prompt])


def _processed(
    c: Any,
    config: dict[str, Any],
    prompt: int,
    ids: NDArray[np.int64],
    logits: NDArray[np.float32],
    source: NDArray[np.int64],
) -> NDArray[Any]:
    import torch
    from transformers import GenerationMixin

    if "max_length" not in config:
        c.max_length = prompt + config.get("max_new_tokens", 20)

    class Model(GenerationMixin):  # type: ignore[misc]  # only the part of a model that makes the list
        class config:
            is_encoder_decoder = False

    chain = Model._get_logits_processor(
        Model(), c, input_ids_seq_length=prompt, encoder_input_ids=torch.from_numpy(source[None]), model_kwargs={}
    )
    return chain(torch.from_numpy(ids[None]), torch.from_numpy(logits[None].copy()))[0].numpy()


@pytest.mark.parametrize("new", [0, 3])
@pytest.mark.parametrize(
    "config", [*PROCESSED, *({"do_sample": True, **c} for c in SAMPLED)], ids=lambda c: "-".join(map(str, c)) or "plain"
)
def test_logits_are_processed_as_transformers_does(config: dict[str, Any], new: int) -> None:
    random = np.random.default_rng(0)
    prompt = 12
    for scale in (1.0, 4.0):
        for _ in range(6):
            ids = random.integers(0, 10, prompt + new)
            logits = (random.standard_normal(40) * scale).astype(np.float32)
            if config.get("remove_invalid_values"):
                logits[[3, 4, 5]] = np.nan, np.inf, -np.inf
            ours = logits
            settings = resolve({"eos_token_id": [2, 11], **config})
            longest = settings.max_length or prompt + (settings.max_new_tokens or 20)
            source = np.concatenate((random.integers(0, 10, 9), ids[-2:], [13]))  # not the prompt
            for process in sampling.processors(settings, prompt, longest, source=source.tolist()):
                before = ours.copy()
                after = process(ids, ours)
                assert np.array_equal(ours, before, equal_nan=True), "a processor changed its input"
                assert after.dtype == np.float32
                ours = after
            expected = theirs(config, prompt, ids, logits, source)
            assert np.array_equal(np.isneginf(ours), np.isneginf(expected))
            np.testing.assert_allclose(ours, expected, **SCORES)


WARPERS: list[dict[str, Any]] = [
    {"temperature": 1.4},
    {"top_h": 0.6},
    {"top_k": 12},
    {"top_p": 0.8},
    {"min_p": 0.05},
    {"typical_p": 0.7},
    {"epsilon_cutoff": 0.01},
    {"eta_cutoff": 0.05},
]


@pytest.mark.parametrize("beams", [1, 3])
def test_every_combination_of_warpers_leaves_the_distribution_of_transformers(beams: int) -> None:
    """Numbers, not draws: of all 256 sets of warpers, with renormalized logits for every other one."""
    random = np.random.default_rng(7)
    for chosen in range(2 ** len(WARPERS)):
        config: dict[str, Any] = {
            "do_sample": True,
            "num_beams": beams,
            "renormalize_logits": bool(chosen % 2),
            "top_k": 0,
        }
        for n, warper in enumerate(WARPERS):
            config |= warper if chosen >> n & 1 else {}
        ids, logits = random.integers(0, 10, 6), (random.standard_normal(60) * 2).astype(np.float32)
        given = sampling.log_softmax(logits) if beams > 1 else logits
        ours = given
        for process in sampling.processors(resolve({"eos_token_id": [2, 11], **config}), 4, 20):
            ours = process(ids, ours)
        expected = theirs(config, 4, ids, given, ids[:4])
        assert np.array_equal(np.isneginf(ours), np.isneginf(expected)), config
        np.testing.assert_allclose(ours, expected, **SCORES, err_msg=str(config))


def test_tokens_are_drawn_with_their_probabilities() -> None:
    scores = np.array([0.0, -np.inf, 1.0, 2.0], np.float32)
    random = np.random.default_rng(1)
    counts = np.bincount([sampling.draw(scores, random) for _ in range(20_000)], minlength=4)
    expected = sampling.softmax(scores) * 20_000
    assert counts[1] == 0
    assert np.abs(counts - expected).max() < 5 * np.sqrt(20_000 / 4)  # five standard deviations


# ------------------------------------------------------------------ the loop
@pytest.mark.parametrize("name", oracle.DECODERS)
def test_greedy_tokens_are_those_stored_by_transformers(name: str, tiny: Tiny) -> None:
    from safetensors.numpy import load_file

    golden = load_file(tiny(name) / "golden.safetensors")
    prompts = golden["in.input_ids"].tolist()
    expected = golden["gen.out"]
    with TorchSession(open_model(tiny(name), "text-generation")) as session:
        settings = resolve(
            {"do_sample": False, "max_new_tokens": expected.shape[1] - len(prompts[0])}, model_settings(tiny(name))
        )
        rows = generate(session, prompts, settings)
    for row, wanted in zip(rows, expected.tolist(), strict=True):
        assert row.prompt + row.made == wanted[: len(row.prompt) + len(row.made)]
        assert row.reason == "stop" or len(row.prompt) + len(row.made) == len(wanted)


GREEDY: list[dict[str, Any]] = [
    {"repetition_penalty": 1.5},
    {"no_repeat_ngram_size": 2},
    {"encoder_repetition_penalty": 1.6, "encoder_no_repeat_ngram_size": 2},  # of the prompt
    {"min_new_tokens": 9},
    {"max_length": 19, "max_new_tokens": None},
    {"max_new_tokens": None},  # 20
    {"eos_token_id": list(range(0, 300, 3))},
    {"eos_token_id": None},
    {"forced_eos_token_id": 7},
    {"bad_words_ids": [[n] for n in range(0, 400, 2)]},
    {"suppress_tokens": list(range(100)), "begin_suppress_tokens": list(range(100, 300))},
    {"exponential_decay_length_penalty": (2, 3.0), "eos_token_id": [5]},
]


@pytest.mark.parametrize("options", GREEDY, ids=lambda o: "-".join(o))
@pytest.mark.parametrize("name", ["llama_b", "gemma3_b", "qwen2_b"])
def test_settings_give_the_tokens_that_transformers_gives(name: str, options: dict[str, Any], tiny: Tiny) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = tiny(name)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = TextTokenizer(folder, class_facts(folder))
    asked = {"do_sample": False, "max_new_tokens": 12, **options}
    with TorchSession(open_model(folder, "text-generation")) as session:
        rows = generate(
            session,
            [row.ids for row in tokenizer.encode(["The small cat reads", "in"])],
            resolve(asked, model_settings(folder)),
        )
    for row in rows:
        out = theirs.generate(torch.tensor([row.prompt]), num_beams=1, **asked)[0].tolist()
        assert row.prompt + row.made == out


def test_a_row_does_not_depend_on_the_others(tiny: Tiny) -> None:
    folder = tiny("gemma2_b")  # soft-caps and windows
    tokenizer = TextTokenizer(folder, class_facts(folder))
    prompts = [row.ids for row in tokenizer.encode(["a", "The quick brown fox jumps over the lazy dog " * 3, "in the"])]
    for options in ({"do_sample": False}, {"do_sample": True, "seed": 5}):
        settings = resolve(
            {"max_new_tokens": 10, "no_repeat_ngram_size": 2, "repetition_penalty": 1.2, **options},
            model_settings(folder),
        )
        with TorchSession(open_model(folder, "text-generation")) as session:
            together = generate(session, prompts, settings)
            alone = [generate(session, [p], settings, first_row=n)[0] for n, p in enumerate(prompts)]
        assert [row.made for row in together] == [row.made for row in alone]


def test_prompts_are_padded_on_the_left_with_true_positions() -> None:
    session = Scripted(3)
    assert made(session, [[5, 6, 7], [8]], max_new_tokens=2) == [[3, 3], [3, 3]]
    (ids, mask, positions), later = session.fed[0], session.fed[1]
    assert (ids[0], mask[0], positions[0]) == ([5, 6, 7], [1, 1, 1], [0, 1, 2])
    assert (ids[1][2], mask[1], positions[1][2]) == (8, [0, 0, 1], 0)
    assert later == ([[3], [3]], [[1, 1, 1, 1], [0, 0, 1, 1]], [[3], [1]])


class Wandering:
    """A search that feeds its two tokens, goes on from the rows that it is told, and ends after them."""

    def __init__(self, *parents: list[int] | None) -> None:
        self.parents, self.tokens = list(parents), [1, 2]
        self.done = False

    def advance(self, logits: NDArray[np.float32], late: bool) -> list[int] | None:
        self.seen = logits[:, 0].tolist()
        moved = self.parents.pop(0)
        self.done = not self.parents
        return moved


def test_a_schedule_says_what_each_row_is_fed_without_a_decoder() -> None:
    first, second = Wandering([0, 0], [1, 0], None), Wandering([0, 0], None)
    requests = [Request(first, [0]), Request(second, [1])]
    scheduler = Scheduler(requests, [[5], [6, 7]], resolve({"num_beams": 2}), context=None)
    feed = scheduler.schedule()
    assert feed is not None and feed.rows is None
    assert feed.mask is not None
    assert (feed.ids.tolist(), feed.mask.tolist()) == ([[0, 5], [6, 7]], [[0, 1], [1, 1]])
    scheduler.update(np.arange(2, dtype=np.float32)[:, None])
    assert (first.seen, second.seen) == ([0], [1])
    feed = scheduler.schedule()
    assert feed is not None and feed.rows is not None
    assert (feed.rows.tolist(), feed.ids.tolist(), feed.mask) == ([0, 0, 1, 1], [[1], [2], [1], [2]], None)
    scheduler.update(np.arange(4, dtype=np.float32)[:, None])
    assert (first.seen, second.seen) == ([0, 1], [2, 3])
    feed = scheduler.schedule()
    assert feed is not None and feed.rows is not None
    assert feed.rows.tolist() == [1, 0], "the second search has ended and leaves the batch"
    scheduler.update(np.arange(2, dtype=np.float32)[:, None])
    assert scheduler.schedule() is None


class Ending:
    """A search that feeds a token of its own, and ends after so many steps."""

    def __init__(self, token: int, steps: int) -> None:
        self.tokens, self.left, self.seen = [token], steps, list[float]()

    @property
    def done(self) -> bool:
        return self.left == 0

    def advance(self, logits: NDArray[np.float32], late: bool) -> None:
        self.seen += logits[:, 0].tolist()
        self.left -= 1


def test_rows_that_have_ended_leave_when_they_are_many_and_few_others_move() -> None:
    searches = [Ending(n, steps) for n, steps in enumerate((1, 9, 9, 1, 2, 9, 9, 9))]
    requests = [Request(search, [n]) for n, search in enumerate(searches)]
    scheduler = Scheduler(requests, [[5]] * 8, resolve({}), context=None)
    fed = []
    while (feed := scheduler.schedule()) is not None:
        rows = None if feed.rows is None else feed.rows.tolist()
        fed.append((rows, feed.ids[:, 0].tolist()))
        scheduler.update(feed.ids.astype(np.float32))
    assert fed[1] == ([6, 1, 2, 7, 4, 5], [6, 1, 2, 7, 4, 5]), "two of eight leave; the last two take their places"
    assert fed[2] == (None, [6, 1, 2, 7, 0, 5]), "one of six stays, and is fed padding"
    assert len(fed) == 9
    assert searches[6].seen == [5, *[6] * 8], "a search sees the logits of its own row wherever it is"


def test_a_row_ends_and_the_others_go_on() -> None:
    session = Scripted(3, 2, 4, 4)
    rows = generate(session, [[5]], resolve({"eos_token_id": [2], "max_new_tokens": 4}))
    assert (rows[0].made, rows[0].reason) == ([3, 2], "stop")
    assert len(session.fed) == 2, "nothing runs after the last row has ended"
    assert made(Scripted(3, 2, 4), [[5]], eos_token_id=2, max_new_tokens=3, min_new_tokens=2)[0][1] != 2


def test_the_context_ends_a_row_and_refuses_a_longer_prompt() -> None:
    session = Scripted(3)
    rows = generate(session, [[1] * 6, [1] * 3], resolve({"max_new_tokens": 50}), context=8)
    assert [(len(row.made), row.reason) for row in rows] == [(3, "length"), (6, "length")]
    assert max(max(map(max, positions)) for _, _, positions in session.fed) == 7
    with pytest.raises(InputError, match="9 tokens, and the model 8 positions"):
        made(Scripted(3), [[1] * 9], context=8)


def test_a_stop_string_ends_the_row_that_writes_it_and_stays() -> None:
    words = dict(enumerate(["Hel", "lo", ",W", "or", "ld", "!", "END", "é"]))

    def decode(ids: Sequence[int]) -> str:
        return "".join(words.get(i, "?") for i in ids)

    script = (0, 1, 2, 3, 4, 5)
    assert made(Scripted(*script), [[9]], decode=decode, stop_strings="lo,", max_new_tokens=9) == [[0, 1, 2]]
    assert made(Scripted(*script), [[9]], decode=decode, stop_strings=["zzz", "or"], max_new_tokens=9) == [[0, 1, 2, 3]]
    assert made(Scripted(*script), [[0]], decode=decode, stop_strings="HelHel", max_new_tokens=9) == [[0]]
    with pytest.raises(InputError, match="tokenizer"):
        made(Scripted(1), [[0]], stop_strings="x")


def test_what_the_encoder_read_is_not_the_prompt() -> None:
    options: dict[str, Any] = {"encoder_no_repeat_ngram_size": 1, "max_new_tokens": 2}
    rows = generate(Scripted(3), [[3], [4]], resolve(options), sources=[[5, 6], [3]])
    assert [row.made for row in rows] == [[3, 3], [0, 0]]
    assert made(Scripted(3), [[3], [4]], **options) == [[0, 0], [3, 3]], "without an encoder, the prompt counts"
    with pytest.raises(InputError, match="sources has 1 rows for 2 prompts"):
        generate(Scripted(3), [[3], [4]], resolve(options), sources=[[5]])
    with pytest.raises(InputError, match="encoder_no_repeat_ngram_size=1 counts the ids that an encoder read"):
        generate(Scripted(3).decoder(1), [[3]], resolve(options))


def test_a_seed_repeats_a_text_and_no_seed_does_not() -> None:
    def sample(seed: int | None, **options: Any) -> list[list[int]]:
        return made(
            Scripted(3, vocabulary=200), [[1], [2]], do_sample=True, max_new_tokens=20, top_k=0, seed=seed, **options
        )

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert sample(None) != sample(None)
    assert len(sample(1, num_return_sequences=3)) == 6
    assert sample(1)[0] != sample(1)[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams=0"),
        ({"early_stopping": "soon"}, "early_stopping='soon'"),
        ({"max_new_token": 4}, "did you mean 'max_new_tokens'"),
        ({"temperature": 0.0, "do_sample": True}, "do_sample=False"),
        ({"temperature": "hot", "do_sample": True}, "temperature='hot'"),
        ({"top_p": 1.5, "min_p": 3, "do_sample": True}, "between 0 and 1"),
        ({"top_k": 2.5}, "top_k=2.5"),
        ({"max_new_tokens": -1}, "max_new_tokens=-1"),
        ({"max_new_tokens": 0}, "leaves nothing"),
        ({"max_length": 1}, "leaves nothing"),
        ({"num_return_sequences": 2}, "do_sample=True"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"bad_words_ids": [[99]]}, "token 99"),
        ({"stop_strings": [""]}, "stop_strings"),
        ({"do_sample": "yes"}, "do_sample"),
    ],
)
def test_a_setting_that_cannot_be_kept_is_an_input_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        made(Scripted(3), [[1]], **options)


def test_settings_win_in_order_and_none_is_off() -> None:
    model = {"temperature": 0.6, "eos_token_id": 5, "max_length": 99, "some_other_program": 1, "num_beams": 1}
    defaults = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7}
    settings = resolve({"top_p": 0.9, "eos_token_id": None}, model, defaults)
    assert (settings.temperature, settings.top_p, settings.top_k) == (0.6, 0.9, 50)
    assert (settings.max_length, settings.max_new_tokens, settings.eos_token_id) == (99, None, None)
    assert resolve({}, {}, defaults).max_new_tokens == 256
    assert resolve({}, {"eos_token_id": [1, 2]}).eos_token_id == (1, 2)
    with pytest.raises(InputError, match=r"dola_layers='low' is set by the model's generation_config\.json"):
        resolve({}, {"dola_layers": "low"})
    assert resolve(
        {"dola_layers": None, "num_beams": None}, {"dola_layers": "low", "num_beams": 2}
    ) == GenerationConfig(top_k=50)


def test_the_settings_of_a_model_come_from_either_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 3, "bos_token_id": None, "max_length": 7}))
    assert model_settings(tmp_path) == {"eos_token_id": 3}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4], "top_k": 9}))
    assert model_settings(tmp_path) == {"eos_token_id": [3, 4], "top_k": 9}
    assert context_length({"text_config": {"max_position_embeddings": 9}}) == 9
    assert context_length({}) is None


def test_logits_that_are_no_numbers_stop_the_generation() -> None:
    class Broken(Scripted):
        def logits(self, feeds: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
            return super().logits(feeds) * np.float32(np.nan)

    with pytest.raises(InputError, match="not numbers"):
        made(Broken(3), [[1]])
    assert len(made(Broken(3), [[1]], remove_invalid_values=True)[0]) == 20


# ------------------------------------------------------------------ streaming
@pytest.mark.parametrize("name", ["gemma3_b", "llama", "llama_b", "mistral_b", "qwen3_b"])
def test_pieces_of_text_join_to_the_whole_and_split_no_character(name: str, tiny: Tiny) -> None:
    tokenizer = TextTokenizer(tiny(name), class_facts(tiny(name)))
    for text in HAND:
        (row,) = tokenizer.encode([text])
        for skip in (True, False):

            def decode(ids: Sequence[int], skip: bool = skip) -> str:
                return tokenizer.decode(ids, skip_special_tokens=skip)

            stream = TextStream(decode)
            pieces = [stream.push(token) for token in row.ids]
            pieces.append(stream.end())
            assert "".join(pieces) == decode(row.ids)
            if "\ufffd" not in text:
                assert not any("\ufffd" in piece for piece in pieces[:-1])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", ["llama_b", "qwen2"])
def test_any_ids_stream_to_text_that_is_never_taken_back(name: str, data: st.DataObject) -> None:
    tokenizer = TextTokenizer(oracle.tiny(name), class_facts(oracle.tiny(name)))
    size = len(tokenizer.vocabulary())
    ids = data.draw(st.lists(st.integers(0, size - 1), max_size=12))
    stream = TextStream(tokenizer.decode)
    text = "".join([*(stream.push(token) for token in ids), stream.end()])
    whole = tokenizer.decode(ids)
    if "\ufffd" not in whole:
        assert text == whole
