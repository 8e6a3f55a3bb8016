"""What each tokenizer class makes of a folder, against transformers' AutoTokenizer on the same folder."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from isoform.errors import CheckpointError, InputError, UnsupportedModel
from isoform.reference.classes import class_facts
from isoform.reference.tokenizers.classes import _CORRECTED, _REGISTERED, ALIASES, STORED, TOKENIZERS, tokenizer_class
from isoform.runtimes.preprocess.text.tokenizer import TextTokenizer
from tests.oracle.texts import DECOMPOSED, HAND, LITERAL_ESCAPES, random_texts
from tests.reference.tokenizers.making import SETTINGS, change, save

TEXTS = [
    *(*HAND, *DECOMPOSED, *LITERAL_ESCAPES, *random_texts(30, seed=11)),
    *(
        "",
        " ",
        "  a  ",
        "\t\n a\r\nb\u0000c",
        "word" * 60,
        "\u200d👩\u200d👩\u200d👧 x",
        "Ünïcödé ÇA ﬁ ① ½",
        "数字123と漢字",
    ),
    *("``quoted'' text", "A.B,C;don't", "\u3000wide\u00a0space", "İstanbul ΑΣ ß"),
]


class _OfWords:
    """A tokenizer of words with boxes, ours or transformers', of which every text here is one word."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, texts: list[str], pairs: list[str] | None = None, **options: Any) -> Any:
        boxes = [[[0, 0, 9, 9]]] * len(texts)
        words: Any = [[text] for text in texts] if pairs is None else texts
        return self._tokenizer(words, None if pairs is None else [[text] for text in pairs], boxes=boxes, **options)

    def encode(self, texts: list[str], pairs: list[str] | None = None, **options: Any) -> Any:
        words: Any = [[text] for text in texts] if pairs is None else [text.split() for text in texts]
        return self._tokenizer.encode(
            words, None if pairs is None else [[text] for text in pairs], words=True, **options
        )


def agrees(folder: Path, *more: str) -> None:
    """Ids, offsets, pairs and texts are those of transformers."""
    from transformers import AutoTokenizer

    ours: Any = TextTokenizer(folder, class_facts(folder))
    theirs: Any = AutoTokenizer.from_pretrained(folder)
    if "boxes" in inspect.signature(type(theirs).__call__).parameters:
        ours, theirs = _OfWords(ours), _OfWords(theirs)
    assert ours.special == {n: getattr(theirs, n) for n in ours.special}
    assert ours.padding_side == theirs.padding_side
    texts = [*TEXTS, *more] + [f"{token}a {token} B{token}" for token in ours.special.values()]
    for special in (True, False):
        expected = theirs(texts, add_special_tokens=special, return_offsets_mapping=True)
        rows = ours.encode(texts, add_special_tokens=special)
        assert [row.ids for row in rows] == expected["input_ids"]
        assert [row.offsets for row in rows] == expected["offset_mapping"]
        for skip in (True, False):
            decoded = [ours.decode(row, skip_special_tokens=skip) for row in expected["input_ids"]]
            assert decoded == theirs.decode(expected["input_ids"], skip_special_tokens=skip)
    pairs = theirs(TEXTS[3:9], TEXTS[20:26], return_token_type_ids=True)
    rows = ours.encode(TEXTS[3:9], TEXTS[20:26])
    assert [row.ids for row in rows] == pairs["input_ids"]
    assert [row.type_ids for row in rows] == pairs["token_type_ids"]
    assert ours.segments == ("token_type_ids" in theirs.model_input_names)


IN_PYTHON = ("M2M100Tokenizer", "MarianTokenizer", "SiglipTokenizer", "TapasTokenizer")
"""Classes that transformers reads from other files alone: SentencePiece models (test_sources.py), and vocab.txt with
pandas (runtimes/preprocess/text/test_tables.py)."""


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name not in IN_PYTHON])
def test_a_class_builds_what_transformers_builds(name: str, tmp_path: Path) -> None:
    agrees(save(name, tmp_path / "plain"))
    for n, settings in enumerate(SETTINGS.get(name, [])):
        agrees(save(name, tmp_path / str(n), **settings))


IDLE: dict[str, Any] = {
    "_spm_precompiled_charsmap": None,  # from tokenizer.json
    "additional_special_tokens": None,  # see the test of special tokens
    "args": None,
    "clean_up_tokenization_spaces": False,
    "extra_special_tokens": None,
    "errors": "ignore",
    "kwargs": {"x": 1},
    "merges": None,
    "merges_file": "x.txt",
    "normalizer_file": "x.json",
    "only_label_first_subword": False,
    "pad_token_label": 7,
    "return_token_type_ids": False,
    "swirl": 3,
    "use_default_system_prompt": True,
    "vocab": None,
    "vocab_file": "x.txt",
}
"""Settings of tokenizer_config.json, with values that change nothing; one is of no class."""

WRITTEN = {
    **dict.fromkeys(("add_prefix_space", "keep_accents", "legacy", "predict_timestamps", "split_by_punct"), True),
    **dict.fromkeys(("do_lower_case", "strip_accents", "tokenize_chinese_chars", "trim_offsets"), False),
    **{key: [1, 2, 3, 4] for key in ("cls_token_box", "pad_token_box", "sep_token_box")},
    "extra_ids": 3,
    "language": "en",
    "legacy_behaviour": True,
    "mask_token_sent": "<mask_5>",
    "offset": 30,
    "src_lang": "en_XX",
    "task": "translate",
    "tgt_lang": "ro_RO",
    "unk_id": 2,
}
"""Settings that some class reads."""


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name not in IN_PYTHON])
def test_every_setting_that_transformers_has_for_a_class_counts_as_it_does_there(name: str, tmp_path: Path) -> None:
    import transformers

    theirs = inspect.signature(getattr(transformers, name).__init__).parameters
    assert {key for key in theirs if key != "self" and not key.endswith("_token")} <= IDLE.keys() | WRITTEN.keys()
    agrees(save(name, tmp_path / "idle", **IDLE))
    languages = {"src_lang": "fra_Latn", "tgt_lang": "deu_Latn"} if name == "NllbTokenizer" else {}
    agrees(save(name, tmp_path / "written", **WRITTEN | languages))


OBJECT = {"content": "<boi>", "lstrip": True}
OWN: list[dict[str, Any]] = [
    {"boi_token": "<boi>"},
    {"boi_token": {**OBJECT, "__type": "AddedToken"}},
    {"boi_token": OBJECT},
    {"model_specific_special_tokens": {"boi_token": "<boi>"}},
    {"model_specific_special_tokens": {"boi_token": {**OBJECT, "__type": "AddedToken"}, "eoi_token": "<eoi>"}},
    {"model_specific_special_tokens": {"boi_token": "<boi>"}, "eoi_token": "<eoi>"},
    {"extra_special_tokens": {"boi_token": "<boi>"}},
    {"extra_special_tokens": ["<boi>"]},
    {"additional_special_tokens": ["<boi>"]},
    {"additional_special_tokens": ["<boi>"], "extra_special_tokens": {}},
    {"boi_token": "<boi>", "extra_special_tokens": ["<eoi>"]},
]


@pytest.mark.parametrize("settings", OWN)
@pytest.mark.parametrize("name", ["GPT2Tokenizer", "T5Tokenizer"])
def test_special_tokens_under_any_name_are_added(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    agrees(save(name, tmp_path, **settings), "a <boi> b<boi>c", "<eoi><boi> <eoi>")


@pytest.mark.parametrize("token", ["<boi>", {**OBJECT, "normalized": False}])
def test_special_tokens_of_the_older_file_are_added(token: Any, tmp_path: Path) -> None:
    folder = save("GPT2Tokenizer", tmp_path)
    (folder / "special_tokens_map.json").write_text(json.dumps({"boi_token": token}))
    agrees(folder, "a <boi> b<boi>c")


@pytest.mark.parametrize("own", [["<boi>"], {"bos_token": "<boi>"}, {"boi_token": 3}, {"boi_token": None}])
def test_special_tokens_that_are_none_are_one_line(own: Any, tmp_path: Path) -> None:
    folder = save("GPT2Tokenizer", tmp_path, model_specific_special_tokens=own)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: model_specific_special_tokens"):
        TextTokenizer(folder, class_facts(folder))


@pytest.mark.parametrize("config", [{}, {"model_type": "mistral"}, {"transformers_version": "4.57.3"}])
def test_a_pattern_that_is_not_the_files_is_refused(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save("GPT2Tokenizer", tmp_path, fix_mistral_regex=True)
    (folder / "config.json").write_text(json.dumps(config))
    agrees(folder)  # a small vocabulary keeps its pattern
    monkeypatch.setattr("isoform.reference.tokenizers.classes._PATTERN_SIZE", 9)
    with pytest.raises(UnsupportedModel, match=r"fix_mistral_regex = True replaces a pattern .*take the key out"):
        TextTokenizer(folder, class_facts(folder))
    for other in ({"transformers_version": "5.1.0"}, {"model_type": "llama"}):
        (folder / "config.json").write_text(json.dumps({**config, **other}))
        TextTokenizer(folder, class_facts(folder))


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name not in IN_PYTHON])
def test_what_a_class_builds_counts_against_the_parts_in_the_file(name: str, tmp_path: Path) -> None:
    folder = save(name, tmp_path)
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(
        folder / "tokenizer.json",
        normalizer={"type": "Prepend", "prepend": "x"},
        pre_tokenizer={"type": "Whitespace"},
        decoder={"type": "Fuse"},
        post_processor=stored["post_processor"],
    )
    agrees(folder)


def test_a_character_map_of_the_file_stays_in_the_classs_normalizer(tmp_path: Path) -> None:
    from base64 import b64encode

    from isoform.reference.checkpoints.sentencepiece_model import white_space_map

    data = b64encode(white_space_map()).decode()
    for name in ("XLMRobertaTokenizer", "T5Tokenizer", "AlbertTokenizer", "CamembertTokenizer", "DebertaV2Tokenizer"):
        folder = save(name, tmp_path / name)
        step = {"type": "Precompiled", "precompiled_charsmap": data}
        change(folder / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": [step]})
        agrees(folder)


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_the_class_that_transformers_has_under_that_name(alias: str) -> None:
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    found = tokenizer_class_from_name(alias)
    assert found is not None
    assert ALIASES[alias] in [each.__name__ for each in found.__mro__]


def test_a_model_is_registered_with_the_class_that_transformers_has_for_it() -> None:
    from transformers.models.auto import tokenization_auto as auto

    theirs = auto.TOKENIZER_MAPPING_NAMES
    for model, name in _REGISTERED.items():
        known = theirs[model]
        assert ALIASES.get(known, known) == ALIASES.get(name, name), model
    wrong = auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS
    assert set(_CORRECTED) <= wrong
    assert {m for m in wrong & set(_REGISTERED) if _REGISTERED[m] != "TokenizersBackend"} == set(_CORRECTED)


def test_classes_that_take_the_file_as_it_stands_build_nothing_in_transformers() -> None:
    from transformers import PythonBackend, TokenizersBackend
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    for name in STORED[1:]:
        found = tokenizer_class_from_name(name) or PythonBackend
        assert found is PythonBackend or found.__init__ is TokenizersBackend.__init__, name


@pytest.mark.parametrize("name", ["XLNetTokenizer", "PLBartTokenizer", "BertJapaneseTokenizer", "MyTokenizerFast", "x"])
def test_a_class_that_is_not_known_is_refused_by_name(name: str, tmp_path: Path) -> None:
    folder = save("GPT2Tokenizer", tmp_path)
    change(folder / "tokenizer_config.json", tokenizer_class=name)
    with pytest.raises(UnsupportedModel, match=f"the tokenizer class {name.removesuffix('Fast')} is not supported"):
        TextTokenizer(folder, class_facts(folder))
    (folder / "config.json").write_text('{"model_type": "modernbert"}')  # whose class transformers does not ask for
    agrees(folder)


@pytest.mark.parametrize(
    ("model", "declared", "chosen"),
    [
        ("bert", None, "BertTokenizer"),
        ("bert", "PreTrainedTokenizerFast", ""),
        ("roberta", "BertTokenizer", "BertTokenizer"),
        ("qwen2", "LlamaTokenizerFast", "Qwen2Tokenizer"),
        ("mistral", "LlamaTokenizer", ""),
        ("phi3", "LlamaTokenizerFast", ""),
        ("smollm3", "PreTrainedTokenizerFast", ""),
        ("olmo2", "GPT2Tokenizer", ""),
        ("granite", "GPT2TokenizerFast", ""),
        ("siglip2", "GemmaTokenizerFast", "Siglip2Tokenizer"),
        ("nothing", None, ""),
    ],
)
def test_the_class_is_the_one_that_transformers_picks(
    model: str, declared: str | None, chosen: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": declared}))
    assert tokenizer_class(tmp_path) == chosen


@pytest.mark.parametrize("declared", ["BertTokenizer", None, "GemmaTokenizer"])
def test_a_class_over_a_model_of_another_kind_takes_the_file_as_it_stands(declared: Any, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    folder = save("XLMRobertaTokenizer", tmp_path)
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    change(folder / "tokenizer_config.json", tokenizer_class=declared)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    ours = TextTokenizer(folder, class_facts(folder))
    assert [row.ids for row in ours.encode(TEXTS)] == theirs(TEXTS)["input_ids"]
    assert ours.special["cls_token"] == "<s>"


def test_a_part_that_this_version_does_not_know_is_said(tmp_path: Path) -> None:
    folder = save("GPT2Tokenizer", tmp_path)
    facts = {"tokenizer": {**class_facts(folder)["tokenizer"], "magic": 1}}
    with pytest.raises(InputError, match="does not know a tokenizer's 'magic'; install a newer one"):
        TextTokenizer(folder, facts)


# ------------------------------------------------------------------ languages
SPOKEN = {
    "MBart50Tokenizer": ("de_DE", "ro_RO"),
    "MBartTokenizer": ("de_DE", "ro_RO"),
    "NllbTokenizer": ("deu_Latn", "ron_Latn"),
}
"""Class -> the languages that a text is translated from and to."""


def translated(folder: Path, source: str, target: str) -> None:
    """Inputs of a translation are those of transformers, cut and in pairs too, and the tokenizer is as it was."""
    from transformers import AutoTokenizer

    ours, theirs = TextTokenizer(folder, class_facts(folder)), AutoTokenizer.from_pretrained(folder)
    assert ours.languages is not None
    before = ours.encode(TEXTS[:3])
    cut: dict[str, Any] = {"truncation": True, "max_length": 6}
    for options in ({}, cut):
        expected = theirs._build_translation_inputs(
            TEXTS[:9], return_tensors=None, src_lang=source, tgt_lang=target, **options
        )
        rows = ours.encode(TEXTS[:9], language=source, **options)
        assert [row.ids for row in rows] == expected["input_ids"]
        assert ours.languages.forced(target) == expected["forced_bos_token_id"]
    first, last = ours.languages.around(source)
    plain = ours.encode(TEXTS[:9], add_special_tokens=False)
    assert [[*first, *row.ids, *last] for row in plain] == theirs(TEXTS[:9])["input_ids"]
    assert [row.ids for row in ours.encode(TEXTS[:3])] == [row.ids for row in before]


@pytest.mark.parametrize("name", SPOKEN)
def test_a_text_is_marked_with_its_language_as_in_transformers(name: str, tmp_path: Path) -> None:
    translated(save(name, tmp_path / "plain"), *SPOKEN[name])
    translated(save(name, tmp_path / "stated", src_lang=SPOKEN[name][1], legacy_behaviour=True), *SPOKEN[name])


def test_an_unknown_language_is_refused_with_near_ones(tmp_path: Path) -> None:
    folder = save("NllbTokenizer", tmp_path / "nllb")
    tokenizer = TextTokenizer(folder, class_facts(folder))
    assert tokenizer.languages is not None
    with pytest.raises(InputError, match=r"src_lang='fra_Lat' is no language of this model; near ones are fra_Latn"):
        tokenizer.encode(["a"], language="fra_Lat")
    with pytest.raises(InputError, match=r"tgt_lang='zz' is no language .*; near ones are ace_Arab, .* and \d+ more"):
        tokenizer.languages.forced("zz")
    with pytest.raises(InputError, match=r"needs tgt_lang, the code of a language; it knows ace_Arab, "):
        tokenizer.languages.forced()
    other = save("GPT2Tokenizer", tmp_path / "gpt2")
    with pytest.raises(InputError, match=r"has no languages; leave language='en' out"):
        TextTokenizer(other, class_facts(other)).encode(["a"], language="en")
    folder = save("NllbTokenizer", tmp_path / "other", src_lang="fr")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: src_lang='fr' is no language"):
        TextTokenizer(folder, class_facts(folder))
