"""tokenizer.json from the files that came before it: vocab.txt, vocab.json with merges.txt, a SentencePiece model.

The result is what transformers 5 makes of the same folder, so that everything behind (pipelines, bundles, GGUF) reads
one kind of file.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import CheckpointError
from isoform.json_files import JsonObject
from isoform.reference.checkpoints import sentencepiece_model
from isoform.reference.checkpoints.sentencepiece_model import CONTROL, UNIGRAM, USER_DEFINED, SentencePieceModel
from isoform.reference.tokenizers.classes import ALIASES, AS_STORED, TOKENIZERS, Facts, tokenizer_class
from isoform.reference.tokenizers.parts import MARKS_TO_SPACES, SPACE
from isoform.tokenization import EXTRA, MOST_ID, PARTS, TokenizerSettings, assemble, checked, read_settings, text_of

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

MODEL = "tokenizer.model"
"""The SentencePiece model that every class takes where there is one."""

CONFIG = "tokenizer_config.json"


@dataclass(slots=True)
class _Base:
    """A vocabulary before its class is put in: `model` and `parts` are JSON of the library; `settings` are what the
    files say beyond tokenizer_config.json."""

    model: dict[str, Any]
    parts: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def rebuilt(folder: Path) -> dict[str, str] | None:
    """tokenizer.json and the tokenizer_config.json that belongs to it, by name; None where there is nothing to rebuild:
    the folder has a tokenizer.json, no vocabulary, or a class that isoform does not have.

    Raises CheckpointError for a file that is damaged or missing.
    """
    if (folder / "tokenizer.json").is_file():
        return None
    name = tokenizer_class(folder)
    name = ALIASES.get(name, name)
    row = TOKENIZERS.get(name)
    if name and row is None:
        return None
    files = (MODEL,) if row is None or (folder / MODEL).is_file() else row.vocabulary
    if not any((folder / file).is_file() for file in files) or _is_tiktoken(folder / files[0]):
        return None
    if missing := next((file for file in files if not (folder / file).is_file()), None):
        others = ", ".join(file for file in files if file != missing)
        raise CheckpointError(f"{folder} has {others} and no {missing}, which the tokenizer needs too; fetch it")
    settings = read_settings(folder)
    base = _vocabulary([folder / file for file in files], name, settings)
    values = {**settings.values, **base.settings}
    settings = TokenizerSettings(JsonObject(folder / CONFIG, values), settings.added)
    facts = AS_STORED if row is None else row.facts(settings.values)
    with checked(f"{folder / files[0]} is not a readable vocabulary ({{}}); fetch it again"):
        data = _assembled(base, facts, settings)
    config = {**JsonObject.read(folder / CONFIG), **base.settings}
    if row is not None and facts.get("frame", {}).get("ends"):  # read again, the class would leave BOS and EOS out
        named = {key: token for key, token in settings.named(row.tokens).items() if token}
        config |= {**named, "tokenizer_class": "PreTrainedTokenizerFast"}
    return {
        "tokenizer.json": json.dumps(data, ensure_ascii=False),
        CONFIG: json.dumps(config, ensure_ascii=False, indent=2),
    }


def _is_tiktoken(path: Path) -> bool:
    """Whether a tokenizer.model is tiktoken's: lines of a token in base64 and its rank."""
    if path.name != MODEL or not path.is_file():
        return False
    with path.open("rb") as file:
        return re.fullmatch(rb"[A-Za-z0-9+/]+=* \d+\r?\n", file.readline(1000)) is not None


_FIELDS = {
    "BPE": (
        *("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"),
        *("fuse_unk", "byte_fallback", "ignore_merges"),
    ),
    "WordPiece": ("unk_token", "continuing_subword_prefix", "max_input_chars_per_word"),
}
"""The fields of a model besides its vocabulary."""


def _assembled(base: _Base, facts: Facts, settings: TokenizerSettings) -> dict[str, Any]:
    """The tokenizer.json of a vocabulary, with the parts of its class and all its tokens."""
    from tokenizers import Tokenizer

    empty: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": []}
    data = {**empty, **dict.fromkeys((*PARTS, "post_processor")), **base.parts, "model": base.model}
    tokenizer = Tokenizer.from_str(json.dumps(data))
    named = assemble(tokenizer, facts, settings)
    special = {name: text_of(token) for name, token in named.items() if token}
    for name in (*PARTS, "post_processor"):
        component = getattr(tokenizer, name)
        data[name] = None if component is None else json.loads(component.__getstate__())
    if data["post_processor"] is None or facts.get("frame", {}).get("ends"):
        data["post_processor"] = _ends(tokenizer, special, settings.values)
    if base.model["type"] == "Unigram":
        data["model"] = json.loads(tokenizer.model.__getstate__())
    else:  # whose own state goes through every id up to the largest
        data["model"] = {**base.model, **{name: getattr(tokenizer.model, name) for name in _FIELDS[base.model["type"]]}}
    data["added_tokens"] = [
        {"id": index, **_fields(token)} for index, token in sorted(tokenizer.get_added_tokens_decoder().items())
    ]
    return data


def _fields(token: AddedToken) -> dict[str, Any]:
    names = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return {name: getattr(token, name) for name in names}


def _ends(tokenizer: Tokenizer, special: Mapping[str, str], values: JsonObject) -> dict[str, Any]:
    """The post-processor that adds BOS and EOS where tokenizer_config.json asks for them."""
    bos = special.get("bos_token") if values.flag("add_bos_token", False) else None
    eos = special.get("eos_token") if values.flag("add_eos_token", False) else None
    found = {token: tokenizer.token_to_id(token) for token in (bos, eos) if token is not None}

    def part(token: str | None, segment: int) -> list[dict[str, Any]]:
        return [] if token is None else [{"SpecialToken": {"id": token, "type_id": segment}}]

    def text(name: str, segment: int) -> list[dict[str, Any]]:
        return [*part(bos, segment), {"Sequence": {"id": name, "type_id": segment}}, *part(eos, segment)]

    return {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": [*text("A", 0), *text("B", 1)],
        "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]} for token, index in found.items()},
    }


# ------------------------------------------------------------------ vocabularies
def _vocabulary(paths: list[Path], name: str, settings: TokenizerSettings) -> _Base:
    path = paths[0]
    if path.suffix == ".model":
        try:
            model = sentencepiece_model.parse(path.read_bytes())
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None
        if not model.pieces:
            raise CheckpointError(f"{path} holds no pieces; fetch it again")
        return _sentencepiece(model, name, settings)
    from tokenizers import models

    if path.suffix == ".txt":
        with checked(f"{path} is not a readable vocabulary ({{}}); fetch it again"):
            words = models.WordPiece.read_file(str(path))
        if not words:
            raise CheckpointError(f"{path} holds no tokens; fetch it again")
        plain = {"unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
        return _Base({"type": "WordPiece", **plain, "vocab": words})
    with checked(f"{path} and {paths[1].name} are not readable ({{}}); fetch them again"):
        tokens, merges = models.BPE.read_file(str(path), str(paths[1]))
        if (most := max(tokens.values(), default=0)) > MOST_ID:
            raise CheckpointError(f"{path} holds the id {most}, above {MOST_ID}; fetch it again")
        return _Base({"type": "BPE", "vocab": tokens, "merges": [list(merge) for merge in merges]})


def _sentencepiece(model: SentencePieceModel, name: str, settings: TokenizerSettings) -> _Base:
    """As transformers reads a SentencePiece model for the class `name`; "" for none."""
    found: dict[str, Any] = {}
    if (not name or TOKENIZERS[name].lists) and not any(key in settings.values for key in EXTRA):
        kinds = zip(model.pieces, model.types, strict=True)
        tokens = {piece: kind == CONTROL for piece, kind in kinds if kind in (CONTROL, USER_DEFINED)}
        listed: list[Any] = [
            {"__type": "AddedToken", "content": piece, "normalized": False, "special": special}
            for piece, special in tokens.items()
            if piece
        ]
        if name in TOKENIZERS:
            listed += TOKENIZERS[name].kind(settings.values).get("extra", ())
        found[EXTRA[0]] = listed
    if not name:
        return _plain(model, settings, found)
    row = TOKENIZERS[name].kind(settings.values)["model"]
    if row["type"] == "BPE":
        return _Base(_merged(model.pieces), settings=found)
    vocabulary = list(zip(model.pieces, model.scores, strict=True))
    named = {key: text_of(token) for key, token in settings.named(TOKENIZERS[name].tokens).items() if token}
    if name in PIECES:
        vocabulary = PIECES[name](vocabulary, named, settings.values)
    if isinstance(row["unk_id"], dict):
        found["unk_id"] = model.unk_id
    pieces = [[piece, score] for piece, score in vocabulary]
    charsmap = {"type": "Precompiled", "precompiled_charsmap": b64encode(model.charsmap).decode()}
    return _Base(
        {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": False},
        {"normalizer": charsmap} if model.charsmap else {},
        found,
    )


def _merged(pieces: list[str], **more: Any) -> dict[str, Any]:
    """A BPE whose merges are all pairs of pieces that make a third, in the order of what they make."""
    ids = {piece: index for index, piece in enumerate(pieces)}
    merges: list[tuple[int, int, int, int, int, str, str]] = []
    for piece, index in ids.items():
        for at in range(1, len(piece)):
            left, right = piece[:at], piece[at:]
            if left in ids and right in ids:
                merges.append((index, at, len(right), ids[left], ids[right], left, right))
    return {"type": "BPE", "vocab": ids, "merges": [list(merge[-2:]) for merge in sorted(merges)], **more}


def _plain(model: SentencePieceModel, settings: TokenizerSettings, found: dict[str, Any]) -> _Base:
    """The model as it stands, for folders whose class takes tokenizer.json as it stands: no space before the text."""
    named = {"bos_token": (model.bos_id, model.bos_piece), "eos_token": (model.eos_id, model.eos_piece)}
    named["unk_token"] = model.unk_id, model.unk_piece
    for key, (index, piece) in named.items():
        if index >= 0 and key not in settings.values:
            found[key] = piece
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    charsmap = {"type": "Precompiled", "precompiled_charsmap": b64encode(model.charsmap).decode()}
    normalizers = [charsmap, replace] if model.charsmap else [replace]
    bytes_ = [{"type": "ByteFallback"}, {"type": "Fuse"}] if model.byte_fallback else []
    parts = {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "decoder": {"type": "Sequence", "decoders": [MARKS_TO_SPACES, *bytes_]},
    }
    fallback = model.byte_fallback
    if model.kind == UNIGRAM:
        pieces = [list(pair) for pair in zip(model.pieces, model.scores, strict=True)]
        unknown = max(model.unk_id, 0)
        return _Base({"type": "Unigram", "unk_id": unknown, "vocab": pieces, "byte_fallback": fallback}, parts, found)
    base = _merged(model.pieces, unk_token=model.unk_piece, fuse_unk=True, byte_fallback=fallback)
    vocabulary, where = base["vocab"], dict(enumerate(model.pieces))
    for index, token in settings.added.items():  # a placeholder of the model, renamed by tokenizer_config.json
        before = where.get(index)
        if before and token.content != before and token.content not in vocabulary:
            vocabulary[token.content] = vocabulary.pop(before)
            where[index] = token.content
    return _Base(base, parts, found)


# ------------------------------------------------------------------ pieces that classes add or move
Pieces = list[tuple[str, float]]


def _fairseq(pieces: Pieces, named: Mapping[str, str], values: JsonObject) -> Pieces:
    """XLM-RoBERTa's order: `<s> <pad> </s> <unk>`, all pieces but the first three, the mask."""
    ends = [(named[f"{name}_token"], 0.0) for name in ("bos", "pad", "eos", "unk")]
    return [*ends, *pieces[3:], (named["mask_token"], 0.0)]


def _camembert(pieces: Pieces, named: Mapping[str, str], values: JsonObject) -> Pieces:
    begin = [("<s>NOTUSED", 0.0), (named["pad_token"], 0.0), ("</s>NOTUSED", 0.0), (named["unk_token"], 0.0)]
    return [*begin, ("<unk>NOTUSED", -100.0), *pieces[1:], (named["mask_token"], 0.0)]


def _spans(pieces: Pieces, named: Mapping[str, str], values: JsonObject) -> Pieces:
    """T5's: a token per masked span at the end, the last first."""
    count = values.integer("extra_ids", 100, least=0, most=10_000)
    return [*pieces, *((f"<extra_id_{n}>", 0.0) for n in range(count - 1, -1, -1))]


PIECES = {"CamembertTokenizer": _camembert, "T5Tokenizer": _spans, "XLMRobertaTokenizer": _fairseq}
