"""A checkpoint whose tokenizer is in the form before tokenizer.json: opened, exported and run like any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import isoform
from isoform.exporters.gguf.metadata import metadata
from isoform.exporters.gguf.tokenizer import tokenizer_files, tokenizer_metadata
from isoform.manifest import Manifest
from isoform.reference.model import open_model
from tests.oracle.checkpoints.tokenizers import CONTROL, UNKNOWN, write_pieces
from tests.reference.tokenizers.making import (
    bpe_pieces,
    strip,
    write_merges,
    write_words,
)

Tiny = Callable[[str], Path]


def plain(name: str, tiny: Tiny, folder: Path, write: Callable[[Path], object]) -> Path:
    """A copy of a tiny checkpoint, with its vocabulary in the older files."""
    made = Path(shutil.copytree(tiny(name), folder / name))
    write(made)
    return made


def test_a_classifier_with_vocab_txt_answers_as_with_its_tokenizer_json(tiny: Tiny, tmp_path: Path) -> None:
    folder = plain("bert_seqcls", tiny, tmp_path, write_words)
    texts = ["The house is beautiful.", "Café, naïve [MASK] 你好"]
    with isoform.pipeline("text-classification", tiny("bert_seqcls")) as classify:
        want = classify(texts, top_k=None)
    with isoform.pipeline("text-classification", folder) as classify:
        assert classify(texts, top_k=None) == want
    assert not (folder / "tokenizer.json").exists()
    isoform.export(folder, tmp_path / "bundle", to=["torchscript"])
    assert (tmp_path / "bundle" / "tokenizer.json").is_file()
    stored = Manifest.read(tmp_path / "bundle")
    assert stored.source["path"] == str(folder.absolute())
    assert stored.facts["tokenizer"]["model"]["type"] == "WordPiece"
    with isoform.pipeline("text-classification", tmp_path / "bundle") as classify:
        for ours, theirs in zip(classify(texts, top_k=None), want, strict=True):
            assert [one["label"] for one in ours] == [one["label"] for one in theirs]


def test_the_temporary_folder_goes_with_the_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    model = open_model(plain("bert", tiny, tmp_path, write_words))
    made = model.checkpoint.folder
    assert made != model.checkpoint.opened == tmp_path / "bert"
    assert (made / "config.json").read_bytes() == (tiny("bert") / "config.json").read_bytes()
    saved = tmp_path / "saved"
    model.save(saved)
    assert json.loads((saved / "tokenizer.json").read_text())["model"]["type"] == "WordPiece"
    del model
    assert not made.exists()


def test_speech_with_vocab_json_and_merges_txt_is_transcribed(tiny: Tiny, tmp_path: Path) -> None:
    import numpy as np

    def write(folder: Path) -> None:
        added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
        write_merges(folder)
        (folder / "added_tokens.json").write_text(json.dumps({token["content"]: token["id"] for token in added}))

    folder = plain("whisper", tiny, tmp_path, write)
    sound = np.sin(np.arange(16000) / 20).astype(np.float32)
    with isoform.pipeline("automatic-speech-recognition", tiny("whisper")) as read:
        want = read(sound)
    with isoform.pipeline("automatic-speech-recognition", folder) as read:
        assert read(sound) == want


@pytest.mark.parametrize(("name", "write"), [("bert", write_words), ("qwen2", write_merges)])
def test_the_gguf_vocabulary_is_that_of_the_tokenizer_json(
    name: str, write: Callable[[Path], object], tiny: Tiny, tmp_path: Path
) -> None:
    def kept(folder: Path) -> None:
        added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
        write(folder)
        path = folder / "tokenizer_config.json"
        decoder = {str(token["id"]): {key: token[key] for key in token if key != "id"} for token in added}
        path.write_text(json.dumps({**json.loads(path.read_text()), "added_tokens_decoder": decoder}))

    folder = plain(name, tiny, tmp_path, kept)
    models = [open_model(source) for source in (tiny(name), folder)]
    files = [tokenizer_files(model.checkpoint.folder) for model in models]
    theirs, ours = (tokenizer_metadata(each, each["config.json"]["vocab_size"]) for each in files)
    assert ours == theirs


def test_a_sentencepiece_model_goes_into_a_gguf_file_as_it_stands(tiny: Tiny, tmp_path: Path) -> None:
    folder = plain("llama_b", tiny, tmp_path, strip)
    specials = (("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL))
    write_pieces(folder / "tokenizer.model", bpe_pieces(*specials)[:600], kind=2, byte_fallback=True)
    model = open_model(folder, "text-generation")
    assert (model.checkpoint.folder / "tokenizer.json").is_file()
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    assert model.family.gguf is not None
    found = {key: value for key, value in metadata(model, model.family.gguf, (), None).items() if "tokenizer" in key}
    assert found == tokenizer_metadata(tokenizer_files(folder), rows)
