"""Tokenizers of every class that isoform builds itself, made by transformers over small vocabularies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.oracle.checkpoints import tokenizers as small

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ENDS = ("<s>", "<pad>", "</s>", "<unk>")
GEMMA = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
END = "<|endoftext|>"


def _merged(*specials: str, end: str | None = None) -> dict[str, Any]:
    vocabulary, merges = small.byte_level(450, specials, end=end)
    return {"vocab": vocabulary, "merges": merges}


def _pieces(*specials: str, last: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"vocab": small.unigram(400, specials) + [(piece, 0.0) for piece in last]}


def _sentencepiece(specials: tuple[str, ...]) -> dict[str, Any]:
    vocabulary, merges = small.sentencepiece(620, specials)
    return {"vocab": vocabulary, "merges": merges}


def _clip() -> dict[str, Any]:
    vocabulary, merges = small._clip()
    return {"vocab": dict(vocabulary), "merges": merges}


MADE: dict[str, Callable[[], dict[str, Any]]] = {
    "AlbertTokenizer": lambda: _pieces("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"),
    "BertTokenizer": lambda: {"vocab": dict(small.wordpiece(500, WORDS))},
    "CLIPTokenizer": _clip,
    "CamembertTokenizer": lambda: _pieces(
        "<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>", last=("<mask>",)
    ),
    "CodeGenTokenizer": lambda: _merged(end=END),
    "CohereTokenizer": lambda: _merged("<PAD>", "<UNK>", "<CLS>", "<SEP>", "<MASK_TOKEN>", "<BOS_TOKEN>"),
    "DebertaTokenizer": lambda: _merged("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"),
    "DebertaV2Tokenizer": lambda: _pieces("[PAD]", "[CLS]", "[SEP]", "[UNK]", last=("[MASK]",)),
    "GPT2Tokenizer": lambda: _merged(end=END),
    "GPTNeoXTokenizer": lambda: _merged(END, "<|padding|>"),
    "GemmaTokenizer": lambda: _sentencepiece(GEMMA),
    "LlamaTokenizer": lambda: _sentencepiece(("<unk>", "<s>", "</s>")),
    "MPNetTokenizer": lambda: {"vocab": dict(small.wordpiece(500, ("<s>", "<pad>", "</s>", "[UNK]", "<mask>")))},
    "Qwen2Tokenizer": lambda: _merged(end=END),
    "Qwen3_5Tokenizer": lambda: _merged(end=END),
    "RobertaTokenizer": lambda: _merged(*ENDS, end="<mask>"),
    "Siglip2Tokenizer": lambda: _sentencepiece(GEMMA),
    "T5Tokenizer": lambda: _pieces("<pad>", "</s>", "<unk>", last=tuple(f"<extra_id_{n}>" for n in range(99, -1, -1))),
    "WhisperTokenizer": lambda: _merged(end=END),
    "XLMRobertaTokenizer": lambda: _pieces(*ENDS, last=("<mask>",)),
}
"""Class -> the arguments that make one."""

SETTINGS: dict[str, list[dict[str, Any]]] = {
    "AlbertTokenizer": [{"keep_accents": True, "do_lower_case": False}, {"add_prefix_space": False}],
    "BertTokenizer": [{"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False}],
    "CamembertTokenizer": [{"add_prefix_space": False}],
    "CohereTokenizer": [{"add_prefix_space": True}],
    "DebertaTokenizer": [{"add_prefix_space": True}],
    "DebertaV2Tokenizer": [
        {"do_lower_case": True, "split_by_punct": True},
        {"add_prefix_space": False},
        {"unk_id": 3},
    ],
    "GPT2Tokenizer": [{"add_prefix_space": True}],
    "GPTNeoXTokenizer": [{"add_prefix_space": True}],
    "LlamaTokenizer": [{"legacy": True}, {"add_prefix_space": False}],
    "MPNetTokenizer": [{"do_lower_case": False, "strip_accents": True}],
    "RobertaTokenizer": [{"add_prefix_space": True, "trim_offsets": False}],
    "T5Tokenizer": [{"extra_ids": 7}],
    "XLMRobertaTokenizer": [{"add_prefix_space": False}, {"mask_token": "<other>", "eos_token": "<s>"}],
}
"""Class -> settings of tokenizer_config.json that change what it does."""


def save(name: str, folder: Path, **settings: Any) -> Path:
    """The tokenizer's files in `folder`, as transformers writes them."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    getattr(transformers, name)(**MADE[name](), model_max_length=512).save_pretrained(folder)
    change(folder / "tokenizer_config.json", tokenizer_class=name, **settings)
    (folder / "config.json").write_text("{}")
    return folder


def change(path: Path, **settings: Any) -> None:
    """Set keys of a JSON file; None takes one away."""
    stored = {**json.loads(path.read_text(encoding="utf-8")), **settings}
    path.write_text(json.dumps({key: value for key, value in stored.items() if value is not None}), encoding="utf-8")
