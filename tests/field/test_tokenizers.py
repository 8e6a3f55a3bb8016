"""Tokenizers as repositories have them: without tokenizer.json, of another class or type, with holes and repeats."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

import isoform as package
from isoform.reference.classes import class_facts
from isoform.reference.model import open_model
from isoform.runtimes.preprocess.text.tokenizer import TextTokenizer
from tests.field.making import Change, copied, isoform, keys, refused, task_of
from tests.oracle import tiny
from tests.reference.tokenizers.making import change, save

TEXTS = ["Hello World naïve café 東京", "a  b\tc", "[MASK] x [PAD] y", "ÀÉ don't 123"]


def ids(folder: Path, texts: list[str] = TEXTS) -> list[list[int]]:
    """What a pipeline over the checkpoint reads."""
    model = open_model(folder)  # keeps the folder of what is rebuilt
    found = model.checkpoint.folder
    return [row.ids for row in TextTokenizer(found, class_facts(found)).encode(texts)]


def ids_of_transformers(folder: Path, texts: list[str] = TEXTS) -> list[list[int]]:
    from transformers import AutoTokenizer

    found: list[list[int]] = AutoTokenizer.from_pretrained(folder)(texts)["input_ids"]
    return found


# ------------------------------------------------------------------ the source form
def words(after: Callable[[str], str] = str, encoding: str = "utf-8") -> Change:
    """vocab.txt in the place of tokenizer.json."""

    def to_words(folder: Path) -> None:
        vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
        (folder / "tokenizer.json").unlink()
        text = "".join(f"{word}\n" for word in sorted(vocabulary, key=vocabulary.__getitem__))
        (folder / "vocab.txt").write_bytes(after(text).encode(encoding))

    return to_words


def merges(folder: Path) -> None:
    """vocab.json, merges.txt and added_tokens.json in the place of tokenizer.json."""
    data = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(data["model"]["vocab"]))
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in data["model"]["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{pair}\n" for pair in pairs))
    added = {one["content"]: one["id"] for one in data["added_tokens"]}
    (folder / "added_tokens.json").write_text(
        json.dumps({token: n for token, n in added.items() if token not in data["model"]["vocab"]})
    )


def without_merges(folder: Path) -> None:
    merges(folder)
    (folder / "merges.txt").unlink()


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("bert_seqcls", words()),
        ("bert_seqcls", words(lambda text: text.rstrip("\n"))),
        ("bert_seqcls", words(lambda text: text.replace("\n", "\r\n"))),
        ("bert_seqcls", words(encoding="utf-8-sig")),
        ("bert_seqcls", words(lambda text: text + "[PAD]\nthe\n")),
        ("electra_seqcls", words()),
        ("gpt2", merges),
        ("roberta_seqcls", merges),
        ("whisper", merges),
        ("clip", merges),
    ],
    ids=["words", "no last line end", "CRLF", "BOM", "repeats", "electra", "gpt2", "roberta", "whisper", "clip"],
)
def test_a_source_form_is_rebuilt_as_transformers_does_it(name: str, form: Change, tmp_path: Path) -> None:
    folder = copied(name, tmp_path, form)
    assert ids(folder) == ids_of_transformers(folder)


def test_a_bundle_of_a_source_form_runs_and_holds_the_tokenizer(tmp_path: Path) -> None:
    folder, out = copied("bert_seqcls", tmp_path, words()), tmp_path / "out"
    assert isoform("export", folder, "--to", "onnx", "--out", out).code == 0
    with (
        package.pipeline("text-classification", str(out)) as bundle,
        package.pipeline("text-classification", str(tiny("bert_seqcls"))) as before,
    ):
        (ours,), (theirs,) = bundle("The naïve CAT"), before("The naïve CAT")
        assert ours == {"label": theirs["label"], "score": pytest.approx(theirs["score"], abs=1e-5)}
    assert (out / "tokenizer.json").is_file()
    assert ids_of_transformers(out) == ids(folder)


@pytest.mark.parametrize(
    ("name", "form", "said"),
    [
        ("bert", words(lambda text: ""), "vocab.txt holds no tokens"),
        ("gpt2", without_merges, "has vocab.json and no merges.txt"),
        ("llama", lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json"),
    ],
)
def test_a_source_form_with_a_part_missing_is_one_line(name: str, form: Change, said: str, tmp_path: Path) -> None:
    assert said in refused("run", task_of(name), copied(name, tmp_path, form), "x")


# ------------------------------------------------------------------ a class over a model of another type
@pytest.mark.parametrize(
    ("name", "kind"),
    [("bert_seqcls", "XLMRobertaTokenizer"), ("bert_seqcls", "GPT2Tokenizer"), ("llama_b", "BertTokenizer")],
)
@pytest.mark.parametrize("named", [True, False])
def test_a_model_of_another_type_is_taken_as_it_stands(name: str, kind: str, named: bool, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder = copied(name, tmp_path)
    shutil.copy(save(kind, tmp_path / "other") / "tokenizer.json", folder)
    if not named:
        change(folder / "tokenizer_config.json", tokenizer_class=None)
    stands = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert ids(folder, TEXTS[:2]) == [stands.encode(text).ids for text in TEXTS[:2]]
    options: dict[str, Any] = {"max_new_tokens": 1} if name == "llama_b" else {}
    with package.pipeline(task_of(name), str(folder)) as pipe:
        assert pipe("a", **options)


# ------------------------------------------------------------------ a class whose behaviour is code
def gemma(folder: Path) -> None:
    made = save("GemmaTokenizer", folder.parent / "gemma")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(made / file, folder)


@pytest.mark.parametrize("kind", ["Siglip2Tokenizer", "GemmaTokenizerFast", "PreTrainedTokenizerFast"])
def test_a_known_class_reads_as_transformers_has_it(kind: str, tmp_path: Path) -> None:
    folder = copied("siglip", tmp_path, gemma, keys("tokenizer_config.json", tokenizer_class=kind))
    assert ids(folder) == ids_of_transformers(folder)
    assert (ids(folder, ["The CAT"]) == ids(folder, ["the cat"])) is (kind == "Siglip2Tokenizer")


@pytest.mark.parametrize("kind", ["BertJapaneseTokenizer", "XLNetTokenizer", "MyTokenizer", "siglip2tokenizer"])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
def test_a_class_that_is_not_known_is_refused_by_name(kind: str, file: str, tmp_path: Path) -> None:
    folder = copied("bert_seqcls", tmp_path, keys(file, tokenizer_class=kind))
    if file == "config.json":
        change(folder / "tokenizer_config.json", tokenizer_class=None)
    assert f"the tokenizer class {kind} is not supported" in refused("run", "text-classification", folder, "x")


# ------------------------------------------------------------------ CTC vocabularies
def _without(*gone: int, also: Mapping[str, Any] = MappingProxyType({})) -> Change:
    def to(folder: Path) -> None:
        path = folder / "vocab.json"
        kept = {token: n for token, n in json.loads(path.read_text()).items() if n not in gone}
        path.write_text(json.dumps(kept | dict(also), ensure_ascii=False), encoding="utf-8")

    return to


@pytest.mark.parametrize(
    "vocabulary",
    [
        _without(also={"ß": 31}),
        _without(7, also={"é": 7, "É": 7, "è": 7}),
        _without(also={"\u00e9": 7, "e\u0301": 7}),
        _without(9),
        _without(9, 10, 11, 12),
        _without(1, 2),
        _without(0),
        _without(9, also={"ch": 9}),
        _without(also={"<a>": 32, "<b>": 36, "ф": 40}),
    ],
    ids=["repeat", "accents", "two forms of é", "hole", "holes", "no ends", "no pad", "two letters", "more names"],
)
def test_a_ctc_vocabulary_gives_the_text_of_transformers(vocabulary: Change, tmp_path: Path) -> None:
    from transformers import pipeline

    folder = copied("wav2vec2_ctc", tmp_path, vocabulary)
    sound = (0.3 * np.random.default_rng(3).standard_normal(32000)).astype(np.float32)
    with package.pipeline("automatic-speech-recognition", str(folder)) as pipe:
        ours = pipe(sound)["text"]
    assert ours == pipeline("automatic-speech-recognition", model=str(folder), device="cpu")(sound)["text"]


@pytest.mark.parametrize("number", [-1, "3", True, 2.5])
def test_a_ctc_id_that_is_none_is_one_line(number: Any, tmp_path: Path) -> None:
    folder = copied("wav2vec2_ctc", tmp_path, _without(also={"q": number}))
    assert "vocab.json: q is " in refused("run", "automatic-speech-recognition", folder, tmp_path / "none.wav")


# ------------------------------------------------------------------ a token id beyond the embedding
def token_at(content: str, number: int) -> Change:
    """The tokenizer with names for every id up to a token of its own behind the embedding."""

    def to(folder: Path) -> None:
        path = folder / "tokenizer.json"
        data = json.loads(path.read_text())
        known = {*data["model"]["vocab"].values(), *(one["id"] for one in data["added_tokens"])}
        plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for n in range(max(known) + 1, number + 1):
            name = content if n == number else f"<filler{n}>"
            data["added_tokens"].append({"id": n, "content": name, "special": True, **plain})
        path.write_text(json.dumps(data))

    return to


@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "torchscript", "llamacpp"])
def test_a_token_beyond_the_embedding_is_one_line(backend: str, tmp_path: Path) -> None:
    folder = copied("llama_b", tmp_path, token_at("[PAD]", 607))
    said = refused("run", "text-generation", folder, "x [PAD] y", "--backend", backend)
    assert "the tokenizer gives '[PAD]' the id 607, and the model's embedding has 607 rows" in said
    assert isoform("run", "text-generation", folder, "x y", "--backend", backend, "--set", "max_new_tokens=2").code == 0


def test_a_token_of_the_chat_template_beyond_the_embedding_is_one_line(tmp_path: Path) -> None:
    rows = json.loads((tiny("llama3_instruct") / "config.json").read_text())["vocab_size"]
    folder = copied("llama3_instruct", tmp_path, token_at("<|tool|>", rows))
    (folder / "chat_template.jinja").write_text("<|tool|>{% for m in messages %}{{ m.content }}{% endfor %}")
    with (
        package.pipeline("text-generation", str(folder)) as pipe,
        pytest.raises(package.errors.InputError, match=rf"'<\|tool\|>' the id {rows}"),
    ):
        pipe([{"role": "user", "content": "hi"}], max_new_tokens=2)


@pytest.mark.parametrize("targets", [["<new>"], ["the", "<new>"]])
def test_a_target_beyond_the_logits_is_one_line(targets: list[str], tmp_path: Path) -> None:
    folder = copied("bert", tmp_path, token_at("<new>", 500))
    said = refused("run", "fill-mask", folder, "the [MASK]", "--set", f"targets={json.dumps(targets)}")
    assert "'<new>' the id 500" in said
    assert "'<new>' the id 500" in refused("run", "fill-mask", folder, "the <new> [MASK]")


# ------------------------------------------------------------------ clients that add BOS only when told
@pytest.mark.parametrize(
    ("name", "stated", "bos"),
    [
        ("llama", {}, True),
        ("llama_b", {"add_bos_token": False}, True),
        ("llama_b", {"add_eos_token": True}, True),
        ("gemma2", {"add_eos_token": True}, True),
        ("qwen2", {"add_bos_token": True}, False),
        ("gpt2", {"add_bos_token": True}, False),
    ],
)
def test_a_bundle_states_the_ends_that_are_added(name: str, stated: dict[str, Any], bos: bool, tmp_path: Path) -> None:
    folder, out = copied(name, tmp_path, keys("tokenizer_config.json", **stated)), tmp_path / "out"
    assert isoform("export", folder, "--to", "torchscript", "--no-check", "--out", out).code == 0
    found = json.loads((out / "tokenizer_config.json").read_text())
    assert bool(found.get("add_bos_token")) is bos
    assert not found.get("add_eos_token")
    assert ids_of_transformers(out) == ids_of_transformers(folder) == ids(folder)
