"""Whatever is wrong with a file beside the model: an answer, or one line that says so."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from isoform.errors import IsoformError
from isoform.exporters.gguf.tokenizer import tokenizer_files, tokenizer_metadata
from isoform.reference.classes import class_facts
from isoform.reference.tokenizers.ends import stated_ends
from isoform.reference.tokenizers.sources import rebuilt
from isoform.runtimes.preprocess.text.chat import ChatTemplate
from isoform.runtimes.preprocess.text.ctc_vocabulary import CtcVocabulary
from isoform.runtimes.preprocess.text.tokenizer import TextTokenizer
from tests.reference.tokenizers.making import (
    CONTROL,
    UNKNOWN,
    change,
    save,
    strip,
    unigram_pieces,
    write_merges,
    write_pieces,
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
