"""Whatever is wrong with a file beside the model: an answer, or one line that says so."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from isoform.errors import CheckpointError, IsoformError
from isoform.exporters.gguf.tokenizer import tokenizer_files, tokenizer_metadata
from isoform.reference.classes import class_facts
from isoform.reference.tokenizers.ends import stated_ends
from isoform.reference.tokenizers.sources import rebuilt
from isoform.runtimes.preprocess.text.chat import ChatTemplate
from isoform.runtimes.preprocess.text.ctc_vocabulary import CtcVocabulary
from isoform.runtimes.preprocess.text.tokenizer import TextTokenizer
from tests.oracle.checkpoints.tokenizers import CONTROL, UNKNOWN, write_pieces
from tests.reference.tokenizers.making import (
    change,
    save,
    strip,
    unigram_pieces,
    write_merges,
    write_words,
)

Tiny = Callable[[str], Path]

JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 3, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), "", "x", "\ud800", "\x00"),
    *([], {}, [[]], ["a", 3], {"content": 3}, {"content": None}, {"content": ""}, {"a": {"b": []}}, [None], "a" * 5000),
    *({"type": "Sequence"}, {"id": 2**31, "content": "q"}, "[CLS]", {"-1": {"content": "x"}}, {"9" * 30: {}}),
)


def places(data: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value of a JSON document."""
    entries = list(data.items()) if isinstance(data, dict) else list(enumerate(data)) if isinstance(data, list) else []
    for key, value in entries:
        yield data, key
        yield from places(value)


def damage(path: Path, rng: random.Random) -> str:
    """Change one thing in a file; says what."""
    raw = path.read_bytes()
    if path.suffix != ".json" or rng.random() < 0.2:
        kind = rng.randrange(3)
        at = rng.randrange(len(raw) + 1)
        if kind == 0:
            path.write_bytes(raw[:at])
        elif kind == 1:
            path.write_bytes(raw[:at] + rng.randbytes(3) + raw[at + 3 :])
        else:
            path.write_bytes(raw[:at] + rng.choice([b"\x00", b"\xff\xfe", b"\n\n", b"\xed\xa0\x80", b'"']) + raw[at:])
        return f"bytes of {path.name} at {at}"
    data = copy.deepcopy(json.loads(raw))
    top = list(places(data))
    if path.name == "tokenizer.json":  # what is not its vocabulary
        top = [(box, key) for box, key in top if len(box) < 40]
    if not top:
        path.write_text(json.dumps(rng.choice(JUNK)))
        return f"all of {path.name}"
    box, key = rng.choice(top)
    if rng.random() < 0.25:
        del box[key]
        what = "without"
    else:
        value = rng.choice(JUNK)
        box[key] = value
        what = f"= {value!r:.40} for"
    path.write_text(json.dumps(data))
    return f"{what} {key} of {path.name}"


def use(folder: Path) -> None:
    """Everything that is done with the files of a tokenizer."""
    files = rebuilt(folder)
    for name, content in (files or {}).items():
        (folder / name).write_text(content, encoding="utf-8")
    facts = class_facts(folder)
    if "characters" in facts:
        CtcVocabulary(folder, facts).spans([0, 1, 1, 5, 40, 2], "word")
        return
    tokenizer = TextTokenizer(folder, facts)
    rows = tokenizer.encode(["Hello [MASK] the house</s> 你", "x"], truncation=True, max_length=6)
    tokenizer.pad(rows)
    tokenizer.decode(rows[0].ids, skip_special_tokens=True)
    assert tokenizer.special_count() >= 0
    chat = ChatTemplate.read(folder, tokenizer.special)
    if "default" in chat.templates:
        chat.render([{"role": "user", "content": "Hello"}])
    stated_ends(folder, facts["tokenizer"])
    tokenizer_metadata(tokenizer_files(folder), 4096)


def kinds(tiny: Tiny, folder: Path) -> Iterator[Path]:
    for name in ("bert", "llama_b", "qwen2", "gemma3_b", "wav2vec2_ctc_b"):
        yield Path(shutil.copytree(tiny(name), folder / name, ignore=shutil.ignore_patterns("*.safetensors", "*.bin")))
    yield save("XLMRobertaTokenizer", folder / "pieces")
    for name, write in (("BertTokenizer", write_words), ("RobertaTokenizer", write_merges)):
        made = save(name, folder / f"source_{name}")
        write(made)
        yield made
    made = save("T5Tokenizer", folder / "source_pieces")
    strip(made)
    specials = (("<pad>", CONTROL), ("</s>", CONTROL), ("<unk>", UNKNOWN))
    write_pieces(made / "spiece.model", unigram_pieces(*specials), unk_id=2)
    yield made


def dressed(folder: Path) -> None:
    """The settings that real folders have, so that there is something to damage."""
    path = folder / "tokenizer_config.json"
    if path.is_file():
        decoder = {"0": {"content": "[PAD]", "lstrip": False, "special": True}}
        change(path, strip_accents=True, do_lower_case=True, extra_special_tokens=["<e>"], model_max_length=64)
        if folder.name == "bert":
            change(path, added_tokens_decoder=decoder, pad_token={"content": "[PAD]", "lstrip": False})
    (folder / "special_tokens_map.json").write_text('{"mask_token": {"content": "<m>", "lstrip": true}}')
    (folder / "added_tokens.json").write_text('{"<new>": 900}')
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")


DAMAGES = 250


def test_a_damaged_file_is_an_answer_or_one_line(tiny: Tiny, tmp_path: Path) -> None:
    rng = random.Random(14)
    folders = list(kinds(tiny, tmp_path / "whole"))
    for folder in folders:
        dressed(folder)
    refused = 0
    for n in range(DAMAGES):
        folder = Path(shutil.copytree(rng.choice(folders), tmp_path / "damaged"))
        files = sorted(path for path in folder.iterdir() if path.name != "golden.npz" and path.stat().st_size < 2**20)
        what = damage(rng.choice(files), rng)
        try:
            use(folder)
        except IsoformError as error:
            refused += 1
            assert "\n" not in str(error), what
            assert len(str(error)) < 2000, what
        except Exception as error:
            raise AssertionError(f"damage {n}: {what}: {type(error).__name__}: {error}") from error
        shutil.rmtree(folder)
    assert DAMAGES * 0.2 < refused < DAMAGES * 0.9, "damages of both kinds"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("cls_token", ["a"], r"cls_token is \['a'\], not a text, or an object with content"),
        ("pad_token", {"lstrip": True}, r"pad_token\.content is None, not a text"),
        ("sep_token", {"content": "x", "rstrip": "y"}, r"sep_token\.rstrip is 'y', not true or false"),
        ("strip_accents", 3, r"strip_accents is 3, not true or false"),
        ("added_tokens_decoder", "x", r"added_tokens_decoder is 'x', not an object"),
        ("added_tokens_decoder", {"0": "x"}, r"added_tokens_decoder\.0 is 'x', not an object"),
        ("added_tokens_decoder", {"-1": {"content": "x"}}, r"added_tokens_decoder\.-1 is .*, not at an id from 0"),
        ("extra_special_tokens", [3], r"extra_special_tokens is 3, not|extra_special_tokens is \[3\], not"),
        ("model_max_length", "512", r"model_max_length is '512', not a whole number"),
        ("padding_side", "middle", r"padding_side is 'middle', not one of 'left', 'right'"),
        ("tokenizer_class", 3, r"tokenizer_class is 3, not a text"),
        ("chat_template", 3, r"chat_template is 3, not a text, or a list of objects with name and template"),
        ("chat_template", [{"name": "default"}], r"chat_template is .*, not a text, or a list of objects"),
    ],
)
def test_a_setting_of_another_type_names_file_key_and_value(
    key: str, value: Any, message: str, tiny: Tiny, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny("bert"), tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors")))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    change(folder / "tokenizer_config.json", **{key: value})
    with pytest.raises(CheckpointError, match=rf"tokenizer_config\.json: {message}"):
        use(folder)


def test_a_named_token_that_is_taken_away_is_said(tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("bert"), tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors")))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "cls_token": None}))
    with pytest.raises(CheckpointError, match="cls_token is None, not a token, which the tokenizer's class needs"):
        use(folder)


def test_a_template_that_is_no_text_is_said(tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("qwen2"), tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors")))
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe{{ messages }}")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja is not UTF-8 text"):
        use(folder)
