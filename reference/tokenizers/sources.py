"""tokenizer.json from the files that came before it: vocab.txt, vocab.json with merges.txt, a SentencePiece model.

The result is what transformers 5 makes of the same folder, so that everything behind (pipelines, bundles, GGUF) reads
one kind of file.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import CheckpointError
from isoform.json_files import JsonObject
from isoform.reference.checkpoints import sentencepiece_model
from isoform.reference.checkpoints.sentencepiece_model import (
    CONTROL,
    NORMAL,
    UNIGRAM,
    USER_DEFINED,
    SentencePieceModel,
)
from isoform.reference.tokenizers import parts
from isoform.reference.tokenizers.classes import ALIASES, AS_STORED, TOKENIZERS, Facts, tokenizer_class
from isoform.reference.tokenizers.language_codes import M2M_100, MBART, MBART_50, WMT_21
from isoform.reference.tokenizers.parts import CODE, HIDDEN, MARKS_TO_SPACES, SPACE
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
    if "refused" in facts:
        return None
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
    if "languages" in facts:
        data["post_processor"] = _spoken_frame(tokenizer, special, facts["languages"])
    elif data["post_processor"] is None or facts.get("frame", {}).get("ends"):
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

    def text(name: str, segment: int) -> list[tuple[str | None, int]]:
        return [(bos, segment), (name, segment), (eos, segment)]

    return _template(tokenizer, text("A", 0), [*text("A", 0), *text("B", 1)])


def _spoken_frame(tokenizer: Tokenizer, special: Mapping[str, str], languages: Facts) -> dict[str, Any]:
    """The post-processor that adds the token of the folder's own language, and the end."""
    found = tokenizer.get_vocab(True)
    codes = {match[1]: token for token in found if (match := re.fullmatch(languages["pattern"], token))}
    own, end = (codes.get(languages["source"]), 0), (special.get("eos_token"), 0)
    before, after = ([own], [end]) if languages["before"] else ([], [end, own])
    return _template(tokenizer, [*before, ("A", 0), *after], [*before, ("A", 0), ("B", 0), *after])


def _template(tokenizer: Tokenizer, *texts: list[tuple[str | None, int]]) -> dict[str, Any]:
    """A post-processor of a text and of two: tokens, None for none, and the texts "A" and "B", with their segments."""
    single, pair = (
        [
            {"Sequence" if name in ("A", "B") else "SpecialToken": {"id": name, "type_id": segment}}
            for name, segment in parts
            if name is not None
        ]
        for parts in texts
    )
    tokens = {name: tokenizer.token_to_id(name) for parts in texts for name, _ in parts if name not in ("A", "B", None)}
    listed = {token: {"id": token, "ids": [index], "tokens": [token]} for token, index in tokens.items()}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": listed}


# ------------------------------------------------------------------ vocabularies
def _vocabulary(paths: list[Path], name: str, settings: TokenizerSettings) -> _Base:
    path = paths[0]
    if path.suffix in (".model", ".spm"):
        try:
            model = sentencepiece_model.parse(path.read_bytes())
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None
        if not model.pieces:
            raise CheckpointError(f"{path} holds no pieces; fetch it again")
        if len(paths) > 1 and name in NUMBERED:
            return _numbered(model, JsonObject.read(paths[1]), name, settings)
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
    vocabulary = list(zip(model.pieces, model.scores, strict=True))
    named = {key: text_of(token) for key, token in settings.named(TOKENIZERS[name].tokens).items() if token}
    if name in PIECES:
        vocabulary = PIECES[name](vocabulary, named, settings.values)
    charsmap = {"type": "Precompiled", "precompiled_charsmap": b64encode(model.charsmap).decode()}
    parts = {"normalizer": charsmap} if model.charsmap else {}
    if row["type"] == "BPE":
        return _Base(_merged([piece for piece, _ in vocabulary]), parts if name in PIECES else {}, found)
    if isinstance(row["unk_id"], dict):
        found["unk_id"] = model.unk_id
    pieces = [[piece, score] for piece, score in vocabulary]
    return _Base({"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": False}, parts, found)


def _numbered(model: SentencePieceModel, ids: JsonObject, name: str, settings: TokenizerSettings) -> _Base:
    """A SentencePiece model whose pieces have the ids of vocab.json: `known` of them, the other pieces are unknown.

    A text never becomes a piece of vocab.json that the model lacks (of the other language), so that is `HIDDEN`.
    """
    steps, tokens = NUMBERED[name](settings.values, len(ids))
    named = settings.named(TOKENIZERS[name].tokens)
    unknown = text_of(named["unk_token"])
    if unknown not in ids:
        raise CheckpointError(f"{ids.path} has no {unknown!r}, the token of what is unknown; fetch it again")
    for token in ids:
        if not 0 <= ids.integer(token, -1) < len(ids):
            raise ids.wrong(token, f"an id below {len(ids)}, the number of tokens")
    by_id: dict[int, str] = {index: token for token, index in ids.items()}
    if len(by_id) < len(ids):
        raise CheckpointError(f"{ids.path} gives one id to two tokens; fetch it again")
    by_id |= tokens
    known, written = max(by_id) + 1, (NORMAL, USER_DEFINED)
    kinds = zip(model.pieces, model.scores, model.types, strict=True)
    scores = {piece: score for piece, score, kind in kinds if kind in written}
    plain = scores.keys() | {text_of(token) for token in (*named.values(), *settings.extra()) if token}
    plain |= set(tokens.values())
    spelled = {index: token if token in plain else _spelled(token) for index, token in by_id.items()}
    others = [piece for piece in scores if piece not in ids]
    spelled |= dict(enumerate(others, known))
    found: dict[str, Any] = {"known_pieces": known} if others else {}
    charsmap = {"type": "Precompiled", "precompiled_charsmap": b64encode(model.charsmap).decode()}
    first = [charsmap] if model.charsmap else []
    steps = {**steps, "normalizer": {"type": "Sequence", "normalizers": [*first, *steps["normalizer"]]}}
    if model.kind == UNIGRAM:
        texts = [spelled[n] for n in range(len(spelled))]
        pieces = [[text, scores.get(text, 0.0)] for text in texts]
        return _Base({"type": "Unigram", "unk_id": ids[unknown], "vocab": pieces, "byte_fallback": False}, steps, found)
    base = _merged([piece for piece in model.pieces if piece in scores], unk_token=unknown, fuse_unk=True)
    return _Base({**base, "vocab": {token: index for index, token in spelled.items()}}, steps, found)


def _spelled(token: str) -> str:
    """How a token that no text becomes is spelled; the code of a language (">>fr<<") stands at the beginning of one."""
    if token.startswith(">>") and token.endswith("<<"):
        return f"{SPACE}{CODE}{token[2:]}"
    return HIDDEN + token


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


def _behind_ends(pieces: Pieces, named: Mapping[str, str]) -> Pieces:
    """All pieces but the first three, after `<s> <pad> </s> <unk>`."""
    return [*((named.get(f"{name}_token", text), 0.0) for name, text in FAIRSEQ.items()), *pieces[3:]]


FAIRSEQ = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>"}


def _nllb(pieces: Pieces, named: Mapping[str, str], values: JsonObject) -> Pieces:
    return _behind_ends(pieces, named)


def _spoken(codes: tuple[str, ...]) -> Callable[[Pieces, Mapping[str, str], JsonObject], Pieces]:
    """mBART's: the tokens of languages, and the mask, behind the pieces."""

    def placed(pieces: Pieces, named: Mapping[str, str], values: JsonObject) -> Pieces:
        return [*_behind_ends(pieces, named), *((code, 0.0) for code in codes), (named["mask_token"], 0.0)]

    return placed


def _pegasus(pieces: Pieces, named: Mapping[str, str], values: JsonObject) -> Pieces:
    """Tokens of masks before the pieces, the first two of which are padding and the end."""
    masks = dict.fromkeys((named.get("mask_token"), values.text("mask_token_sent", "<mask_1>")))
    count = values.integer("offset", 103, least=0, most=10_000)
    unused = [(f"<unk_{n}>", -100.0) for n in range(2, count)]
    begin = [named["pad_token"], named["eos_token"], *(mask for mask in masks if mask)]
    return [*((token, 0.0) for token in begin), *unused, *pieces[2:]]


PIECES = {
    "CamembertTokenizer": _camembert,
    "MBart50Tokenizer": _spoken(MBART_50),
    "MBartTokenizer": _spoken(MBART),
    "NllbTokenizer": _nllb,
    "PegasusTokenizer": _pegasus,
    "T5Tokenizer": _spans,
    "XLMRobertaTokenizer": _fairseq,
}


# ------------------------------------------------------------------ pieces with the ids of another file
def _of_a_pair(values: JsonObject, count: int) -> tuple[dict[str, Any], dict[int, str]]:
    return parts.unigram_of_a_pair(), {}


def _of_many(values: JsonObject, count: int) -> tuple[dict[str, Any], dict[int, str]]:
    """M2M-100's: the tokens of languages behind those of vocab.json."""
    codes = {"m2m100": M2M_100, "wmt21": WMT_21}[values.choice("language_codes", ("m2m100", "wmt21"), "m2m100")]
    return parts.words_and_end(), {count + n: f"__{code}__" for n, code in enumerate(codes)}


NUMBERED = {"M2M100Tokenizer": _of_many, "MarianTokenizer": _of_a_pair}
