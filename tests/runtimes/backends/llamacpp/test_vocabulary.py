"""llama.cpp's tokenizer, as `Vocabulary` hands it out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from isoform.errors import CheckpointError, InputError
from isoform.runtimes.backends.llamacpp.session import LlamaCppSession
from isoform.runtimes.backends.llamacpp.vocabulary import Vocabulary
from isoform.signature import decoder_signature
from tests.oracle.convert_gguf import oracle_convert

TEXTS = ["Hello, world! It's 2024.", "", " ", "naïve Ångström 你好 🙂🚀", "a\x00b", "<|eot_id|>x", "wörd " * 500]


@pytest.fixture(scope="module")
def path(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gguf") / "llama.gguf"
    return oracle_convert(tiny("llama"), out, pre="llama-bpe")


@pytest.fixture(scope="module")
def vocabulary(path: Path) -> Iterator[Vocabulary]:
    with Vocabulary(path) as opened:
        yield opened


def test_tokens_are_those_of_transformers(vocabulary: Vocabulary, tiny: Callable[[str], Path]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny("llama"))
    assert len(vocabulary) == len(tokenizer) == 459
    assert vocabulary.tokenize(TEXTS) == [tokenizer(text).input_ids for text in TEXTS]
    without = [tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]
    assert vocabulary.tokenize(TEXTS, add_special=False) == without
    assert vocabulary.tokenize([]) == []


def test_special_tokens_are_characters_on_request(vocabulary: Vocabulary) -> None:
    (one,) = vocabulary.tokenize(["<|eot_id|>"], add_special=False)
    (many,) = vocabulary.tokenize(["<|eot_id|>"], add_special=False, parse_special=False)
    assert len(one) == 1
    assert len(many) > 1
    assert vocabulary.detokenize([one, many]) == ["<|eot_id|>", "<|eot_id|>"]
    assert vocabulary.detokenize([one], unparse_special=False) == [""]


def test_detokenizing_gives_the_text_back(vocabulary: Vocabulary) -> None:
    ids = vocabulary.tokenize(TEXTS, add_special=False)
    assert vocabulary.detokenize(ids) == TEXTS
    assert vocabulary.detokenize([]) == []
    (broken,) = vocabulary.detokenize([vocabulary.tokenize(["🙂"], add_special=False)[0][:1]])
    assert broken == "\N{REPLACEMENT CHARACTER}"


def test_a_session_shares_its_worker(path: Path, vocabulary: Vocabulary) -> None:
    with LlamaCppSession(path, decoder_signature(3, 2, 8, 459)) as session:
        assert session.vocabulary.tokenize(TEXTS) == vocabulary.tokenize(TEXTS)


def test_text_without_a_utf8_form_is_refused(vocabulary: Vocabulary) -> None:
    with pytest.raises(InputError, match="surrogate pair at 1"):
        vocabulary.tokenize(["a\ud800"])


@pytest.mark.parametrize("token", [-1, 459, 2**40])
def test_an_unknown_token_is_refused(token: int, vocabulary: Vocabulary) -> None:
    with pytest.raises(InputError, match=f"token id {token} is outside the vocabulary of 459"):
        vocabulary.detokenize([[1], [2, token]])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.gguf is not a file"):
        Vocabulary(tmp_path / "none.gguf")
