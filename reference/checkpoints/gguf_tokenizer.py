"""Rebuilds a tokenizer.json from the vocabulary in a GGUF file, so that a `.gguf` opens like any other checkpoint.

The rebuilt tokenizer cuts text as llama.cpp does with the same file. Where that differs from the tokenizer the file was
made from (`isoform.exporters.gguf.tokenizer` lists the cases), one thing is brought back: NFC normalization, for the
pre-tokenizers whose checkpoints are known to have it.

Added tokens that hold spaces are matched as spaces, before anything else; llama.cpp does so too, while a checkpoint may
name them with "▁", so a literal "▁▁" in a text can become other tokens than in the original.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.checkpoints.pretokenizers import (
    GGUF_BYTE_BPE,
    GGUF_RAW_BPE,
    GGUF_SENTENCEPIECE_BPE,
    GGUF_UNIGRAM,
    GGUF_WORDPIECE,
    PRE_TOKENIZERS,
    WORDPIECE_CUT,
    WORDPIECE_NORMALIZER,
    PreTokenizer,
    pre_tokenizer_steps,
)
from isoform.reference.checkpoints.sentencepiece_model import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    white_space_map,
)

KEY = "tokenizer.ggml."
SPACE = "▁"
SPECIAL = {  # name in tokenizer_config.json -> key in GGUF
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",
    "pad_token": "padding_token_id",
    "mask_token": "mask_token_id",
}
_WORDPIECE_IDS = {"bos_token": 101, "unk_token": 100, "sep_token": 102, "pad_token": 0, "mask_token": 103}
# What llama.cpp takes where the file is silent: (BOS added, EOS added, ids of special tokens).
DEFAULTS: dict[str, tuple[bool, bool, dict[str, int]]] = {
    GGUF_SENTENCEPIECE_BPE: (True, False, {"bos_token": 1, "eos_token": 2, "unk_token": 0}),
    GGUF_WORDPIECE: (True, True, _WORDPIECE_IDS),
    GGUF_UNIGRAM: (False, True, {"eos_token": 1, "unk_token": 2, "pad_token": 0}),
    GGUF_BYTE_BPE: (False, False, {}),
    GGUF_RAW_BPE: (True, False, {}),
}


# Tokens at which llama.cpp stops generating, by their text (`special_eog_ids` in its src/llama-vocab.cpp), besides the
# EOS, EOT and EOM that a file names.
END_TEXTS = frozenset(
    (
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>"),
        *("<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>"),
        *("<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>"),
    )
)


def end_tokens(metadata: Mapping[str, Any]) -> list[int]:
    """The ids at which llama.cpp stops generating, the file's EOS first; metadata as in `tokenizer_from_gguf`."""
    tokens = metadata.get(f"{KEY}tokens") or ()
    named = [metadata.get(f"{KEY}{name}_token_id") for name in ("eos", "eot", "eom")]
    known = [index for index in named if type(index) is int and 0 <= index < len(tokens)]
    return list(dict.fromkeys([*known, *(index for index, text in enumerate(tokens) if text in END_TEXTS)]))


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> dict[str, dict[str, Any] | str]:
    """File name -> content of the tokenizer's files: tokenizer.json, tokenizer_config.json, chat_template.jinja.

    metadata: GGUF key -> plain Python value (str, bool, int, float, or a list of them).
    """
    kind = metadata.get(f"{KEY}model")
    if kind not in DEFAULTS:
        raise UnsupportedModel(
            f"the GGUF file has a tokenizer of the kind {kind!r}; readable are {', '.join(sorted(DEFAULTS))}, "
            f"so take the tokenizer from the checkpoint the file was made from"
        )
    vocabulary = _Vocabulary(metadata, kind)
    build = {
        GGUF_SENTENCEPIECE_BPE: _sentencepiece_bpe,
        GGUF_BYTE_BPE: _merged_bpe,
        GGUF_RAW_BPE: _merged_bpe,
        GGUF_WORDPIECE: _wordpiece,
        GGUF_UNIGRAM: _unigram,
    }[kind]
    parts = build(vocabulary)
    files: dict[str, dict[str, Any] | str] = {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": vocabulary.added(),
            "normalizer": parts.get("normalizer"),
            "pre_tokenizer": parts.get("pre_tokenizer"),
            "post_processor": vocabulary.template(),
            "decoder": parts["decoder"],
            "model": parts["model"],
        },
        "tokenizer_config.json": vocabulary.config(),
    }
    if isinstance(template := metadata.get("tokenizer.chat_template"), str):
        files["chat_template.jinja"] = template
    return files


class _Vocabulary:
    """The parts of the metadata that every kind of vocabulary has, with llama.cpp's defaults filled in."""

    def __init__(self, metadata: Mapping[str, Any], kind: str) -> None:
        self.metadata, self.kind = metadata, kind
        tokens = self.get("tokens")
        if not tokens:
            raise CheckpointError(f"the GGUF file has a {kind!r} tokenizer but no {KEY}tokens; fetch it again")
        self.tokens: list[str] = [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]
        self.types: Sequence[int] = self.get("token_type") or [NORMAL] * len(tokens)
        self.scores: Sequence[float] = self.get("scores") or [0.0] * len(tokens)
        for name, values in (("token_type", self.types), ("scores", self.scores)):
            if len(values) < len(tokens):
                raise CheckpointError(
                    f"the GGUF file has {len(tokens)} tokens but {len(values)} entries in {KEY}{name}; fetch it again"
                )
        self.row = self._row() if kind in (GGUF_BYTE_BPE, GGUF_RAW_BPE) else None
        bos, eos, ids = DEFAULTS[kind]
        self.add_bos = bool(self.get("add_bos_token", bos if self.row is None else self.row.add_bos))
        self.add_eos = bool(self.get("add_eos_token", eos))
        if kind == GGUF_WORDPIECE:  # llama.cpp does not ask
            self.add_bos = self.add_eos = True
        self.special: dict[str, int] = {}
        for name, key in SPECIAL.items():
            index = self.get(key, ids.get(name))
            if index is not None and 0 <= index < len(tokens):
                self.special[name] = int(index)

    def get(self, key: str, default: Any = None) -> Any:
        return self.metadata.get(KEY + key, default)

    def _row(self) -> PreTokenizer:
        name = GGUF_RAW_BPE if self.kind == GGUF_RAW_BPE else self.get("pre")
        for row in PRE_TOKENIZERS:
            if name in row.names:
                return row
        raise UnsupportedModel(
            f"the GGUF file names the pre-tokenizer {name!r}, which is not known here; take the tokenizer from the "
            f"checkpoint the file was made from"
        )

    def token(self, name: str) -> str | None:
        index = self.special.get(name)
        return None if index is None else self.tokens[index]

    def ids(self) -> dict[str, int]:
        """token -> id, without the padding at the end of the vocabulary."""
        types = self.types
        return {
            token: index
            for index, token in enumerate(self.tokens)
            if not (types[index] == UNUSED and token == f"[PAD{index}]")
        }

    def added(self) -> list[dict[str, Any]]:
        """What llama.cpp looks for in a text before it tokenizes the rest."""
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        return [
            {"id": index, "content": self.tokens[index], **flags, "special": kind != USER_DEFINED}
            for index, kind in enumerate(self.types)
            if kind in (CONTROL, USER_DEFINED, UNKNOWN)
        ]

    def template(self) -> dict[str, Any] | None:
        """The post-processor that adds BOS and EOS; None where neither is added."""
        last = "sep_token" if self.kind == GGUF_WORDPIECE else "eos_token"
        first = self.special.get("bos_token") if self.add_bos else None
        end = self.special.get(last) if self.add_eos else None
        if first is None and end is None:
            return None

        def part(index: int | None, segment: int) -> list[dict[str, Any]]:
            return [] if index is None else [{"SpecialToken": {"id": self.tokens[index], "type_id": segment}}]

        def sequence(name: str, segment: int) -> list[dict[str, Any]]:
            return [{"Sequence": {"id": name, "type_id": segment}}]

        second = 1 if self.kind == GGUF_WORDPIECE else 0
        again = None if self.kind == GGUF_WORDPIECE else first
        single = [*part(first, 0), *sequence("A", 0), *part(end, 0)]
        pair = [*single, *part(again, second), *sequence("B", second), *part(end, second)]
        return {
            "type": "TemplateProcessing",
            "single": single,
            "pair": pair,
            "special_tokens": {
                self.tokens[index]: {"id": self.tokens[index], "ids": [index], "tokens": [self.tokens[index]]}
                for index in (first, end)
                if index is not None
            },
        }

    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": self.row.clean_spaces if self.row else self.kind == GGUF_WORDPIECE,
        }
        for name, index in self.special.items():
            config[name] = self.tokens[index]
        if self.kind == GGUF_WORDPIECE:
            config["cls_token"] = config.pop("bos_token")
            config.pop("eos_token", None)
            config["do_lower_case"] = bool(self.get("normalizer.lowercase", True))
        else:
            config["add_bos_token"], config["add_eos_token"] = self.add_bos, self.add_eos
        names = self.metadata.get("tokenizer.chat_templates") or ()
        template = self.metadata.get("tokenizer.chat_template")
        if names:
            more = [{"name": name, "template": self.metadata[f"tokenizer.chat_template.{name}"]} for name in names]
            config["chat_template"] = [*([{"name": "default", "template": template}] if template else []), *more]
        return config


def _bpe_model(vocabulary: _Vocabulary, merges: list[list[str]], **more: Any) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **more,
        "vocab": vocabulary.ids(),
        "merges": merges,
    }


def _escaped(prefix: bool) -> dict[str, Any]:
    """Normalizer and decoder of a vocabulary with "▁" for a space."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if not prefix:
        return {"normalizer": replace, "decoder": {"type": "Sequence", "decoders": steps}}
    prepend = {"type": "Prepend", "prepend": SPACE}
    return {
        "normalizer": {"type": "Sequence", "normalizers": [prepend, replace]},
        "decoder": {
            "type": "Sequence",
            "decoders": [*steps, {"type": "Strip", "content": " ", "start": 1, "stop": 0}],
        },
    }


def _sentencepiece_bpe(vocabulary: _Vocabulary) -> dict[str, Any]:
    return {
        **_escaped(bool(vocabulary.get("add_space_prefix", True))),
        "model": _bpe_model(
            vocabulary,
            merges_from_scores(vocabulary.tokens, vocabulary.scores, vocabulary.types),
            byte_fallback=BYTE in vocabulary.types,
            fuse_unk=True,
            unk_token=vocabulary.token("unk_token"),
        ),
    }


def merges_from_scores(tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> list[list[str]]:
    """The merges of a vocabulary whose scores say which token is made first: each pair of tokens that make a third.

    Sorted by the score of what they make, highest first; pairs that make the same token by the ids of their parts.
    """
    ids = {token: index for index, token in enumerate(tokens) if types[index] not in (BYTE, UNUSED)}
    find = ids.get
    found: list[tuple[float, int, int, int, str, str]] = []
    for token, index in ids.items():
        if types[index] != NORMAL:  # looked for in the text before any merge
            continue
        for at in range(1, len(token)):
            left = find(token[:at])
            if left is not None and (right := find(token[at:])) is not None:
                found.append((-scores[index], index, left, right, token[:at], token[at:]))
    found.sort()
    return [[left, right] for *_, left, right in found]


def _merged_bpe(vocabulary: _Vocabulary) -> dict[str, Any]:
    row = vocabulary.row
    assert row is not None
    listed = vocabulary.get("merges")
    if listed is None:
        raise CheckpointError(f"the GGUF file has a BPE vocabulary but no {KEY}merges; fetch it again")
    merges = []
    for merge in listed:
        cut = merge.find(" ", 1)
        if cut < 0:
            raise CheckpointError(f"the GGUF file has {merge!r} among its merges, which is not a pair; fetch it again")
        merges.append([merge[:cut], merge[cut + 1 :]])
    if row.raw:
        lines = {"type": "Split", "pattern": {"Regex": r"[^\n]+|[\n]+"}, "behavior": "Isolated", "invert": False}
        unknown = vocabulary.token("unk_token")
        model = _bpe_model(vocabulary, merges, byte_fallback=True, unk_token=unknown, fuse_unk=True)
        return {**_escaped(False), "pre_tokenizer": lines, "model": model}
    return {
        "normalizer": {"type": "NFC"} if vocabulary.get("pre") in row.composed else None,
        "pre_tokenizer": pre_tokenizer_steps(row),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe_model(vocabulary, merges, ignore_merges=row.ignore_merges),
    }


def _wordpiece(vocabulary: _Vocabulary) -> dict[str, Any]:
    lowercase = bool(vocabulary.get("normalizer.lowercase", True))
    words: dict[str, int] = {}
    for token, index in vocabulary.ids().items():
        if vocabulary.types[index] not in (NORMAL, UNUSED):
            words[token] = index
        elif token.startswith(SPACE):
            if token != f"{SPACE}[PAD{index}]" or vocabulary.types[index] != UNUSED:
                words[token[1:]] = index
        else:
            words[f"##{token}"] = index
    return {
        "normalizer": {
            "type": WORDPIECE_NORMALIZER,
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": vocabulary.get("normalizer.strip_accents"),
            "lowercase": lowercase,
        },
        "pre_tokenizer": {"type": WORDPIECE_CUT},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": vocabulary.token("unk_token"),
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": words,
        },
    }


def _unigram(vocabulary: _Vocabulary) -> dict[str, Any]:
    prefix = bool(vocabulary.get("add_space_prefix", True))
    squeeze = bool(vocabulary.get("remove_extra_whitespaces", False))
    normalizers: list[dict[str, Any]] = []
    data = bytes(value & 255 for value in vocabulary.get("precompiled_charsmap") or ())
    if data and not (squeeze and data == white_space_map()):  # that one says no more than WhitespaceSplit does
        normalizers.append({"type": "Precompiled", "precompiled_charsmap": b64encode(data).decode("ascii")})
    tokens = vocabulary.tokens
    while vocabulary.types[len(tokens) - 1] == UNUSED and tokens[-1] == f"[PAD{len(tokens) - 1}]":
        tokens = tokens[:-1]
    scheme = "always" if prefix else "never"
    space = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": True}
    cuts = [{"type": "WhitespaceSplit"}, space] if squeeze else [space]
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers} if normalizers else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": cuts},
        "decoder": space,
        "model": {
            "type": "Unigram",
            "unk_id": vocabulary.special.get("unk_token"),
            "vocab": [[token, float(vocabulary.scores[index])] for index, token in enumerate(tokens)],
            "byte_fallback": False,
        },
    }
