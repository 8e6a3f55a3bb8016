"""A folder with tiny checkpoints, pictures, sound and tables, in which every form runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from tests import oracle

MODELS = (
    *("bert", "bert_b", "bert_ner", "bert_qa", "bert_seqcls", "distilbert_seqcls"),
    *("llama_b", "llama3_instruct", "qwen2", "bart", "nllb", "t5"),
    *("vit_cls", "dinov2", "clip", "siglip", "blip_caption", "blip_vqa"),
    *("wav2vec2", "wav2vec2_ctc", "moonshine"),
)
RATE = 16_000


def lay_out(folder: Path) -> None:
    """Write the files that forms name."""
    for name in MODELS:
        (folder / name).symlink_to(oracle.tiny(name))
    _write_speech(folder / "whisper")
    _write_inference(folder / "bert_nli")
    for n, name in enumerate(("cat.png", "dog.jpg")):
        pixels = np.random.default_rng(n).integers(0, 255, (40, 50, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name, quality=95)
    for n, name in enumerate(("yes.wav", "no.flac")):
        samples = np.random.default_rng(n).standard_normal(RATE // 2) * 0.1
        soundfile.write(folder / name, samples, RATE)
    reviews = [{"text": text, "pair": "a dog"} for text in ("the cat sat", "a dog ran", "on the mat")]
    (folder / "reviews.json").write_text(json.dumps(reviews), encoding="utf-8")


def _write_inference(folder: Path) -> None:
    """The tiny classifier with the labels of a model that says what follows from what."""
    shutil.copytree(oracle.tiny("bert_seqcls"), folder)
    labels = ("contradiction", "entailment")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["id2label"] = {str(n): name for n, name in enumerate(labels)}
    config["label2id"] = {name: n for n, name in enumerate(labels)}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def _write_speech(folder: Path) -> None:
    """The tiny speech model with the settings that those on the Hub have."""
    shutil.copytree(oracle.tiny("whisper"), folder)
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings.pop("_from_model_config", None)  # with it, transformers leaves out what config.json does not have
    settings["suppress_tokens"] = [1, 2, 7, 8, 9, 10, 14, 25]
    path.write_text(json.dumps(settings), encoding="utf-8")
    added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["additional_special_tokens"] = [token["content"] for token in added if token["special"]]
    path.write_text(json.dumps(config), encoding="utf-8")
