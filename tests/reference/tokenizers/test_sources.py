"""A tokenizer rebuilt from its source files, against transformers' AutoTokenizer on the same folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isoform.errors import CheckpointError
from isoform.reference.checkpoints.linked_folder import linked
from isoform.reference.checkpoints.sentencepiece_model import white_space_map
from isoform.reference.classes import class_facts
from isoform.reference.tokenizers.classes import TOKENIZERS
from isoform.reference.tokenizers.sources import rebuilt
from isoform.runtimes.preprocess.text.tokenizer import TextTokenizer
from tests.oracle.checkpoints.tokenizers import CONTROL, UNKNOWN, USER, write_pieces
from tests.reference.tokenizers.making import (
    OF_WORDS,
    SETTINGS,
    bpe_pieces,
    change,
    save,
    strip,
    unigram_pieces,
    write_merges,
    write_words,
)
from tests.reference.tokenizers.test_classes import IN_PYTHON, TEXTS

WORDS = [name for name, row in TOKENIZERS.items() if row.vocabulary == ("vocab.txt",) and name not in IN_PYTHON]
MERGES = [
    name for name, row in TOKENIZERS.items() if row.vocabulary == ("vocab.json", "merges.txt") and name not in OF_WORDS
]
FLAGS = {"add_bos_token": True, "add_eos_token": True}


def agrees(folder: Path, texts: tuple[str, ...] = (), *, decodes: bool = True) -> dict[str, Any]:
    """The rebuilt tokenizer is transformers'; returns the rebuilt tokenizer.json."""
    from transformers import AutoTokenizer

    files = rebuilt(folder)
    assert files is not None
    made = linked(folder, Path(), files)
    try:
        ours = TextTokenizer(made, class_facts(made))
        again = AutoTokenizer.from_pretrained(made)
    finally:
        shutil.rmtree(made)
    theirs = AutoTokenizer.from_pretrained(folder)
    assert {n: t for n in (*ours.special, "bos_token", "eos_token") if (t := getattr(theirs, n))} == ours.special
    assert ours.vocabulary() == theirs.get_vocab()
    assert ours.special_ids == {n for n, token in theirs.added_tokens_decoder.items() if token.special}
    asked = [*TEXTS, *texts, *(f"{token}a {token} B{token}" for token in list(theirs.added_tokens_encoder)[:40])]
    for special in (True, False):
        expected = theirs(asked, add_special_tokens=special, return_offsets_mapping=True)
        rows = ours.encode(asked, add_special_tokens=special)
        assert [row.ids for row in rows] == expected["input_ids"]
        assert [row.offsets for row in rows] == expected["offset_mapping"]
        assert again(asked, add_special_tokens=special)["input_ids"] == expected["input_ids"]
        for skip in (True, False) if decodes else ():
            decoded = [ours.decode(row, skip_special_tokens=skip) for row in expected["input_ids"]]
            assert decoded == theirs.decode(expected["input_ids"], skip_special_tokens=skip)
    pairs = theirs(TEXTS[3:9], TEXTS[20:26], return_token_type_ids=True)
    rows = ours.encode(TEXTS[3:9], TEXTS[20:26])
    assert [row.ids for row in rows] == pairs["input_ids"]
    assert [row.type_ids for row in rows] == pairs["token_type_ids"]
    found: dict[str, Any] = json.loads(files["tokenizer.json"])
    return found


@pytest.mark.parametrize(("name", "write"), [(n, write_words) for n in WORDS] + [(n, write_merges) for n in MERGES])
def test_a_vocabulary_file_is_the_tokenizer_of_its_class(
    name: str, write: Callable[[Path], None], tmp_path: Path
) -> None:
    for n, settings in enumerate([{}, FLAGS, *SETTINGS.get(name, [])]):
        folder = save(name, tmp_path / str(n), **settings)
        write(folder)
        agrees(folder)


def test_tokens_come_from_the_older_files_and_the_class_from_the_model(tmp_path: Path) -> None:
    folder = save("BertTokenizer", tmp_path / "bert")
    write_words(folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    agrees(folder)
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false, "never_split": ["the"]}')
    mask = {"content": "[MASK]", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
    (folder / "special_tokens_map.json").write_text(json.dumps({"mask_token": mask, "pad_token": "<p>"}))
    (folder / "added_tokens.json").write_text(json.dumps({"<p>": 500, "[NEW]": 501, "house": 502}))
    agrees(folder, ("a [MASK] b house[NEW]", "Houses [new]"))

    folder = save("RobertaTokenizer", tmp_path / "roberta")
    write_merges(folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / "config.json").write_text('{"model_type": "roberta"}')
    extra = [{"content": "<mask>", "lstrip": True, "rstrip": False, "normalized": False}, "<x>"]
    (folder / "special_tokens_map.json").write_text(json.dumps({"extra_special_tokens": extra}))
    agrees(folder, ("a <mask> b <x>c",))


def test_a_speech_model_has_its_prompt_and_its_timestamps(tmp_path: Path) -> None:
    """Texts are not compared: the class leaves timestamps out of them."""
    from tests.oracle.checkpoints.tokenizers import whisper_tok

    whisper_tok().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    added = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    write_merges(tmp_path)
    decoder = {str(token["id"]): {key: token[key] for key in token if key != "id"} for token in added}
    change(tmp_path / "tokenizer_config.json", added_tokens_decoder=decoder)
    (tmp_path / "normalizer.json").write_text('{"colour": "color"}')
    agrees(
        tmp_path, ("<|startoftranscript|><|en|><|0.00|> Hello<|1.00|>",), decodes=False
    )  # its decode drops timestamps
    listed = {token["content"]: token["id"] for token in added}
    (tmp_path / "added_tokens.json").write_text(json.dumps(listed))
    names = [token["content"] for token in added if token["special"]]
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": names}))
    change(tmp_path / "tokenizer_config.json", added_tokens_decoder=None, extra_special_tokens=None)
    agrees(
        tmp_path, ("<|startoftranscript|><|en|><|0.00|> Hello<|1.00|>",), decodes=False
    )  # its decode drops timestamps
    change(tmp_path / "tokenizer_config.json", language="de", task="translate", predict_timestamps=True)
    agrees(tmp_path, decodes=False)


UNK_BOS_EOS = (("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL))
PIECES: dict[str, tuple[str, list[tuple[str, int]], dict[str, Any]]] = {
    "AlbertTokenizer": (
        "spiece.model",
        [("<pad>", CONTROL), ("<unk>", UNKNOWN), ("[CLS]", CONTROL), ("[SEP]", CONTROL), ("[MASK]", CONTROL)],
        {"unk_id": 1},
    ),
    "CamembertTokenizer": ("sentencepiece.bpe.model", list(UNK_BOS_EOS), {}),
    "DebertaV2Tokenizer": (
        "spm.model",
        [("[PAD]", CONTROL), ("[CLS]", CONTROL), ("[SEP]", CONTROL), ("[UNK]", UNKNOWN)],
        {"unk_id": 3},
    ),
    "MBart50Tokenizer": ("sentencepiece.bpe.model", list(UNK_BOS_EOS), {}),
    "MBartTokenizer": ("sentencepiece.bpe.model", list(UNK_BOS_EOS), {}),
    "PegasusTokenizer": ("spiece.model", [("<pad>", CONTROL), ("</s>", CONTROL), ("<unk>", UNKNOWN)], {"unk_id": 2}),
    "T5Tokenizer": ("spiece.model", [("<pad>", CONTROL), ("</s>", CONTROL), ("<unk>", UNKNOWN)], {"unk_id": 2}),
    "XLMRobertaTokenizer": ("sentencepiece.bpe.model", list(UNK_BOS_EOS), {}),
}


@pytest.mark.parametrize("name", PIECES)
def test_a_unigram_model_is_the_tokenizer_of_its_class(name: str, tmp_path: Path) -> None:
    file, specials, ids = PIECES[name]
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {}),
        ({"charsmap": white_space_map()}, {"user": ("<user>", "▁dog")}),
        ({}, {"settings": {"extra_special_tokens": ["<a>", "<b>"]}}),
        ({}, {"settings": {"additional_special_tokens": []}}),
        *(({}, {"settings": settings}) for settings in SETTINGS.get(name, [])),
    ]
    for n, (model, more) in enumerate(cases):
        folder = save(name, tmp_path / str(n), **more.get("settings", {}))
        strip(folder)
        if "mask_token" in more.get("settings", {}):
            change(folder / "tokenizer_config.json", mask_token="<mask>")
        write_pieces(folder / file, unigram_pieces(*specials, user=more.get("user", ())), **{**ids, **model})
        agrees(folder, ("a <user>b▁dog dog", "<a> x <b>"))
        if n == 1:  # tokenizer.model counts before the class's own name
            (folder / file).rename(folder / "tokenizer.model")
            agrees(folder)


def composed(folder: Path) -> bytes:
    """The character map that SentencePiece trains by default (NFKC, and all spaces are one)."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    (folder / "corpus.txt").write_text("\n".join(text for text in TEXTS[:30] if text.strip()), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "trained"),
        vocab_size=500,
        hard_vocab_limit=False,
        character_coverage=0.98,
        minloglevel=2,
    )
    made: Any = sentencepiece_model_pb2
    model = made.ModelProto.FromString((folder / "trained.model").read_bytes())
    return bytes(model.normalizer_spec.precompiled_charsmap)


@pytest.mark.parametrize("settings", [{}, {"do_lower_case": False}])
def test_a_class_that_takes_punctuation_away(settings: dict[str, Any], tmp_path: Path) -> None:
    """SigLIP's, which transformers runs on the SentencePiece library itself."""
    from transformers import AutoTokenizer

    specials = (("<pad>", CONTROL), ("</s>", CONTROL), ("<unk>", UNKNOWN))
    write_pieces(tmp_path / "spiece.model", unigram_pieces(*specials), unk_id=2, charsmap=composed(tmp_path))
    config = {"tokenizer_class": "SiglipTokenizer", "model_max_length": 64, **settings}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    files = rebuilt(tmp_path)
    assert files is not None
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    ours = TextTokenizer(tmp_path, class_facts(tmp_path))
    for text in TEXTS:
        if "Σ" in text or "\u3099" in text:  # lower() knows the last sigma of a word; the map joins a voicing mark
            continue
        assert ours.encode([text])[0].ids == theirs(text)["input_ids"], text
    assert ours.special == {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    assert (ours.pad_id, ours.padding_side, ours.max_length) == (theirs.pad_token_id, theirs.padding_side, 64)


@pytest.mark.parametrize("name", ["LlamaTokenizer", "GemmaTokenizer", "Siglip2Tokenizer"])
def test_a_bpe_model_is_the_tokenizer_of_its_class(name: str, tmp_path: Path) -> None:
    gemma = (("<pad>", CONTROL), ("<eos>", CONTROL), ("<bos>", CONTROL), ("<unk>", UNKNOWN), ("<mask>", USER))
    specials = UNK_BOS_EOS if name == "LlamaTokenizer" else gemma
    for n, settings in enumerate([{}, FLAGS, *SETTINGS.get(name, [])]):
        folder = save(name, tmp_path / str(n), **settings)
        strip(folder)
        pieces = bpe_pieces(*specials, user=("<user>", "▁▁▁▁"))
        write_pieces(folder / "tokenizer.model", pieces, kind=2, byte_fallback=True)
        agrees(folder, ("a <user>b    dog",))


@pytest.mark.parametrize("kind", [1, 2])
def test_a_model_whose_class_takes_the_file_as_it_stands(kind: int, tmp_path: Path) -> None:
    """Mistral's folder with tokenizer.model alone, whose declared class transformers does not ask for."""
    folder = save("LlamaTokenizer", tmp_path, add_bos_token=True)
    (folder / "config.json").write_text('{"model_type": "mistral"}')
    strip(folder)
    pieces = bpe_pieces(*UNK_BOS_EOS) if kind == 2 else unigram_pieces(*UNK_BOS_EOS)
    write_pieces(folder / "tokenizer.model", pieces, kind=kind, byte_fallback=kind == 2, charsmap=white_space_map())
    agrees(folder)
    if kind == 2:
        decoder = {"5": {"content": "<renamed>", "special": True, "normalized": False}}
        change(folder / "tokenizer_config.json", added_tokens_decoder=decoder)
        agrees(folder, ("<renamed>x",))
    change(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", added_tokens_decoder=None)
    change(folder / "tokenizer_config.json", bos_token=None, eos_token=None, unk_token=None)
    (folder / "config.json").write_text("{}")
    agrees(folder)


def test_what_cannot_be_rebuilt_is_left_alone(tmp_path: Path) -> None:
    folder = save("BertTokenizer", tmp_path / "a")
    assert rebuilt(folder) is None, "there is a tokenizer.json"
    strip(folder)
    assert rebuilt(folder) is None, "there is no vocabulary"
    write_pieces(folder / "sentencepiece.bpe.model", bpe_pieces(*UNK_BOS_EOS), kind=2)
    change(folder / "tokenizer_config.json", tokenizer_class="PLBartTokenizer")
    assert rebuilt(folder) is None, "there is no such class"
    folder = save("LlamaTokenizer", tmp_path / "b")
    strip(folder)
    (folder / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    assert rebuilt(folder) is None, "it is tiktoken's"


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("BertTokenizer", "vocab.txt", b"", "vocab.txt holds no tokens"),
        ("BertTokenizer", "vocab.txt", b"\xff\xfe\xfa", "vocab.txt is not a readable vocabulary"),
        ("GPT2Tokenizer", "vocab.json", b"{", "vocab.json and merges.txt are not readable"),
        ("GPT2Tokenizer", "vocab.json", b"[1]", "vocab.json and merges.txt are not readable"),
        (
            "GPT2Tokenizer",
            "merges.txt",
            b"#version\na b c\n",
            "vocab.json and merges.txt are not readable",
        ),
        ("GPT2Tokenizer", "merges.txt", b"#version\nzz yy\n", "vocab.json is not a readable vocabulary"),
        ("GPT2Tokenizer", "vocab.json", b'{"a": 2147483648}', "vocab.json holds the id 2147483648, above 16777216"),
        ("GPT2Tokenizer", "merges.txt", None, "has vocab.json and no merges.txt"),
        ("T5Tokenizer", "spiece.model", b"", "spiece.model holds no pieces"),
        ("T5Tokenizer", "spiece.model", b"\x0a\x20\x0a", "spiece.model: the SentencePiece model of 3 bytes is damaged"),
        ("LlamaTokenizer", "tokenizer.model", b"\x80" * 2**20, "tokenizer.model: the SentencePiece model"),
    ],
)
def test_a_damaged_vocabulary_is_said_in_one_line(
    name: str, file: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    folder = save(name, tmp_path)
    if name in WORDS:
        write_words(folder)
    elif name in MERGES:
        write_merges(folder)
    else:
        strip(folder)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        rebuilt(folder)
    assert "\n" not in str(error.value)


def test_a_vocabulary_with_holes_repeats_and_controls_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    folder = save("BertTokenizer", tmp_path)
    write_words(folder)
    lines = (folder / "vocab.txt").read_text().splitlines()
    lines[20:24] = ["house", "\x00", "", "tab\t"]
    lines += ["house", "##x ", "ﬁ", "é", "\u3000"]
    (folder / "vocab.txt").write_text("\r\n".join(lines), encoding="utf-8")
    agrees(folder, ("house tab fi é housex",))


# ------------------------------------------------------------------ pieces with the ids of vocab.json
CODED = (">>fra<< Hello house", ">>fra<<house", " >>fra<< a", ">>deu<<", ">> a", "a dog >>", "the Straße")


def agrees_in_python(folder: Path, *more: str, **options: Any) -> TextTokenizer:
    """Ids and texts are those of a class that transformers runs on the SentencePiece library itself."""
    from transformers import AutoTokenizer

    theirs, files = AutoTokenizer.from_pretrained(folder), rebuilt(folder)
    assert files is not None
    made = linked(folder, Path(), files)
    try:
        ours = TextTokenizer(made, class_facts(made))
    finally:
        shutil.rmtree(made)
    for token, index in theirs.get_vocab().items():
        if token.strip():
            assert ours.decode([index]) == theirs.decode([index]), token
    texts = [text for text in TEXTS if "\u3099" not in text]  # the map joins a voicing mark
    asked = [*texts, *more, *(f"{token}a {token} B{token}" for token in theirs.all_special_tokens[:5])]
    for special in (True, False):
        expected = theirs(asked, add_special_tokens=special)["input_ids"]
        found = [row.ids for row in ours.encode(asked, add_special_tokens=special)]
        for text, mine, their in zip(asked, found, expected, strict=True):
            assert mine == their, text
        for row in expected:
            assert ours.decode(row, skip_special_tokens=True) == theirs.decode(row, skip_special_tokens=True)
    pairs = theirs(TEXTS[3:9], TEXTS[20:26])["input_ids"]
    assert [row.ids for row in ours.encode(TEXTS[3:9], TEXTS[20:26])] == pairs
    cut = theirs(asked, truncation=True, max_length=5)["input_ids"]
    assert [row.ids for row in ours.encode(asked, truncation=True, max_length=5)] == cut
    return ours


def test_a_marian_tokenizer_has_the_ids_of_vocab_json(tmp_path: Path) -> None:
    from tests.oracle.checkpoints.tokenizers import marian_files

    for n, charsmap in enumerate((white_space_map(), composed(tmp_path))):
        folder = tmp_path / str(n)
        folder.mkdir()
        marian_files(folder, (">>fra<<", ">>deu<<"), charsmap)
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "MarianTokenizer"}')
        (folder / "config.json").write_text('{"model_type": "marian"}')
        agrees_in_python(folder, *CODED)
    change(folder / "tokenizer_config.json", separate_vocabs=True)
    assert rebuilt(folder) is None


def test_an_m2m_100_tokenizer_has_the_ids_of_vocab_json(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from isoform.reference.tokenizers.language_codes import M2M_100
    from tests.oracle.checkpoints.tokenizers import m2m_files

    for n, listed in enumerate(([], [f"__{code}__" for code in M2M_100])):
        folder = tmp_path / str(n)
        folder.mkdir()
        m2m_files(folder, white_space_map())
        settings = {"tokenizer_class": "M2M100Tokenizer", "src_lang": "de", "additional_special_tokens": listed}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        (folder / "config.json").write_text('{"model_type": "m2m_100"}')
        ours = agrees_in_python(folder, "__fr__ a house__de__")
        theirs = AutoTokenizer.from_pretrained(folder)
        assert ours.languages is not None
        assert {code: index for code, (_, index) in ours.languages.tokens.items()} == theirs.lang_code_to_id
        wanted = theirs._build_translation_inputs(TEXTS[:9], src_lang="zh", tgt_lang="fr")
        assert [row.ids for row in ours.encode(TEXTS[:9], language="zh")] == wanted["input_ids"]
        assert ours.languages.forced("fr") == wanted["forced_bos_token_id"]


def test_an_nllb_model_is_the_tokenizer_of_its_class(tmp_path: Path) -> None:
    for n, settings in enumerate(({}, {"src_lang": "fra_Latn", "legacy_behaviour": True})):
        folder = save("NllbTokenizer", tmp_path / str(n), **settings)
        strip(folder)
        pieces = [*((text, 0.0, kind) for text, kind in UNK_BOS_EOS), *bpe_pieces()]
        kept = [piece for piece in pieces if not piece[0].startswith("<0x")]
        write_pieces(folder / "sentencepiece.bpe.model", kept, kind=2, charsmap=white_space_map())
        stored = agrees(folder, ("a fra_Latn b",))
        frame = [part.get("SpecialToken", {}).get("id") for part in stored["post_processor"]["single"]]
        assert frame == ([None, "</s>", "fra_Latn"] if settings else ["eng_Latn", None, "</s>"])


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ({"<unk>": 0, "a": 7}, r"vocab\.json: a is 7, not an id below 2"),
        ({"<unk>": 0, "a": 0}, r"vocab\.json gives one id to two tokens"),
        ({"a": 0, "</s>": 1}, r"vocab\.json has no '<unk>'"),
        ({}, r"vocab\.json has no '<unk>'"),
    ],
)
def test_ids_that_cannot_be_are_one_line(vocabulary: dict[str, int], message: str, tmp_path: Path) -> None:
    from tests.oracle.checkpoints.tokenizers import marian_files

    marian_files(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "MarianTokenizer"}')
    with pytest.raises(CheckpointError, match=message):
        rebuilt(tmp_path)
