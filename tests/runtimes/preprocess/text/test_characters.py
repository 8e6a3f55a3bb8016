"""`pipe.tokenizer` of a CTC model against transformers' tokenizer of characters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoform.errors import InputError
from isoform.reference.classes import class_facts
from isoform.runtimes.preprocess.text.ctc_vocabulary import CtcVocabulary
from isoform.runtimes.preprocess.text.facade.characters import CharactersFacade

Tiny = Callable[[str], Path]
NAMES = ("wav2vec2_ctc", "wav2vec2_ctc_b")


def both(folder: Path) -> tuple[CharactersFacade, Any]:
    from transformers import AutoTokenizer

    vocabulary = CtcVocabulary(folder, class_facts(folder))
    other = AutoTokenizer.from_pretrained(str(folder))
    if folder.name == "wav2vec2_ctc_b":
        other._word_delimiter_token = "#"  # in its file, of which transformers 5.23 does not read it
    return CharactersFacade(vocabulary, folder, str(folder)), other


@pytest.mark.parametrize("name", NAMES)
def test_the_characters_are_those_of_transformers(name: str, tiny: Tiny) -> None:
    mine, other = both(tiny(name))
    for key in (
        *("special_tokens_map", "all_special_tokens", "all_special_ids", "vocab_size", "is_fast", "name_or_path"),
        *("pad_token", "pad_token_id", "unk_token_id", "bos_token", "eos_token_id", "word_delimiter_token"),
        *("word_delimiter_token_id", "model_max_length", "padding_side"),
    ):
        assert getattr(mine, key) == getattr(other, key), key
    assert mine.get_vocab() == other.get_vocab()
    assert len(mine) == len(other)
    for given in ("AB A", "", "hé|"):
        assert mine.tokenize(given) == other.tokenize(given)
        assert mine.encode(given) == other.encode(given)
        assert mine(given).data == other(given).data
    a, b = mine(["AB", "A"], padding=True, return_tensors="pt"), other(["AB", "A"], padding=True, return_tensors="pt")
    for key in b:
        np.testing.assert_array_equal(a[key], b[key])
    with pytest.raises(AttributeError, match="no 'colour'"):
        mine.colour  # noqa: B018
    with pytest.raises(InputError, match="a text was expected"):
        mine.tokenize(3)  # type: ignore[arg-type]


def test_saved_characters_are_the_same(tiny: Tiny, tmp_path: Path) -> None:
    mine, _ = both(tiny("wav2vec2_ctc"))
    assert str(tmp_path / "new" / "vocab.json") in mine.save_pretrained(tmp_path / "new")
    again, other = both(tmp_path / "new")
    assert again.get_vocab() == mine.get_vocab() == other.get_vocab()
    with pytest.raises(InputError, match="is a file"):
        mine.save_pretrained(tmp_path / "new" / "vocab.json")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ids", [[5, 5, 0, 5, 4, 6, 1, 2], [4, 4, 0, 7], [], [3, 99, 7]])
def test_frames_are_decoded_as_by_transformers(name: str, ids: list[int], tiny: Tiny) -> None:
    import torch

    mine, other = both(tiny(name))
    assert mine.convert_ids_to_tokens(ids) == other.convert_ids_to_tokens(ids)
    for options in ({}, {"skip_special_tokens": True}, {"group_tokens": False}):
        assert mine.decode(ids, **options) == other.decode(ids, **options)
        if ids:
            rows = torch.tensor([ids, ids])
            assert mine.batch_decode(rows, **options) == other.batch_decode(rows, **options)
