"""What each tokenizer class makes of a folder, against transformers' AutoTokenizer on the same folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from isoform.errors import InputError, UnsupportedModel
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


def agrees(folder: Path) -> None:
    """Ids, offsets, pairs and texts are those of transformers."""
    from transformers import AutoTokenizer

    ours, theirs = TextTokenizer(folder, class_facts(folder)), AutoTokenizer.from_pretrained(folder)
    assert ours.special == {n: getattr(theirs, n) for n in ours.special}
    assert ours.padding_side == theirs.padding_side
    texts = TEXTS + [f"{token}a {token} B{token}" for token in ours.special.values()]
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


IN_PYTHON = ("SiglipTokenizer",)
"""Classes that transformers reads from a SentencePiece model alone (test_sources.py)."""


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name not in IN_PYTHON])
def test_a_class_builds_what_transformers_builds(name: str, tmp_path: Path) -> None:
    agrees(save(name, tmp_path / "plain"))
    for n, settings in enumerate(SETTINGS.get(name, [])):
        agrees(save(name, tmp_path / str(n), **settings))


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


@pytest.mark.parametrize("name", ["MarianTokenizer", "MBartTokenizer", "BertJapaneseTokenizer", "MyTokenizerFast", "x"])
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
