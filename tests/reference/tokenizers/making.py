"""Tokenizers of every class that isoform builds itself, made by transformers over small vocabularies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isoform.reference.tokenizers.language_codes import MBART, MBART_50, NLLB
from tests.oracle.checkpoints import tokenizers as small
from tests.oracle.checkpoints.tokenizers import BYTE, NORMAL, USER

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ENDS = ("<s>", "<pad>", "</s>", "<unk>")
GEMMA = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
END = "<|endoftext|>"
PROMPT = ("<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|notimestamps|>")


def _merged(*specials: str, end: str | None = None) -> dict[str, Any]:
    vocabulary, merges = small.byte_level(450, specials, end=end)
    return {"vocab": vocabulary, "merges": merges}


def _pieces(*specials: str, last: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"vocab": small.unigram(400, specials) + [(piece, 0.0) for piece in last]}


def _spoken(codes: tuple[str, ...]) -> dict[str, Any]:
    """A Unigram vocabulary that ends with the tokens of languages and a mask."""
    return _pieces(*ENDS, last=(*codes, "<mask>"))


def _nllb() -> dict[str, Any]:
    vocabulary, merges = small.sentencepiece(620, ENDS)
    kept = [piece for piece in vocabulary if not piece.startswith("<0x")]
    return {"vocab": {piece: n for n, piece in enumerate((*kept, *NLLB, "<mask>"))}, "merges": merges}


def _pegasus() -> dict[str, Any]:
    masks = ("<mask_1>", "<mask_2>", *(f"<unk_{n}>" for n in range(2, 103)))
    return {"vocab": [*_pieces("<pad>", "</s>", *masks, "<unk>")["vocab"]]}


def _sentencepiece(specials: tuple[str, ...]) -> dict[str, Any]:
    vocabulary, merges = small.sentencepiece(620, specials)
    return {"vocab": vocabulary, "merges": merges}


def _clip() -> dict[str, Any]:
    vocabulary, merges = small._clip()
    return {"vocab": dict(vocabulary), "merges": merges}


OF_WORDS = ("LayoutLMv3Tokenizer",)
"""Classes that read words with boxes and no texts."""

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
    "DistilBertTokenizer": lambda: {"vocab": dict(small.wordpiece(500, WORDS))},
    "GPT2Tokenizer": lambda: _merged(end=END),
    "GPTNeoXTokenizer": lambda: _merged(END, "<|padding|>"),
    "GemmaTokenizer": lambda: _sentencepiece(GEMMA),
    "LayoutLMv3Tokenizer": lambda: _merged(*ENDS, end="<mask>"),
    "LlamaTokenizer": lambda: _sentencepiece(("<unk>", "<s>", "</s>")),
    "MBart50Tokenizer": lambda: _spoken(MBART_50),
    "MBartTokenizer": lambda: _spoken(MBART),
    "MPNetTokenizer": lambda: {"vocab": dict(small.wordpiece(500, ("<s>", "<pad>", "</s>", "[UNK]", "<mask>")))},
    "NllbTokenizer": _nllb,
    "PegasusTokenizer": _pegasus,
    "Qwen2Tokenizer": lambda: _merged(end=END),
    "Qwen3_5Tokenizer": lambda: _merged(end=END),
    "RobertaTokenizer": lambda: _merged(*ENDS, end="<mask>"),
    "Siglip2Tokenizer": lambda: _sentencepiece(GEMMA),
    "T5Tokenizer": lambda: _pieces("<pad>", "</s>", "<unk>", last=tuple(f"<extra_id_{n}>" for n in range(99, -1, -1))),
    "WhisperTokenizer": lambda: _merged(*PROMPT, end=END),
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
    "DistilBertTokenizer": [{"do_lower_case": False}],
    "GPT2Tokenizer": [{"add_prefix_space": True}],
    "GPTNeoXTokenizer": [{"add_prefix_space": True}],
    "LayoutLMv3Tokenizer": [{"add_prefix_space": False, "trim_offsets": False}],
    "LlamaTokenizer": [{"legacy": True}, {"add_prefix_space": False}],
    "MBart50Tokenizer": [{"src_lang": "ro_RO"}],
    "MBartTokenizer": [{"src_lang": "de_DE", "tgt_lang": "en_XX"}],
    "MPNetTokenizer": [{"do_lower_case": False, "strip_accents": True}],
    "NllbTokenizer": [{"src_lang": "fra_Latn", "legacy_behaviour": True}],
    "PegasusTokenizer": [{"offset": 5, "mask_token_sent": "<mask_7>"}],
    "RobertaTokenizer": [{"add_prefix_space": True, "trim_offsets": False}],
    "T5Tokenizer": [{"extra_ids": 7}],
    "WhisperTokenizer": [{"language": "en", "task": "transcribe"}, {"predict_timestamps": True}],
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


# ------------------------------------------------------------------ the files that came before tokenizer.json
def strip(folder: Path) -> dict[str, Any]:
    """Take tokenizer.json away; returns what it held."""
    data: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").unlink()
    return data


def write_words(folder: Path) -> None:
    """vocab.txt in the place of tokenizer.json."""
    words = strip(folder)["model"]["vocab"]
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in sorted(words, key=words.__getitem__)))


def write_merges(folder: Path) -> None:
    """vocab.json and merges.txt in the place of tokenizer.json."""
    model = strip(folder)["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    lines = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{line}\n" for line in lines), encoding="utf-8")


def unigram_pieces(*specials: tuple[str, int], user: tuple[str, ...] = ()) -> list[tuple[str, float, int]]:
    """Pieces of a Unigram model behind the special ones, with user-defined ones among them."""
    found = [(text, 0.0, of_type) for text, of_type in specials]
    learnt = small.unigram(300, ())
    return [*found, *((text, 0.0, USER) for text in user), *((text, score, NORMAL) for text, score in learnt)]


def bpe_pieces(*specials: tuple[str, int], user: tuple[str, ...] = ()) -> list[tuple[str, float, int]]:
    """Pieces of a BPE model with bytes; the score falls with the id."""
    vocabulary, _ = small.sentencepiece(620, ())
    found = [*specials, *((text, USER) for text in user)]
    learnt = sorted(vocabulary, key=vocabulary.__getitem__)
    found += [(text, BYTE if text.startswith("<0x") else NORMAL) for text in learnt]
    return [(text, -float(n), of_type) for n, (text, of_type) in enumerate(found)]
