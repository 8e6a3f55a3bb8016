"""text2text-generation, summarization and translation.

transformers 5 has none of them. What its version 4.57 did is written out here over the model and the tokenizer of
version 5, which are the oracle: prefix, tokenizer, generate() with the pipeline's defaults, decode.
"""

from __future__ import annotations

import json
import shutil
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import isoform
from isoform.errors import CheckpointError, InputError, ItemError, UnsupportedModel
from isoform.runtimes.generation.settings import GenerationConfig
from isoform.runtimes.pipelines import known, languages_of, model_task

Tiny = Callable[[str], Path]
TEXTS = ["The small cat reads a large red book.", "in", "", "every teacher knows this: naïve students " * 4]
KEYS = {"text2text-generation": "generated", "summarization": "summary", "translation": "translation"}
SHORT: dict[str, Any] = {"max_new_tokens": 7, "min_length": 0}


def ours(task: str, folder: Path, **parameters: Any) -> Any:
    return isoform.pipeline(task, folder, backend="torch", threads=1, **parameters)


def theirs(task: str, folder: Path) -> Callable[..., Any]:
    """The pipeline of transformers 4.57: one text -> its list of objects."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    own = dict((getattr(model.config, "task_specific_params", None) or {}).get(task, {}))
    prefix, stated = own.pop("prefix", ""), model.generation_config

    def answer(text: str, *, return_tensors: bool = False, truncation: bool = False, **call: Any) -> Any:
        inputs = tokenizer(prefix + text, truncation=truncation, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        settings = {**({} if stated.num_beams not in (None, 1) else {"num_beams": 4}), **own, **call}
        if "max_length" not in settings and "max_new_tokens" not in settings and stated.max_length in (None, 20):
            settings["max_new_tokens"] = 256
        made = model.generate(**inputs, **settings)
        key = KEYS[known(task)]
        if return_tensors:
            return [{f"{key}_token_ids": ids} for ids in made]
        texts = [tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) for ids in made]
        return [{f"{key}_text": text} for text in texts]

    return answer


CALLS: list[dict[str, Any]] = [
    {},
    {"num_beams": 1},
    {"num_beams": 3, "num_return_sequences": 2},
    {"num_beams": 1, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    {"num_beams": 2, "length_penalty": 0.2, "early_stopping": True, "max_new_tokens": 12},
    {"num_beams": 2, "encoder_repetition_penalty": 1.5, "encoder_no_repeat_ngram_size": 2},
    {"max_length": 9, "max_new_tokens": None},
    {"eos_token_id": list(range(0, 400, 9)), "max_new_tokens": 30},
    {"num_beams": 1, "forced_bos_token_id": 17, "decoder_start_token_id": 5},
]


@pytest.mark.parametrize(
    "name",
    [
        *("bart", "bart_b", "marian", "pegasus_b", "t5"),
        *(pytest.param(name, marks=pytest.mark.nightly) for name in ("t5_v1_1", "umt5_b", "m2m_100")),
    ],
)
def test_texts_are_those_of_transformers(name: str, tiny: Tiny) -> None:
    other = theirs("text2text-generation", tiny(name))
    with ours("text2text-generation", tiny(name)) as pipe:
        for call in CALLS:
            options = {**SHORT, **call}
            expected = [other(text, **options) for text in TEXTS]
            assert pipe(TEXTS[0], **options) == expected[0], call
            flat = [one[0] for one in expected] if len(expected[0]) == 1 else expected
            assert pipe(TEXTS, batch_size=3, **options) == flat, call
            assert list(pipe(iter(TEXTS), batch_size=2, **options)) == expected, call


def test_ids_begin_with_the_token_that_the_decoder_is_given(tiny: Tiny) -> None:
    other = theirs("text2text-generation", tiny("bart_b"))
    with ours("text2text-generation", tiny("bart_b")) as pipe:
        (got,), (expected,) = (p(TEXTS[0], return_tensors=True, **SHORT) for p in (pipe, other))
        assert torch.equal(got["generated_token_ids"], expected["generated_token_ids"])
        assert pipe("a", return_tensors="np", **SHORT)[0]["generated_token_ids"].dtype == np.int64
        same = pipe("a", return_tensors="pt", decoder_start_token_id=9, num_return_sequences=2, **SHORT)
        assert [ids["generated_token_ids"][0] for ids in same] == [9, 9]


@pytest.mark.parametrize("task", ["summarization", "translation", "translation_en_to_de"])
def test_a_task_has_its_own_keys_settings_and_prefix(task: str, tiny: Tiny, tmp_path: Path) -> None:
    folder = specialised(tiny("bart"), tmp_path / "m")
    other = theirs("translation_en_to_fr" if task == "translation" else task, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the lengths
        with ours(task, folder) as pipe:
            assert pipe.task == task
            assert pipe(TEXTS[0]) == other(TEXTS[0])
            assert pipe(TEXTS) == [other(text)[0] for text in TEXTS]
            assert pipe(TEXTS[0], max_length=7) == other(TEXTS[0], max_length=7)
            assert pipe(TEXTS[0], prefix="") != other(TEXTS[0])


SPECIAL = {
    "summarization": {"prefix": "summarize: ", "max_length": 12, "min_length": 8, "num_beams": 2},
    "translation_en_to_fr": {"prefix": "to French: ", "max_length": 11, "num_beams": 3, "min_length": 2},
    "translation_en_to_de": {"prefix": "to German: ", "max_length": 10, "num_beams": 2, "min_length": 2},
}


def specialised(folder: Path, target: Path, **more: Any) -> Path:
    """A copy of a checkpoint with `task_specific_params`."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "task_specific_params": {**SPECIAL, **more}}))
    return target


def test_languages_choose_the_prefix(tiny: Tiny, tmp_path: Path) -> None:
    folder, call = specialised(tiny("bart"), tmp_path / "m"), {"max_length": 50}
    with ours("translation", folder) as pipe, ours("translation_en_to_de", folder) as german:
        assert pipe(TEXTS[0], src_lang="en", tgt_lang="de", num_beams=2, **call) == german(TEXTS[0], **call)
        with pytest.warns(UserWarning, match="it takes translation_en_to_fr"):
            french = pipe(TEXTS[0], **call)
        assert german(TEXTS[0], tgt_lang="fr", num_beams=3, **call) == french
        assert german(TEXTS[0], prefix="to French: ", num_beams=3, **call) == french
        with pytest.raises(InputError, match="no prefix for translation_en_to_es; it has translation_en_to_fr, trans"):
            pipe(TEXTS[0], src_lang="en", tgt_lang="es")
        with pytest.raises(InputError, match="src_lang='en' and tgt_lang=None: a translation needs both languages"):
            pipe(TEXTS[0], src_lang="en")
    with (
        ours("translation_en_to_de", tiny("bart")) as pipe,
        pytest.raises(InputError, match="takes no language codes; leave them out"),
    ):
        pipe(TEXTS[0], src_lang="en", tgt_lang="de")


def test_what_a_task_says_of_itself_is_accounted_for(tiny: Tiny, tmp_path: Path) -> None:
    folder = specialised(tiny("bart"), tmp_path / "m", summarization={"max_lenght": 5})
    with pytest.raises(UnsupportedModel, match=r"config\.json: max_lenght = 5 is not known"):
        ours("summarization", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "task_specific_params": ["a"]}))
    with pytest.raises(CheckpointError, match="task_specific_params is"):
        ours("summarization", folder)


def test_a_pair_of_languages_is_a_task() -> None:
    assert known("translation_en_to_de") == "translation"
    assert model_task("translation_eng_Latn_to_fra_Latn") == "text2text-generation"
    assert languages_of("translation_eng_Latn_to_fra_Latn") == ("eng_Latn", "fra_Latn")
    for wrong in ("translation_en", "translation_en_de", "translation_to_de", "translation_en_to_"):
        with pytest.raises(InputError, match="does not name two languages"):
            model_task(wrong)


# ------------------------------------------------------------------ lengths
def test_lengths_that_do_not_fit_a_task_are_warned_of_as_in_transformers(tiny: Tiny) -> None:
    with ours("summarization", tiny("bart_b"), num_beams=1) as pipe:
        with pytest.warns(UserWarning, match="Your max_length is set to 50, but your input_length is only 14"):
            pipe(TEXTS[0], max_length=50)
        with pytest.warns(UserWarning, match="Your min_length=6 must be inferior than your max_length=5"):
            pipe(TEXTS[0], max_length=5, min_length=6)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pipe(TEXTS[0], max_new_tokens=50)
    with (
        ours("translation", tiny("bart_b"), num_beams=1) as pipe,
        pytest.warns(UserWarning, match="Your input_length: 14 is bigger than 0.9 \\* max_length: 15"),
    ):
        pipe(TEXTS[0], max_length=15)


def test_long_texts_are_cut_or_refused(tiny: Tiny) -> None:
    long = "word " * 300
    limit = json.loads((tiny("bart_b") / "config.json").read_text())["max_position_embeddings"]
    with ours("text2text-generation", tiny("bart_b")) as pipe:
        with pytest.raises(InputError, match=rf"too long for the model's {limit} positions; pass truncation=True"):
            pipe(long, **SHORT)
        (got,) = pipe(long, truncation=True, return_tensors="np", **SHORT)
        assert len(got["generated_token_ids"]) == 8
        found = pipe(["a", long, "in"], on_error="return", **SHORT)
        assert isinstance(found[1], ItemError)
        assert [found[0], found[2]] == pipe(["a", "in"], **SHORT)
        (row,) = pipe("a", max_new_tokens=10 * limit, num_beams=1, eos_token_id=None, return_tensors="np")
        assert len(row["generated_token_ids"]) == limit + 1  # the last token needs no position


def test_a_model_without_positions_reads_texts_of_any_length(tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("t5"), tmp_path / "m"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_positions": 16}))
    long, call = "the old house " * 300, {**SHORT, "num_beams": 2}
    other = theirs("translation_en_to_de", folder)
    with ours("translation_en_to_de", folder) as pipe:
        assert pipe(long, **call) == other(long, **call)
        assert pipe(long, truncation=True, **call) == other(long, truncation=True, **call)
        cut, whole = (len(pipe.encode([long], truncation=cut)[0].ids) for cut in (True, False))
        assert cut == 512 < whole


# ------------------------------------------------------------------ streams
def test_text_streams_as_it_comes(tiny: Tiny) -> None:
    from transformers import AutoTokenizer, TextStreamer

    call: dict[str, Any] = {**SHORT, "num_beams": 1}
    with ours("text2text-generation", tiny("bart_b")) as pipe:
        (answer,) = pipe(TEXTS[0], **call)
        pieces = list(pipe.stream(TEXTS[0], **call))
        assert "".join(pieces) == answer["generated_text"]
        assert len(pieces) > 1
        seen: list[str] = []
        assert pipe(TEXTS[:2], streamer=seen.append, **call) == pipe(TEXTS[:2], **call)
        assert "".join(seen) == "".join(one["generated_text"] for one in pipe(TEXTS[:2], **call))

        class Kept(TextStreamer):  # type: ignore[misc]  # transformers' own, given our tokens
            text = ""

            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                self.text += text

        kept = Kept(AutoTokenizer.from_pretrained(tiny("bart_b")), skip_prompt=True, skip_special_tokens=True)
        pipe(TEXTS[0], streamer=kept, **call)
        assert kept.text == answer["generated_text"]
        for wrong in ({"num_beams": 2}, {}, {"num_beams": 1, "do_sample": True, "num_return_sequences": 2}):
            with pytest.raises(InputError, match=r"pass num_beams=1|pass num_return_sequences=1"):
                next(pipe.stream(TEXTS[0], **SHORT, **wrong))
            with pytest.raises(InputError, match=r"pass num_beams=1|pass num_return_sequences=1"):
                pipe(TEXTS[0], streamer=seen.append, **SHORT, **wrong)


# ------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (3, {}, "takes a text or a list of texts, not 3"),
        (["a", 3], {}, "takes a text or a list of texts, not 3"),
        ("a", {"max_tokens": 2}, "no parameter 'max_tokens'"),
        ("a", {"src_lang": "en"}, "no parameter 'src_lang'"),
        ("a", {"return_text": False}, "leaves nothing to return"),
        ("a", {"return_text": True, "return_tensors": True}, "exclude each other"),
        ("a", {"return_tensors": "tf"}, "return_tensors='tf'"),
        ("a", {"num_return_sequences": 9}, "more than num_beams=4"),
        ("a", {"max_length": 1}, "max_length=1 leaves nothing to generate"),
        ("a", {"decoder_start_token_id": 10**6}, "decoder_start_token_id=1000000, and the model's embedding has"),
        ("a", {"forced_bos_token_id": 10**6}, "forced_bos_token_id=1000000, and the model has"),
        ("a", {"forced_eos_token_id": [3, 10**6]}, "forced_eos_token_id=1000000, and the model has"),
        ("a", {"decoder_start_token_id": [1, 2]}, "decoder_start_token_id="),
        ("a", {"decoder_start_token_id": None, "bos_token_id": None}, "names no token that its decoder begins with"),
        ("a", {"generation_config": GenerationConfig(num_beams=2), "num_beams": 3}, "give all settings in one place"),
        ("a", {"truncation": "x"}, "truncation='x'"),
    ],
)
def test_wrong_requests_are_input_errors(inputs: Any, options: dict[str, Any], message: str, tiny: Tiny) -> None:
    with ours("text2text-generation", tiny("bart_b")) as pipe, pytest.raises(InputError, match=message):
        pipe(inputs, **options)


def test_a_model_without_an_encoder_is_refused(tiny: Tiny) -> None:
    with pytest.raises(UnsupportedModel, match="no task 'text2text-generation'"):
        ours("summarization", tiny("llama_b"))


def test_threads_share_a_pipeline(tiny: Tiny) -> None:
    with ours("text2text-generation", tiny("bart_b")) as pipe:
        expected = [pipe(text, **SHORT) for text in TEXTS]
        got: dict[int, Any] = {}

        def work(n: int) -> None:
            got[n] = pipe(TEXTS[n], **SHORT)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(len(TEXTS))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [got[n] for n in range(len(TEXTS))] == expected


# ------------------------------------------------------------------ language codes
@pytest.mark.parametrize(
    ("name", "languages"),
    [
        ("mbart", ("en_XX", "ro_RO")),
        ("mbart_50", ("ro_RO", "en_XX")),
        ("nllb", ("eng_Latn", "fra_Latn")),
        ("m2m_100", ("en", "fr")),
    ],
)
def test_a_text_and_its_translation_carry_the_tokens_of_their_languages(
    name: str, languages: tuple[str, str], tiny: Tiny
) -> None:
    """What `_build_translation_inputs` of transformers' tokenizers did."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    source, target = languages
    tokenizer = AutoTokenizer.from_pretrained(tiny(name), src_lang=source)
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny(name)).eval()
    code = f"__{target}__" if name == "m2m_100" else target
    forced, texts = tokenizer.convert_tokens_to_ids(code), TEXTS[:2]
    expected = []
    for text in texts:
        ids = model.generate(**tokenizer(text, return_tensors="pt"), forced_bos_token_id=forced, num_beams=4, **SHORT)
        expected.append({"translation_text": tokenizer.decode(ids[0], skip_special_tokens=True)})
    call = {**SHORT, "src_lang": source, "tgt_lang": target}
    with ours("translation", tiny(name)) as pipe:
        assert pipe(texts, **call) == expected
        assert pipe(texts[0], return_tensors="np", **call)[0]["translation_token_ids"][1] == forced
        with ours(f"translation_{source}_to_{target}", tiny(name)) as named:
            assert named(texts, **SHORT) == expected
        pipe.text_tokenizer.languages = replace(pipe.text_tokenizer.languages, target=None)  # its settings state none
        for wrong, message in (
            ({}, "needs tgt_lang, the code of a language"),
            ({"src_lang": source}, "needs tgt_lang"),
            ({"src_lang": "xx", "tgt_lang": target}, "src_lang='xx' is no language of this model; near ones are"),
            ({"src_lang": source, "tgt_lang": "klingon"}, "tgt_lang='klingon' is no language of this model"),
            ({**call, "forced_bos_token_id": 3}, rf"forced_bos_token_id=3 is not the token of tgt_lang='{target}'"),
        ):
            with pytest.raises(InputError, match=message):
                pipe(texts[0], **wrong)
