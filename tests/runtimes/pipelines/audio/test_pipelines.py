"""automatic-speech-recognition by CTC and audio-classification against transformers' pipelines, keys and values."""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from isoform import api
from isoform.errors import CheckpointError, InputError, UnsupportedModel
from isoform.manifest import Manifest
from isoform.reference.classes import class_facts
from isoform.runtimes.pipelines.audio.ctc import chunks
from isoform.runtimes.preprocess.text.ctc_vocabulary import CtcVocabulary
from tests.exports import exported
from tests.oracle import tiny

RATE = 16000
SCORES = 1e-5  # probabilities, from logits that agree to that
CTC = ("wav2vec2_ctc", "wav2vec2_large", "wav2vec2_ctc_b")
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"return_timestamps": "char"},
    {"return_timestamps": "word", "chunk_length_s": 2.5, "stride_length_s": [0.5, 0.25]},
    {"return_timestamps": "char", "chunk_length_s": 1, "stride_length_s": 0},
    {"return_timestamps": "word", "chunk_length_s": 30},
    {"chunk_length_s": 1.2},
)


def sound(count: int, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    pieces = [
        rng.normal(0, rng.uniform(0.01, 0.4), 1600) * np.sin(np.arange(1600) * rng.uniform(0.05, 1)) for _ in range(80)
    ]
    return np.concatenate(pieces).astype(np.float32)[:count]


@cache
def ours(name: str) -> Any:
    task = "automatic-speech-recognition" if name in (*CTC, "moonshine") else "audio-classification"
    return api.pipeline(task, tiny(name))


@cache
def theirs(name: str) -> Any:
    import transformers

    folder = tiny(name)
    if name == "moonshine":
        return transformers.pipeline("automatic-speech-recognition", str(folder))
    if name not in CTC:
        return transformers.pipeline("audio-classification", str(folder))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if name == "wav2vec2_ctc_b":
        tokenizer._word_delimiter_token = "#"  # in its file, of which transformers 5.23 does not read it
    return transformers.pipeline("automatic-speech-recognition", str(folder), tokenizer=tokenizer)


def same(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            same(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert type(found) is type(expected)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    elif isinstance(expected, float):
        assert isinstance(found, float)
        assert abs(found - expected) <= SCORES
    else:
        assert found == expected


# ------------------------------------------------------------------ CTC
@pytest.mark.parametrize("name", CTC)
def test_ctc_answers_are_those_of_transformers(name: str) -> None:
    for options in OPTIONS:
        for samples in (sound(90001), sound(14000, 1)):
            same(ours(name)(samples, **options), theirs(name)(samples.copy(), **options))
    assert len(ours(name)(sound(90001))["text"]) > 10


def test_what_a_dictionary_asks_for_and_holds_besides(tmp_path: Path) -> None:
    def item() -> dict[str, Any]:
        return {"raw": sound(50000), "sampling_rate": RATE, "stride": (8000, 3000), "partial": True}

    same(ours("wav2vec2_ctc")(item()), theirs("wav2vec2_ctc")(item()))
    chunked = {"chunk_length_s": 1, "return_timestamps": "word"}
    same(ours("wav2vec2_ctc")(item(), **chunked), theirs("wav2vec2_ctc")(item(), **chunked))


@pytest.mark.parametrize("name", CTC)
def test_answers_do_not_depend_on_the_batch(name: str) -> None:
    items = [sound(50000), sound(9000, 1), sound(50000, 2), sound(33000, 3)]
    alone = [ours(name)(item, return_timestamps="word") for item in items]
    for size in (1, 2, 8, None):
        assert ours(name)(items, batch_size=size, return_timestamps="word") == alone
    assert list(ours(name)(iter(items), return_timestamps="word")) == alone
    chunked = [ours(name)(item, chunk_length_s=1) for item in items]
    assert ours(name)(items, chunk_length_s=1, batch_size=3) == chunked


def test_files_and_progress(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, sound(80000), RATE, subtype="FLOAT")
    seen: list[tuple[str, int, int]] = []
    with api.pipeline("automatic-speech-recognition", tiny("wav2vec2_ctc")) as pipe:
        pipe.progress = lambda *step: seen.append(step)
        assert pipe(path, chunk_length_s=1) == ours("wav2vec2_ctc")(sound(80000), chunk_length_s=1)
    assert seen[-1] == ("recognize", 5, 5)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_requests_without_meaning_are_refused() -> None:
    pipe, samples = ours("wav2vec2_ctc"), sound(16000)
    for options, message in (
        ({"return_timestamps": True}, "return_timestamps=True: this model gives the times of characters or words"),
        ({"chunk_length_s": 1, "stride_length_s": 0.5}, "chunk_length_s=1 must be longer than the strides"),
        ({"chunk_length_s": 0.02, "stride_length_s": 0}, "shorter than what the model reads for one frame"),
        ({"max_new_tokens": 5}, "a CTC model has no parameter 'max_new_tokens'"),
        ({"batch_size": 0}, "batch_size=0"),
    ):
        with pytest.raises(InputError, match=message):
            pipe(samples, **options)
    for item, message in (
        (samples[:399], r"the sound is too short: 399 of the 400 samples \(25\.0 ms\) that the model reads"),
        (samples[:0], "the sound is too short: 0 of the 400"),
        ({"raw": samples, "sampling_rate": RATE, "stride": (16000, 1)}, "is too large for 16000 samples"),
        ({"raw": samples, "sampling_rate": RATE, "stride": 3}, "not two numbers of samples"),
        (7, "automatic-speech-recognition takes a path, bytes, samples"),
    ):
        with pytest.raises(InputError, match=message):
            pipe(item)
    with pytest.raises(InputError, match="holds no sound"):
        pipe(samples[:0], chunk_length_s=1)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 400),
    st.tuples(st.integers(4, 90), st.integers(0, 30), st.integers(0, 30)).filter(lambda w: w[0] > w[1] + w[2]),
    st.integers(1, 70),
)
def test_chunks_are_those_of_transformers(count: int, window: tuple[int, int, int], block: int) -> None:
    from transformers.pipelines.automatic_speech_recognition import chunk_iter

    class Extractor:
        sampling_rate = RATE

        def __call__(self, chunk: NDArray[np.float32], **_: Any) -> dict[str, Any]:
            return {"samples": chunk}

    samples = np.arange(count, dtype=np.float32)
    expected = list(chunk_iter(samples, Extractor(), *window))
    found = list(chunks((samples[n : n + block] for n in range(0, count, block)), window))
    assert [stride for _, stride in found] == [one["stride"] for one in expected]
    for (piece, _), one in zip(found, expected, strict=True):
        np.testing.assert_array_equal(piece, one["samples"])


# ------------------------------------------------------------------ a decoder without times
def test_what_a_decoder_writes_is_what_transformers_writes() -> None:
    pipe, oracle = ours("moonshine"), theirs("moonshine")
    for generation, chunked in (
        ({"num_beams": 1, "max_new_tokens": 12}, {}),
        ({"max_new_tokens": 6}, {}),  # five beams
        ({"num_beams": 2, "max_new_tokens": 5}, {"chunk_length_s": 2, "stride_length_s": (0.5, 0.25)}),
    ):
        expected = oracle(sound(80000), generate_kwargs=generation, **chunked)
        same(pipe(sound(80000), **generation, **chunked), expected)

    def second(ids: Any, scores: Any) -> Any:
        return scores.scatter(1, scores.argmax(-1, keepdim=True), -float("inf"))

    rules: dict[str, Any] = {"num_beams": 1, "max_new_tokens": 12, "logits_processor": [second]}
    rules["stopping_criteria"] = [lambda ids, scores, **_: torch.tensor([ids.shape[1] >= 7])]
    expected = oracle(sound(80000), generate_kwargs=rules)
    same(pipe(sound(80000), **rules), expected)
    same(pipe(sound(80000), prompt_lookup_num_tokens=3, **rules), expected)
    items = [sound(20000), sound(20000, 1), sound(9000, 2)]
    alone = [pipe(item, num_beams=1, max_new_tokens=6) for item in items]
    assert pipe(items, num_beams=1, max_new_tokens=6, batch_size=2) == alone
    for options, message in (
        ({"return_timestamps": True}, "writes no times"),
        ({"chunk_length_s": 0.01}, "longer than"),
    ):
        with pytest.raises(InputError, match=message):
            pipe(sound(20000), **options)
    with pytest.raises(InputError, match="too short: 100 of the 895 samples"):
        pipe(sound(100))


# ------------------------------------------------------------------ the vocabulary
@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(["wav2vec2_ctc", "wav2vec2_ctc_b"]), ids=st.lists(st.integers(0, 10), max_size=30))
def test_frames_become_text_as_in_transformers(name: str, ids: list[int]) -> None:
    vocabulary, tokenizer = CtcVocabulary(tiny(name), class_facts(tiny(name))), theirs(name).tokenizer
    if not ids:
        assert vocabulary.text(ids) == ""
        return
    expected = tokenizer.decode(ids, output_char_offsets=True, output_word_offsets=True)
    assert vocabulary.text(ids) == expected["text"]
    for kind in ("char", "word"):
        spans = vocabulary.spans(ids, kind)
        offsets = expected[f"{kind}_offsets"]
        assert [(s.text, s.start, s.end) for s in spans] == [
            (one[kind], one["start_offset"], one["end_offset"]) for one in offsets
        ]


def test_a_vocabulary_per_language_needs_the_language(tmp_path: Path) -> None:
    def write(vocabulary: Any, **config: Any) -> None:
        (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))

    tables = {"eng": {"<pad>": 0, "a": 1, "|": 2}, "fra": {"<pad>": 0, "é": 1}}
    write(tables, target_lang="fra")
    assert CtcVocabulary(tmp_path, class_facts(tmp_path)).text([1, 0, 1, 1]) == "éé"
    write(tables)
    with pytest.raises(CheckpointError, match=r"a vocabulary per language \(eng, fra, …\)"):
        CtcVocabulary(tmp_path, class_facts(tmp_path))
    write(tables, target_lang="deu")
    with pytest.raises(CheckpointError, match="no language 'deu'"):
        CtcVocabulary(tmp_path, class_facts(tmp_path))
    write({})
    with pytest.raises(CheckpointError, match=r"has no vocab\.json"):
        CtcVocabulary(tmp_path, class_facts(tmp_path))
    write(tables["eng"], tokenizer_class="Wav2Vec2PhonemeCTCTokenizer")
    with pytest.raises(UnsupportedModel, match="Wav2Vec2PhonemeCTCTokenizer is not supported"):
        CtcVocabulary(tmp_path, class_facts(tmp_path))


def test_an_older_folder_names_its_added_tokens_in_files_of_their_own(tmp_path: Path) -> None:
    from transformers import Wav2Vec2CTCTokenizer

    (tmp_path / "vocab.json").write_text(json.dumps({"|": 0, "a": 1, "b": 2, "[UNK]": 3, "[PAD]": 4}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<s>": 5, "</s>": 6}))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "[UNK]", "pad_token": "[PAD]"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(names))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**names, "do_lower_case": False}))
    ids = [1, 1, 4, 1, 0, 2, 5, 5, 6, 3, 9]
    assert CtcVocabulary(tmp_path, class_facts(tmp_path)).text(ids) == Wav2Vec2CTCTokenizer.from_pretrained(
        tmp_path
    ).decode(ids)


NAMES = ["|", "a", "b", "ab", "[PAD]", "<pad>", "<s>", "</s>", "<unk>", "[UNK]", " ", "-"]
SPECIALS = st.sampled_from(["<s>", "</s>", "[PAD]", "<pad>", "[UNK]", "-", "new"])


@settings(max_examples=150, deadline=None)
@given(
    table=st.dictionaries(st.sampled_from(NAMES), st.integers(0, 9), min_size=1),
    named=st.dictionaries(st.sampled_from(["bos_token", "eos_token", "pad_token", "unk_token"]), SPECIALS),
    more=st.fixed_dictionaries(
        {},
        optional={
            "word_delimiter_token": st.sampled_from(["|", "-", "new"]),
            "additional_special_tokens": st.lists(SPECIALS, max_size=2),
            "replace_word_delimiter_char": st.sampled_from([" ", "_"]),
        },
    ),
    added=st.dictionaries(st.sampled_from(["<x>", "a", "new"]), st.integers(0, 13)),
    ids=st.lists(st.integers(0, 14), min_size=1, max_size=30),
)
def test_holes_repeats_and_added_names_are_read_as_in_transformers(
    table: Any, named: Any, more: Any, added: Any, ids: list[int]
) -> None:
    from transformers import Wav2Vec2CTCTokenizer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "vocab.json").write_text(json.dumps(table))
        (folder / "added_tokens.json").write_text(json.dumps(added))
        (folder / "tokenizer_config.json").write_text(json.dumps({**named, **more}))
        vocabulary = CtcVocabulary(folder, class_facts(folder))
        theirs = Wav2Vec2CTCTokenizer.from_pretrained(folder)
        theirs._word_delimiter_token = more.get("word_delimiter_token", "|")  # which it does not read from the file
        expected = theirs.decode(ids, output_char_offsets=True, output_word_offsets=True)
    assert vocabulary.text(ids) == expected["text"]
    for kind in ("char", "word"):
        assert [(s.text, s.start, s.end) for s in vocabulary.spans(ids, kind)] == [
            (one[kind], one["start_offset"], one["end_offset"]) for one in expected[f"{kind}_offsets"]
        ]


# ------------------------------------------------------------------ classification
@pytest.mark.parametrize("name", ["wav2vec2", "wav2vec2_b"])
def test_classes_are_those_of_transformers(name: str) -> None:
    samples = sound(20000)
    for options in ({}, {"top_k": 2}, {"top_k": 99}, {"function_to_apply": "sigmoid"}, {"function_to_apply": "none"}):
        same(ours(name)(samples, **options), theirs(name)(samples, **options))
    items = [samples, sound(7000, 1), sound(20000, 2)]
    same(ours(name)(items), theirs(name)(items))
    same(ours(name)(items, batch_size=3), theirs(name)(items))
    with pytest.raises(InputError, match="function_to_apply='tanh'"):
        ours(name)(samples, function_to_apply="tanh")
    with pytest.raises(InputError, match="top_k=0"):
        ours(name)(samples, top_k=0)


def test_the_kind_of_problem_chooses_the_function(tmp_path: Path) -> None:
    samples, logits = (
        sound(9000),
        {one["label"]: one["score"] for one in ours("wav2vec2")(sound(9000), function_to_apply="none")},
    )
    for kind in ("regression", "multi_label_classification"):
        folder = tmp_path / kind
        shutil.copytree(tiny("wav2vec2"), folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "problem_type": kind}))
        for one in api.pipeline("audio-classification", folder)(samples):
            logit = logits[one["label"]]
            expected = logit if kind == "regression" else 1 / (1 + np.exp(-logit))
            assert abs(one["score"] - expected) <= SCORES


def test_a_task_that_the_model_has_not_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"lacks lm_head"):
        api.pipeline("automatic-speech-recognition", tiny("wav2vec2"))


# ------------------------------------------------------------------ every form
@pytest.mark.parametrize("name", ["wav2vec2", "wav2vec2_b", "wav2vec2_ctc_b"])
def test_every_form_answers_the_same(name: str) -> None:
    manifest = Manifest.read(exported(name))
    assert {artifact.format for artifact in manifest.artifacts} == {"onnx", "torchscript"}
    assert "no architecture for wav2vec 2.0" in manifest.missing["gguf"]
    expected = ours(name)([sound(40000), sound(9000, 1)])
    for backend in ("onnxruntime", "torchscript"):
        with api.pipeline(ours(name).task, exported(name), backend=backend) as pipe:
            same(pipe([sound(40000), sound(9000, 1)]), expected)
