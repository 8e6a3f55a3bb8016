"""A model's generation_config.json: each key is applied, known to change no text, or refused by its name."""

from __future__ import annotations

import json
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import isoform
import isoform.api
from isoform.errors import CheckpointError, InputError, UnsupportedModel
from isoform.runtimes.generation import other_settings
from isoform.runtimes.generation.model_file import account_file, account_ids
from isoform.runtimes.generation.settings import NAMES, model_settings, resolve
from isoform.runtimes.pipelines.audio.speech import speech_settings
from isoform.runtimes.pipelines.audio.speech.speech_settings import SpeechModel, read_call
from isoform.runtimes.pipelines.text.text_generation import DEFAULTS
from tests.oracle import tiny

pipeline: Any = isoform.pipeline
HUB: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("hub_generation_configs.json").read_text(encoding="utf-8")
)
KNOWN = NAMES | other_settings.UNSUPPORTED.keys() | other_settings.HARMLESS
GREEDY = {"do_sample": False, "max_new_tokens": 12}
FILE = "generation_config.json"


def changed(name: str, folder: Path, *, keep: bool = True, **settings: Any) -> Path:
    """A tiny checkpoint with other settings of generation, and without the mark that transformers made the file."""
    copy = Path(shutil.copytree(tiny(name), folder / name))
    stated = json.loads((copy / FILE).read_text()) if keep else {}
    stated.pop("_from_model_config", None)
    (copy / FILE).write_text(json.dumps(stated | settings))
    return copy


# ------------------------------------------------------------------ transformers' list
def test_every_setting_of_transformers_is_known() -> None:
    import transformers

    empty = transformers.GenerationConfig()
    names = {name for name in vars(empty) if not name.startswith("_")} | empty._get_default_generation_params().keys()
    assert len(names) > 60
    assert not names - KNOWN
    assert not NAMES & other_settings.UNSUPPORTED.keys()
    assert not (NAMES | other_settings.UNSUPPORTED.keys()) & (other_settings.HARMLESS | other_settings.NOTES)


@cache
def code_of(folder: str, pattern: str = "*.py") -> str:
    import transformers

    assert transformers.__file__ is not None
    files = sorted((Path(transformers.__file__).parent / folder).glob(pattern))
    assert files
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


READ = r"generation_config(?:\.|, \")(%s)\b"
METHODS = ("from_dict", "from_pretrained", "get_generation_mode", "save_pretrained", "to_dict", "update", "validate")


def test_every_setting_that_transformers_reads_is_known() -> None:
    own = {name for name in re.findall(READ % r"[a-z]\w*", code_of("generation")) if name not in METHODS}
    assert len(own) > 50
    assert own - KNOWN == {"extra_output_flags", "json"}
    speech = set(re.findall(READ % r"[a-z]\w*", code_of("models/whisper", "generation_whisper.py")))
    inner = {"force_unique_generate_call", "json", "num_frames"}  # between two parts of transformers, never in a file
    assert speech - KNOWN - speech_settings._READ == inner


def test_transformers_reads_no_key_that_is_taken_for_a_note() -> None:
    notes = "|".join(map(re.escape, other_settings.NOTES))
    assert not re.findall(READ % notes, code_of("generation") + code_of("pipelines"))


# ------------------------------------------------------------------ files of the Hub
@pytest.mark.parametrize("name", HUB["text"])
def test_files_of_the_hub_are_read_as_transformers_reads_them(name: str, tmp_path: Path) -> None:
    import transformers

    (tmp_path / FILE).write_text(json.dumps(HUB["text"][name]["settings"]))
    settings = model_settings(tmp_path)
    account_file(tmp_path, settings)
    account_ids(tmp_path, settings, (), HUB["text"][name]["vocab_size"])
    found, theirs = resolve({}, settings, DEFAULTS), transformers.GenerationConfig.from_pretrained(tmp_path)
    for key in settings.keys() & NAMES:
        value = getattr(theirs, key)
        assert getattr(found, key) in (value, (value,), tuple(value) if isinstance(value, list) else value), key


@pytest.mark.parametrize("name", HUB["speech"])
def test_speech_files_of_the_hub_are_read(name: str, tmp_path: Path) -> None:
    sizes = {"vocab_size": HUB["speech"][name]["vocab_size"], "decoder_layers": 32, "decoder_attention_heads": 20}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    stated = HUB["speech"][name]["settings"]
    (tmp_path / FILE).write_text(json.dumps(stated))
    model = SpeechModel.read(tmp_path)
    assert model.alignment_heads is ("alignment_heads" in stated)
    assert read_call(model, {}, timestamps=True).generation.suppress_tokens == tuple(stated["suppress_tokens"])


# ------------------------------------------------------------------ keys
@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("automatic-speech-recognition", "moonshine"),
        ("automatic-speech-recognition", "whisper"),
        ("text-generation", "llama_b"),
    ],
)
def test_a_key_that_nobody_knows_is_refused_by_name(task: str, name: str, tmp_path: Path) -> None:
    folder = changed(name, tmp_path, swirl=3)
    with pytest.raises(UnsupportedModel, match=rf"{FILE}: swirl = 3 is not known and may change the text; take the"):
        pipeline(task, folder)


@pytest.mark.parametrize(("task", "name"), [("text-classification", "qwen2_seqcls"), ("feature-extraction", "llama_b")])
def test_a_pipeline_that_makes_no_text_does_not_look(task: str, name: str, tmp_path: Path) -> None:
    folder = changed(name, tmp_path, keep=(tiny(name) / FILE).is_file(), swirl=3, guidance_scale=2, eos_token_id=10**6)
    with pipeline(task, folder) as pipe, pipeline(task, tiny(name)) as plain:
        assert pipe("the cat") == plain("the cat")


def test_an_export_says_that_it_does_not_generate(tmp_path: Path) -> None:
    folder = changed("llama_b", tmp_path, swirl=3)
    _, report = isoform.api.export_and_check(folder, tmp_path / "out", to="torchscript")
    assert report is not None
    assert "swirl = 3 is not known" in report.about["serves"]["text-generation"]


SAME: dict[str, dict[str, Any]] = {
    "a group of beams without beams": {"num_beam_groups": 2, "diversity_penalty": 0.5},
    "a note of another program": {"presence_penalty": 1.5, "chat_format": "chatml", "torch_dtype": "float16"},
    "a cache": {"cache_implementation": "dynamic", "use_cache": False, "low_memory": True},
    "contrastive search of one candidate": {"penalty_alpha": 0.6, "top_k": 1},
    "what config.json holds": {"_from_model_config": True, "swirl": 3, "pruned_heads": {}},
    "what is returned": {"output_scores": True, "output_attentions": True},
    "settings of sampling": {"top_k": 2, "top_p": 0.1, "min_p": 0.5, "temperature": 9.0, "typical_p": 0.3},
}
OTHER: dict[str, dict[str, Any]] = {
    "a bias": {"sequence_bias": [[[5], 30.0]]},
    "a forced end": {"forced_eos_token_id": 5},
    "a reward for what is there": {"repetition_penalty": 0.05},
    "beams in groups that are one": {"num_beams": 3, "num_beam_groups": 1, "diversity_penalty": 0.5},
    "forbidden tokens": {"suppress_tokens": [*range(3, 200), -1]},
    "forbidden words": {"bad_words_ids": [[n] for n in range(3, 200)]},
}


@pytest.mark.parametrize("name", [*SAME, *OTHER])
def test_settings_of_a_file_give_the_text_that_transformers_gives(name: str, tmp_path: Path) -> None:
    import transformers

    settings = SAME.get(name) or OTHER[name]
    folder = changed("llama_b", tmp_path, **settings)
    theirs: Any = transformers.pipeline("text-generation", model=str(folder))
    with pipeline("text-generation", folder) as pipe, pipeline("text-generation", tiny("llama_b")) as plain:
        text = pipe("the cat", **GREEDY)[0]["generated_text"]
        assert text == theirs("the cat", **GREEDY)[0]["generated_text"]
        assert (text == plain("the cat", **GREEDY)[0]["generated_text"]) is (name in SAME)


@pytest.mark.parametrize(
    ("settings", "neutral"),
    [
        ({"assistant_early_exit": 2}, None),
        ({"cache_implementation": "quantized"}, None),
        ({"dola_layers": "low"}, None),
        ({"force_bos_token_to_be_generated": True}, False),
        ({"is_assistant": True}, False),
        ({"token_healing": True}, False),
        ({"watermarking_config": {"bias": 2.5}}, None),
    ],
)
def test_a_setting_that_isoform_does_not_have_is_refused_with_the_way_out(
    settings: dict[str, Any], neutral: Any, tmp_path: Path
) -> None:
    folder, (name, value) = changed("llama_b", tmp_path, **settings), next(iter(settings.items()))
    with pytest.raises(InputError, match=rf"{name}={re.escape(repr(value))} is set by the model's {FILE}, .*pass "):
        pipeline("text-generation", folder)
    with pipeline("text-generation", folder, **{name: neutral}, num_beams=1, do_sample=False) as pipe:
        assert pipe("the cat", max_new_tokens=3)


# ------------------------------------------------------------------ tokens
@pytest.mark.parametrize(
    "settings",
    [
        {"bad_words_ids": [[5], [3, 607]]},
        {"begin_suppress_tokens": [607]},
        {"eos_token_id": [2, 607]},
        {"forced_bos_token_id": 607},
        {"forced_eos_token_id": 607},
        {"sequence_bias": [[[607], 1.0]]},
        {"suppress_tokens": [607]},
    ],
)
def test_a_token_beyond_the_logits_names_file_key_value_and_rows(settings: dict[str, Any], tmp_path: Path) -> None:
    folder, (name,) = changed("llama_b", tmp_path, **settings), settings
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    assert rows <= 607
    message = rf"llama_b/{FILE}: {name} has the token 607, and the model has logits for {rows} tokens; .*{name}=None"
    with pytest.raises(CheckpointError, match=message):
        pipeline("text-generation", folder)
    with pipeline("text-generation", folder, **{name: None}) as pipe:
        assert pipe("the cat", **GREEDY)


def test_a_token_of_config_json_beyond_the_logits_names_it(tmp_path: Path) -> None:
    folder = changed("llama_b", tmp_path)
    (folder / FILE).unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": 9999}))
    with pytest.raises(CheckpointError, match=r"llama_b/config\.json: eos_token_id has the token 9999"):
        pipeline("text-generation", folder)


def test_a_beginning_beyond_the_embedding_is_refused_where_it_is_fed(tmp_path: Path) -> None:
    with pipeline("text-generation", changed("gpt2_b", tmp_path, bos_token_id=9999)) as pipe:
        assert pipe("the cat", **GREEDY)
        with pytest.raises(InputError, match=r"an empty text begins with bos_token_id=9999, and the model's .* rows"):
            pipe("", **GREEDY)


@pytest.mark.parametrize(
    "settings",
    [
        {"bad_words_ids": [[]]},
        {"bad_words_ids": [[-1]]},
        {"exponential_decay_length_penalty": [1]},
        {"max_new_tokens": float("inf")},
        {"sequence_bias": [[[], 1.0]]},
        {"suppress_tokens": ["the"]},
    ],
)
def test_a_damaged_setting_is_one_line(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=next(iter(settings))):
        pipeline("text-generation", changed("llama_b", tmp_path, **settings))
