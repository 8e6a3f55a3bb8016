"""Speech to text: every algorithm gives what transformers' functions, and its pipeline, give with the same numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from isoform.errors import CheckpointError, InputError
from isoform.reference.classes import class_facts
from isoform.runtimes.pipelines.audio.speech import windows
from isoform.runtimes.pipelines.audio.speech.alignment import median_filter, token_times, warp
from isoform.runtimes.pipelines.audio.speech.joining import SoundTokens, Timestamps, join, merge
from isoform.runtimes.pipelines.audio.speech.speech_settings import SpeechModel
from isoform.runtimes.pipelines.audio.speech.timestamp_rules import timestamps
from isoform.runtimes.pipelines.audio.speech.transcriber import Transcriber
from isoform.runtimes.pipelines.audio.speech.words import words
from isoform.runtimes.preprocess.audio.log_mel import LogMelSettings, log_mel
from isoform.runtimes.preprocess.text.tokenizer import TextTokenizer
from tests.runtimes.pipelines.audio.speech.transformers_session import TransformersSpeech

Tiny = Callable[[str], Path]


# ------------------------------------------------------------------ the parts
@pytest.mark.parametrize("beams", [False, True], ids=["logits", "log-probabilities"])
def test_the_timestamp_rules_are_those_of_transformers(beams: bool) -> None:
    import torch
    from transformers import GenerationConfig, WhisperTimeStampLogitsProcessor

    config = GenerationConfig(eos_token_id=50, no_timestamps_token_id=60, max_initial_timestamp_index=7)
    random = np.random.default_rng(1)
    for begin in (1, 3):
        theirs = WhisperTimeStampLogitsProcessor(config, begin_index=begin)
        ours = timestamps(begin, 61, 60, 50, 7)
        for made in ([], [61], [61, 3], [61, 3, 70], [61, 3, 70, 70], [61, 3, 70, 75, 4, 80], [5], [5, 90], [61, 70]):
            ids = [55, 56, 57][:begin] + made
            for scale in (0.1, 1.0, 6.0):
                scores = (random.normal(size=100) * scale).astype(np.float32)
                if beams:
                    scores -= np.log(np.exp(scores).sum())
                wanted = theirs(torch.tensor([ids]), torch.from_numpy(scores)[None])[0].numpy()
                np.testing.assert_array_equal(ours(np.array(ids), scores), wanted)


def test_the_path_through_the_attention_is_that_of_transformers() -> None:
    import torch
    from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter

    random = np.random.default_rng(2)
    for shape in ((1, 1), (1, 9), (9, 1), (7, 40), (40, 7), (20, 20), (3, 0)):
        costs = random.normal(size=shape)
        costs[random.random(shape) < 0.3] = 0.5  # ties
        for mine, wanted in zip(warp(costs), _dynamic_time_warping(costs), strict=True):
            assert mine.tolist() == wanted.tolist()
    for length in (2, 3, 4, 30):
        values = random.normal(size=(2, 3, length)).astype(np.float32)
        wanted_filter = _median_filter(torch.from_numpy(values), 7).numpy()
        np.testing.assert_array_equal(median_filter(values, 7), wanted_filter)
    assert token_times(np.zeros((2, 0, 10), np.float32), 7, 0.02).tolist() == []


def test_overlapping_texts_are_laid_over_each_other_as_in_transformers() -> None:
    from transformers.models.whisper.tokenization_whisper import _find_longest_common_sequence

    random = np.random.default_rng(3)
    for vocabulary in (3, 8, 50):
        for _ in range(20):
            whole = random.integers(0, vocabulary, 60).tolist()
            cuts = [whole[:25], whole[18:42], whole[36:], random.integers(0, vocabulary, 4).tolist(), []]
            times = [[(n / 10 + m, n / 10 + m + 0.1) for n in range(len(cut))] for m, cut in enumerate(cuts)]
            assert merge(cuts)[0] == _find_longest_common_sequence(cuts)
            tokens, spans = _find_longest_common_sequence(cuts, times)
            assert merge(cuts, times) == (tokens, spans)


def test_words_are_split_as_in_transformers(folder: Path) -> None:
    from transformers import AutoTokenizer
    from transformers.models.whisper.tokenization_whisper import _combine_tokens_into_words

    theirs, ours = AutoTokenizer.from_pretrained(folder), TextTokenizer(folder, class_facts(folder))
    for language, text in (
        ("english", ' He said: "no" (twice), didn\'t he? [yes] - "well" 5.5% ¿que? “so” it’s.'),
        ("japanese", "私は、猫です。「はい」 ok. ๑"),
        ("english", " naïve façade ☃ 猫 é"),
        ("chinese", ""),
    ):
        (row,) = ours.encode([text], add_special_tokens=False)
        wanted_words, _, wanted_places = _combine_tokens_into_words(theirs, list(row.ids), language)
        found = words(list(row.ids), ours.decode, language=language, end=theirs.eos_token_id)
        assert ([w.text for w in found], [w.places for w in found]) == (wanted_words, wanted_places)


def test_pieces_are_joined_as_in_transformers(hearing: tuple[Any, Transcriber]) -> None:
    import torch

    theirs, ours = hearing[0].tokenizer, hearing[1]

    first, random = ours.model.first_timestamp, np.random.default_rng(4)
    german, french = (ours.model.lang_to_id[f"<|{code}|>"] for code in ("de", "fr"))
    for trial in range(60):
        strides = [None] if trial % 3 == 0 else [(30.0, 0.0, 5.0), (30.0, 5.0, 5.0), (18.0, 5.0, 0.0)]
        outputs, pieces = [], []
        for stride in strides:
            tokens: list[int] = [german if random.random() < 0.5 else french] if trial % 2 else []
            clock = 0
            for _ in range(int(random.integers(0, 7))):
                clock = 0 if random.random() < 0.1 and stride is None else clock
                text = random.integers(20, 27, int(random.integers(0, 6))).tolist()
                start, clock = clock, min(clock + int(random.integers(0, 400)), 1500)
                tokens += [first + start, *text, first + clock]
            if random.random() < 0.4:
                tokens += [first + clock] * int(random.integers(0, 2)) + random.integers(20, 27, 3).tolist()
            times = np.sort(random.random(len(tokens)) * 30).round(2).tolist()
            output = {"tokens": torch.tensor([tokens]), "token_timestamps": torch.tensor([times], dtype=torch.float64)}
            outputs.append(output if stride is None else {**output, "stride": stride})
            pieces.append(SoundTokens(tokens, times, stride))
        askings: list[tuple[Timestamps, bool]] = [(False, False), (True, False), (True, True), ("word", False)]
        for asked, language in [*askings, (False, True)]:
            text, optional = theirs._decode_asr(
                outputs, return_timestamps=asked, return_language=language, time_precision=0.02
            )
            got = join(pieces, ours._vocabulary, timestamps=asked, with_language=language)
            assert got == {"text": text, **optional}


# ------------------------------------------------------------------ the whole
@pytest.fixture(scope="module")
def folder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny multilingual model, with files that say what those of real ones do."""
    out = tmp_path_factory.mktemp("speech") / "whisper"
    shutil.copytree(tiny("whisper"), out)
    settings = json.loads((out / "generation_config.json").read_text())
    settings.pop("_from_model_config", None)  # transformers would leave out what config.json does not have
    settings["suppress_tokens"] = [1, 2, 7, 8, 9, 10, 14, 25]
    (out / "generation_config.json").write_text(json.dumps(settings))
    added = json.loads((out / "tokenizer.json").read_text())["added_tokens"]
    config = json.loads((out / "tokenizer_config.json").read_text())
    config["additional_special_tokens"] = [token["content"] for token in added if token["special"]]
    (out / "tokenizer_config.json").write_text(json.dumps(config))
    return out


def speech(model: Any) -> Any:
    """transformers' model in the place of our session."""
    return TransformersSpeech(model)


@pytest.fixture(scope="module")
def hearing(folder: Path) -> tuple[Any, Transcriber]:
    """transformers' pipeline over that model, and our transcriber over the same."""
    from transformers import pipeline

    theirs = pipeline("automatic-speech-recognition", str(folder))
    theirs.model.set_attn_implementation("eager")
    return theirs, Transcriber(speech(theirs.model), folder, TextTokenizer(folder, class_facts(folder)))


def sound(seconds: float) -> NDArray[np.float32]:
    """Noise whose loudness and colour change, so that windows differ."""
    random = np.random.default_rng(int(seconds * 10))
    n = np.arange(int(seconds * 16000))
    return (random.normal(size=len(n)) * (0.05 + 0.05 * np.sin(n / 9000)) + 0.1 * np.sin(n / 7 * (1 + n / 4e5))).astype(
        np.float32
    )


SHORT: dict[str, Any] = {"max_new_tokens": 16, "num_beams": 1}
CASES: list[tuple[float, dict[str, Any]]] = [
    (4.0, {"max_new_tokens": 10}),  # five beams, the language heard
    (4.0, {**SHORT, "language": "german"}),
    (4.0, {**SHORT, "language": "fr", "task": "translate", "return_timestamps": True, "return_language": True}),
    (4.0, {**SHORT, "num_beams": 3, "return_timestamps": "word"}),
    (41.0, {**SHORT, "return_timestamps": True}),
    (41.0, {**SHORT, "return_timestamps": "word"}),
    (41.0, {**SHORT, "return_timestamps": True, "condition_on_prev_tokens": True, "num_beams": 2}),
    (41.0, {**SHORT, "return_timestamps": True, "compression_ratio_threshold": 0.1, "temperature": 0.0}),
    (
        41.0,
        {**SHORT, "return_timestamps": True, "logprob_threshold": 0.0, "no_speech_threshold": 1e-9, "temperature": 0.0},
    ),
    (
        41.0,
        {**SHORT, "return_timestamps": True, "logprob_threshold": -9.0, "no_speech_threshold": 0.9, "temperature": 0.0},
    ),
    (41.0, {**SHORT, "chunk_length_s": 20}),
    (41.0, {**SHORT, "chunk_length_s": 25, "stride_length_s": [6, 3], "return_timestamps": "word", "num_beams": 2}),
]


@pytest.mark.parametrize(("seconds", "options"), CASES, ids=lambda o: "-".join(o) if isinstance(o, dict) else str(o))
def test_the_answer_is_that_of_transformers(
    seconds: float, options: dict[str, Any], hearing: tuple[Any, Transcriber]
) -> None:
    theirs, ours = hearing
    own = ("return_timestamps", "return_language", "chunk_length_s", "stride_length_s")
    wanted = theirs(
        sound(seconds),
        **{name: value for name, value in options.items() if name in own},
        generate_kwargs={name: value for name, value in options.items() if name not in own},
    )
    assert ours.transcribe(sound(seconds), **options) == wanted


@pytest.mark.parametrize("condition", ["first-segment", "all-segments"])
def test_a_prompt_stands_before_the_text_as_in_transformers(condition: str, hearing: tuple[Any, Transcriber]) -> None:
    import torch

    theirs, ours = hearing
    ids = ours.prompt_ids("The small cat")
    assert ids == theirs.tokenizer.get_prompt_ids("The small cat").tolist()
    options = {**SHORT, "prompt_condition_type": condition, "condition_on_prev_tokens": True, "language": "en"}
    wanted = theirs(sound(41.0), return_timestamps=True, generate_kwargs={**options, "prompt_ids": torch.tensor(ids)})
    assert ours.transcribe(sound(41.0), return_timestamps=True, prompt_ids=ids, **options) == wanted


def test_recordings_do_not_depend_on_each_other(hearing: tuple[Any, Transcriber]) -> None:
    _, ours = hearing
    recordings = [sound(4.0), sound(41.0), sound(33.0)]
    assert ours.transcribe_many(recordings, **SHORT) == [ours.transcribe(one, **SHORT) for one in recordings]
    options: dict[str, Any] = {**SHORT, "return_timestamps": True, "condition_on_prev_tokens": True}
    told: list[tuple[int, int]] = []
    together = ours.transcribe_many(
        recordings, progress=lambda text, done, total: told.append((done, total)), **options
    )
    assert together == [ours.transcribe(one, **options) for one in recordings]
    assert told[-1] == (78, 78)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_features_made_by_window_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, samples = LogMelSettings(), sound(67.123)
    whole = log_mel(samples, settings)
    monkeypatch.setattr(windows, "HELD", 0)
    by_window = windows.Windows(samples, settings)
    assert by_window.frames == whole.shape[1] == by_window.sounding
    for start in (0, 1, 2999, 4000, by_window.frames - 1):
        expected = np.zeros((80, 3000), np.float32)
        part = whole[:, start : start + 3000]
        expected[:, : part.shape[1]] = part
        np.testing.assert_allclose(by_window.window(start), expected, atol=2e-6)


def test_silence_gives_what_transformers_gives(hearing: tuple[Any, Transcriber]) -> None:
    theirs, ours = hearing
    for samples in (np.zeros(16000, np.float32), np.zeros(1, np.float32)):
        assert ours.transcribe(samples, **SHORT) == theirs(samples, generate_kwargs=SHORT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"language": "klingon"}, "language='klingon' is not known; the model's languages are en, zh, de"),
        ({"language": 3}, "is not a code"),
        ({"task": "summarize"}, "task='summarize' is not one of translate, transcribe"),
        ({"return_timestamps": "char"}, "return_timestamps='word' or True"),
        ({"return_timestamps": "words"}, "is none of True, False, 'word'"),
        ({"temperature": "hot"}, "temperature='hot'"),
        ({"temperature": -1}, "must be at least 0"),
        ({"no_speech_threshold": 0.5}, "logprob_threshold"),
        ({"prompt_condition_type": "all-segments"}, "needs condition_on_prev_tokens=True"),
        ({"prompt_ids": "hello"}, "prompt_ids"),
        ({"max_new_tokens": 448}, "448 positions"),
        ({"chunk_length_s": 2, "stride_length_s": 1}, "leaves nothing"),
        ({"chunk_length_s": 2, "stride_length_s": "x"}, "not seconds"),
        ({"num_beam": 2}, "did you mean 'num_beams'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_done_is_one_line(
    options: dict[str, Any], message: str, hearing: tuple[Any, Transcriber]
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        hearing[1].transcribe(sound(1.0), **options)
    assert "\n" not in str(caught.value)


def test_a_long_recording_needs_timestamps_or_chunks(hearing: tuple[Any, Transcriber]) -> None:
    with pytest.raises(InputError, match="return_timestamps=True, or chunk_length_s=30"):
        hearing[1].transcribe(sound(31.0), return_timestamps=False)
    whole = hearing[1].transcribe(sound(31.0), return_timestamps=True, **SHORT)
    assert hearing[1].transcribe(sound(31.0), **SHORT) == {"text": whole["text"]}  # transformers refuses


def test_the_model_says_what_it_cannot_do(folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(folder, tmp_path / "model")
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text())

    def changed(**changes: Any) -> Transcriber:
        path.write_text(json.dumps({name: v for name, v in {**settings, **changes}.items() if v is not None}))
        return Transcriber(speech(None), folder, TextTokenizer(folder, class_facts(folder)))

    refused: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"alignment_heads": None}, {"return_timestamps": "word"}, "alignment_heads"),
        (
            {"alignment_heads": [[9, 0], [0, 99]]},
            {"return_timestamps": "word"},
            r"names \[9, 0\], \[0, 99\]",
        ),
        ({"lang_to_id": {"<|en|>": 10**6}}, {"language": "en"}, "no lang_to_id"),
        ({"is_multilingual": False}, {"language": "en"}, "English only"),
        ({"is_multilingual": False}, {"task": "translate"}, "English only"),
        ({"lang_to_id": None}, {"language": "en"}, "no lang_to_id"),
        ({"task_to_id": None}, {"task": "translate"}, "no task_to_id"),
        ({"no_timestamps_token_id": None}, {"return_timestamps": True}, "writes no timestamps"),
    ]
    for changes, options, message in refused:
        with pytest.raises(InputError, match=message):
            changed(**changes).transcribe(sound(1.0), **options)
    broken: list[tuple[dict[str, Any], str]] = [
        ({"lang_to_id": [1]}, "lang_to_id is"),
        ({"forced_decoder_ids": [[1, 5], [3, 6]]}, "leave a gap"),
        ({"forced_decoder_ids": 5}, "not pairs"),
        ({"decoder_start_token_id": "x"}, "decoder_start_token_id is 'x'"),
        ({"decoder_start_token_id": 10**6}, "decoder_start_token_id is 1000000, and the model has logits for"),
        ({"eos_token_id": -1}, "eos_token_id is -1, and the model has logits for"),
        ({"no_timestamps_token_id": 10**6}, "no_timestamps_token_id is 1000000"),
        ({"forced_decoder_ids": [[1, 10**6]]}, "and the model has"),
        ({"lang_to_id": {"<|en|>": "x"}}, "not an object of token ids"),
    ]
    for changes, message in broken:
        with pytest.raises(CheckpointError, match=message):
            changed(**changes)
    path.write_text(json.dumps(settings))
    assert SpeechModel.read(folder).alignment_heads


def test_alignment_heads_that_exist_serve_beside_others_that_do_not(
    hearing: tuple[Any, Transcriber], folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(folder, tmp_path / "model")
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text())
    heads = settings["alignment_heads"]
    path.write_text(json.dumps({**settings, "alignment_heads": [*heads, [9, 0]]}))
    found = Transcriber(speech(hearing[0].model), folder, TextTokenizer(folder, class_facts(folder)))
    assert found.transcribe(sound(2.0), **SHORT) == hearing[1].transcribe(sound(2.0), **SHORT)
    with pytest.warns(UserWarning, match=r"alignment heads that the decoder does not have \(\[9, 0\]\)"):
        words = found.transcribe(sound(2.0), return_timestamps="word", **SHORT)
    assert words == hearing[1].transcribe(sound(2.0), return_timestamps="word", **SHORT)
