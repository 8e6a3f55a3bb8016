r"""A checkpoint's tokenizer as GGUF metadata, decided from the structure of its tokenizer.json.

What is written is what llama.cpp's converter writes, except where llama.cpp would then cut text into other tokens than
the checkpoint's own tokenizer does. The differences, all in our favour:

* `tokenizer.ggml.pre` follows from the splitting patterns, not from a hash over the vocabulary; where llama.cpp gives
  one behaviour several names, the first is written, so a checkpoint may get the name of a relative.
* A SentencePiece BPE without its `tokenizer.model` gets the order of its merges as scores (the converter: -1000 each).
* A SentencePiece BPE is padded to the rows of the embedding (the converter: only if it has its `tokenizer.model`).
* Sentinels and other added tokens of a Unigram vocabulary are tokens (the converter pads them with [PAD...]).
* `add_bos_token` and `add_eos_token` are also written where they are false and llama.cpp would assume true.
* White space that a Unigram tokenizer drops gets a character map, also where the tokenizer has none.

Where llama.cpp cannot agree with the checkpoint's tokenizer (the smallest text that shows it):

* It does not compose text: with an NFC normalizer, "e" + U+0301 stays two letters ("e\u0301").
* A space is put before the text even if it begins with one, where Metaspace would not (" a").
* With `prepend_scheme` "first", a space is put also after each added token ("<s>a").
* Added tokens are looked for in the order of their length, longest first, not from left to right; and with their flags
  `lstrip`, `rstrip`, `single_word` and `normalized` left out ("<mask> a" where the space belongs to the token).
* WordPiece: U+000B, U+000C and U+0085 are white space ("a\x85b"), a word of more than 100 characters is not unknown,
  and a literal "▁" begins a word ("a▁b"). Where accents are stripped, a Hangul syllable loses all but its first letter
  ("각"), and the vowel signs of Indic scripts count as accents ("का").
* Unigram: normalization is by longest match, not by grapheme; a literal "▁" is white space.
* Some pre-tokenizers of llama.cpp are approximations; `PreTokenizer.limit` says which and how.
* The Unicode version of llama.cpp is its own: letters of newer versions of Unicode may not be letters to it.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import ascii_letters, digits
from typing import Any

from isoform.errors import CheckpointError, InputError, UnsupportedExport
from isoform.json_files import JsonObject, read_object, read_text
from isoform.reference.checkpoints import sentencepiece_model
from isoform.reference.checkpoints.pretokenizers import (
    CLS_SEP,
    CLS_SEP_SEP,
    GGUF_BYTE_BPE,
    GGUF_SENTENCEPIECE_BPE,
    GGUF_UNIGRAM,
    GGUF_WORDPIECE,
    NAMED_ONLY,
    WORDPIECE_CUT,
    WORDPIECE_NORMALIZER,
    WORDPIECE_PRE,
    PreTokenizer,
    match,
    pre_tokenizer,
    splits_of,
)
from isoform.reference.checkpoints.sentencepiece_model import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from isoform.tokenization import MOST_ID

JSON_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("generation_config.json", "config.json", "chat_template.json"),
)
SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")

KEY = "tokenizer.ggml."
ID_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",  # spelled so in the format
    "pad": "padding_token_id",
    "mask": "mask_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
}
KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
SPACE = "▁"
ADDED_SCORE, PADDING_SCORE = -1000.0, -10000.0


def tokenizer_files(folder: Path) -> dict[str, Any]:
    """What `tokenizer_metadata` reads from a checkpoint's folder: JSON parsed, templates as text, models as bytes."""
    files: dict[str, Any] = {}
    for name in JSON_FILES:
        if (path := folder / name).is_file():
            files[name] = read_object(path)
    if added := files.get("added_tokens.json"):
        found = JsonObject(folder / "added_tokens.json", added)
        files["added_tokens.json"] = {token: found.integer(token, -1, least=0, most=MOST_ID) for token in found}
    if (path := folder / "chat_template.jinja").is_file():
        files["chat_template.jinja"] = read_text(path)
        for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
            files[f"additional_chat_templates/{path.name}"] = read_text(path)
    for name in SENTENCEPIECE_FILES:
        if (path := folder / name).is_file():
            files[name] = path.read_bytes()
    return files


def tokenizer_metadata(files: Mapping[str, Any], vocab_size: int, pre: str | None = None) -> dict[str, Any]:
    """GGUF keys and values of a checkpoint's tokenizer.

    files: as `tokenizer_files` gives them; any name may be absent or None.
    vocab_size: rows of the embedding; the vocabulary is padded to it with unused tokens.
    pre: the name of llama.cpp's pre-tokenizer for a byte-level BPE, instead of the one found from its structure.

    Values are str, bool, int (UINT32), lists of str, int (INT32) and float (FLOAT32), and bytes (an array of UINT8).
    """
    tokenizer = files.get("tokenizer.json")
    # A tokenizer.model beside a byte-level tokenizer.json can be a file of another kind.
    model = _sentencepiece(files) if tokenizer is None or _is_sentencepiece_bpe(tokenizer) else None
    if tokenizer is None and model is None:
        raise CheckpointError(
            "the checkpoint has no tokenizer.json (nor a SentencePiece tokenizer.model), so its GGUF file would have "
            "no vocabulary; put the tokenizer's files beside config.json"
        )
    kind = "Unigram" if model is not None and model.kind == sentencepiece_model.UNIGRAM else "BPE"
    if tokenizer is not None:
        kind = tokenizer.get("model", {}).get("type") or _untyped(tokenizer.get("model", {}))
    byte_level = kind == "BPE" and tokenizer is not None and not _is_sentencepiece_bpe(tokenizer)
    if pre is not None and not byte_level:
        raise InputError(f"--pre {pre} names the pre-tokenizer of a byte-level BPE, but this vocabulary is {kind}")
    if byte_level and tokenizer is not None:
        found = _byte_bpe(files, tokenizer, vocab_size, pre)
    elif kind == "BPE":
        found = _sentencepiece_bpe(files, tokenizer, model, vocab_size)
    elif kind == "WordPiece" and tokenizer is not None:
        found = _wordpiece(files, tokenizer, vocab_size)
    elif kind == "Unigram":
        found = _unigram(files, tokenizer, model, vocab_size)
    else:
        raise UnsupportedExport(f"GGUF has no tokenizer of the type {kind!r}; export to ONNX instead")
    _no_duplicates(found[f"{KEY}tokens"])
    found.update(_chat_templates(files))
    return found


def _untyped(model: Mapping[str, Any]) -> str:
    """The type of a `model` section that does not name it, as old files do."""
    if "merges" in model:
        return "BPE"
    return "Unigram" if isinstance(model.get("vocab"), list) else "WordPiece"


def _no_duplicates(tokens: Sequence[str]) -> None:
    if len(set(tokens)) == len(tokens):
        return
    seen: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if token in seen:
            raise UnsupportedExport(
                f"tokens {seen[token]} and {index} would both be written as {token!r}, and llama.cpp refuses such a "
                f"vocabulary; export to ONNX, or rename one of them in tokenizer.json"
            )
        seen[token] = index


# ---------------------------------------------------------------------------------------------- added tokens


def _added_tokens(files: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """id -> {"content", "special"} of every added token, wherever the checkpoint lists it."""
    tokenizer = files.get("tokenizer.json") or {}
    config = files.get("tokenizer_config.json") or {}
    added: dict[int, dict[str, Any]] = {}
    for content, index in (files.get("added_tokens.json") or {}).items():
        added[int(index)] = {"content": content, "special": False}
    for index, entry in (config.get("added_tokens_decoder") or {}).items():
        added[int(index)] = {"content": entry["content"], "special": bool(entry.get("special"))}
    for entry in tokenizer.get("added_tokens") or ():
        added[int(entry["id"])] = {"content": entry["content"], "special": bool(entry.get("special"))}
    named = _named_special(files)
    for entry in added.values():
        entry["special"] = entry["special"] or entry["content"] in named or _looks_special(entry["content"])
    return added


def _named_special(files: Mapping[str, Any]) -> set[str]:
    named: set[str] = set()
    for source in (files.get("tokenizer_config.json") or {}, files.get("special_tokens_map.json") or {}):
        for key, value in source.items():
            if key in ("additional_special_tokens", "extra_special_tokens"):
                entries = value.values() if isinstance(value, dict) else value or ()
                named.update(text for entry in entries if (text := _content(entry)))
            elif key.endswith("_token") and (text := _content(value)):
                named.add(text)
    return named


def _looks_special(token: str) -> bool:
    """Control tokens that some checkpoints do not mark as such; the converter's own list."""
    return (
        token in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (token.startswith("<|") and token.endswith("|>"))
        or (token.startswith("<｜") and token.endswith("｜>"))
        or (token.startswith("<unused") and token.endswith(">"))
    )


def _content(entry: Any) -> str | None:
    """The text of a token that a config gives as a string or as an object."""
    if isinstance(entry, Mapping):
        entry = entry.get("content")
    return entry if isinstance(entry, str) and entry else None


def _listed(
    files: Mapping[str, Any], vocab: Mapping[str, int], vocab_size: int
) -> tuple[list[str], list[int], dict[int, dict[str, Any]]]:
    """Tokens and types by id, padded to `vocab_size`, and the added tokens among them.

    Added tokens past the end are left out: the model has no row for them.
    """
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    types = [UNUSED] * vocab_size
    added = {index: entry for index, entry in _added_tokens(files).items() if index < vocab_size}
    contents = {entry["content"] for entry in added.values()}
    for token, index in vocab.items():
        if index < vocab_size:
            tokens[index], types[index] = token, NORMAL
        elif token not in contents:
            raise CheckpointError(
                f"tokenizer.json has {token!r} at {index}, but the model's embedding has {vocab_size} rows; the "
                f"tokenizer belongs to another model"
            )
    for index, entry in added.items():
        if entry["special"]:
            tokens[index], types[index] = entry["content"], CONTROL
        else:  # llama.cpp looks for these in the raw text, before it turns spaces into "▁"
            tokens[index], types[index] = entry["content"].replace(SPACE, " "), USER_DEFINED
    return tokens, types, added


# --------------------------------------------------------------------------------------------- special tokens


def _special(
    files: Mapping[str, Any], tokens: Sequence[str], *, bos: bool = False, eos: bool = False
) -> dict[str, Any]:
    """Ids of the special tokens, and whether each is added to a text; `bos` and `eos` are llama.cpp's defaults.

    The names come from tokenizer_config.json, completed and corrected from the post-processor of tokenizer.json, then
    from config.json, which gives ids.
    """
    tokenizer = files.get("tokenizer.json") or {}
    config = files.get("tokenizer_config.json") or {}
    names = {kind: _content(config.get(f"{kind}_token")) for kind in (*KINDS, "eot", "eom")}
    names["bos"] = names["bos"] or names["cls"]
    names["eos"] = names["eos"] or names["sep"]
    kinds = list(KINDS)
    add: dict[str, bool] = {}
    post = tokenizer.get("post_processor") or {}
    for processor in post.get("processors", [post]):
        if processor.get("type") == CLS_SEP_SEP:
            add.update(bos=True, eos=True, sep=True)
            names["cls"] = names["cls"] or processor.get("cls", [names["bos"]])[0]
            names["sep"] = names["sep"] or processor.get("sep", [names["eos"]])[0]
        elif processor.get("type") == CLS_SEP:
            add.update(bos=True, eos=True, sep=False)
            names["bos"] = names["bos"] or processor.get("cls", [None])[0]
            names["eos"] = names["eos"] or processor.get("sep", [None])[0]
        elif processor.get("type") == "TemplateProcessing":
            _read_template(processor, names, kinds, add)
    for kind in kinds:
        if isinstance(value := config.get(f"add_{kind}_token"), bool):
            add[kind] = value

    ids: dict[str, int] = {}
    listed = {str(entry["content"]): int(entry["id"]) for entry in reversed(tokenizer.get("added_tokens") or [])}
    where = {token: index for index, token in enumerate(tokens)}
    model_config = files.get("config.json") or {}
    for kind in kinds:
        name = names.get(kind)
        candidates = (
            listed.get(name) if name else None,
            model_config.get(f"{kind}_token_id", (model_config.get("text_config") or {}).get(f"{kind}_token_id")),
            where.get(name) if name else None,
        )
        for index in candidates:
            if isinstance(index, int) and not isinstance(index, bool) and 0 <= index < len(tokens):
                ids[kind] = index
                break
    for kind, default in (("bos", bos), ("eos", eos)):
        if default and kind not in add:
            add[kind] = False
    for kind in ("bos", "eos"):
        if add.get(kind) and kind not in ids:
            raise CheckpointError(
                f"the tokenizer adds {kind} to every text, but no file says which token that is; name it as "
                f'"{kind}_token" in tokenizer_config.json'
            )
    found: dict[str, Any] = {f"{KEY}{ID_KEYS[kind]}": index for kind, index in ids.items() if kind in ID_KEYS}
    found.update({f"{KEY}add_{kind}_token": value for kind, value in add.items() if kind in ("bos", "eos", "sep")})
    return found


def _read_template(
    processor: Mapping[str, Any], names: dict[str, str | None], kinds: list[str], add: dict[str, bool]
) -> None:
    """What a TemplateProcessing step says: its first and last token, and the separator between two texts."""
    single = [(part.get("SpecialToken") or {}).get("id") for part in processor.get("single") or ()]
    first = last = None
    if len(single) > 1:
        first, last = single[0], single[-1]
        if first:
            if first not in (names["bos"], names["cls"]):
                names["bos"] = names["bos"] or first
                names["cls"] = names["cls"] or first
            add["bos"] = first in (names["bos"], names["cls"])
        if last:
            if names["eos"] and last != names["eos"]:  # the template ends with another token: the named one ends a turn
                spare = "eot" if "eot" not in kinds else "eom"
                kinds.append(spare)
                names[spare] = names["eos"]
            names["eos"] = last
            add["eos"] = True
    pair = list(processor.get("pair") or ())
    parts = [(part.get("SpecialToken") or {}).get("id") for part in pair]
    start = 1 if parts and first and parts[0] == first else 0
    stop = len(parts) - 1 if parts and last and parts[-1] == last else len(parts)
    inner, between = pair[start:stop], parts[start:stop][1:-1]
    if not between or [(inner[at].get("Sequence") or {}).get("id") for at in (0, -1)] != ["A", "B"]:
        return
    separators = (names["sep"], names["eos"])
    sep = (between[0] in separators and not last) or (len(between) == 2 and between[1] in separators)
    add["sep"] = bool(sep)
    if sep and not names["sep"]:
        names["sep"] = names["eos"]


def _chat_templates(files: Mapping[str, Any]) -> dict[str, Any]:
    config = files.get("tokenizer_config.json") or {}
    template = config.get("chat_template")
    if template is None and (text := files.get("chat_template.jinja")) is not None:
        prefix = "additional_chat_templates/"
        more = [
            {"name": name[len(prefix) :].removesuffix(".jinja"), "template": files[name]}
            for name in sorted(files)
            if name.startswith(prefix)
        ]
        template = [{"name": "default", "template": text}, *more] if more else text
    elif template is None:
        template = (files.get("chat_template.json") or {}).get("chat_template")
    if isinstance(template, str):
        return {"tokenizer.chat_template": template}
    found: dict[str, Any] = {}
    names = []
    for entry in template or ():
        name = "".join(c if c in ascii_letters + digits else "_" for c in entry.get("name", ""))
        if name == "default":
            found["tokenizer.chat_template"] = entry["template"]
        elif name:
            names.append(name)
            found[f"tokenizer.chat_template.{name}"] = entry["template"]
    if names:
        found["tokenizer.chat_templates"] = names
    return found


# ---------------------------------------------------------------------------------------------- byte-level BPE


def _byte_bpe(
    files: Mapping[str, Any], tokenizer: Mapping[str, Any], vocab_size: int, pre: str | None
) -> dict[str, Any]:
    model = tokenizer["model"]
    for part in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(part):
            raise UnsupportedExport(
                f"the BPE model has {part}={model[part]!r}, which llama.cpp does not know; export to ONNX instead"
            )
    if pre is None:
        row = _find_pre(files, tokenizer)
        name = next((n for n in row.composed if "NFC" in _normalizers(tokenizer)), row.names[0])
        bos = row.add_bos
    else:
        name = pre
        bos = pre not in NAMED_ONLY and pre_tokenizer(pre).add_bos
    tokens, types, _ = _listed(files, model["vocab"], vocab_size)
    return {
        f"{KEY}model": GGUF_BYTE_BPE,
        f"{KEY}pre": name,
        f"{KEY}tokens": tokens,
        f"{KEY}token_type": types,
        f"{KEY}merges": [
            merge if isinstance(merge, str) else " ".join(part.replace(" ", "Ġ") for part in merge)
            for merge in model["merges"]
        ],
        **_special(files, tokens, bos=bos),
        **_lowercase(tokenizer),
    }


def _find_pre(files: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> PreTokenizer:
    """The row of the table with this tokenizer's cut, and with its `ignore_merges` where that can matter."""
    strange = [kind for kind in _normalizers(tokenizer) if kind != "NFC"]
    if strange:
        raise UnsupportedExport(
            f"the tokenizer normalizes with {', '.join(strange)}, and llama.cpp does not for a byte-level BPE; export "
            f"to ONNX, or name a pre-tokenizer with --pre NAME"
        )
    splits = splits_of(tokenizer.get("pre_tokenizer"))
    rows = match(splits)
    if not rows:
        raise UnsupportedExport(
            f"no pre-tokenizer of llama.cpp is known to cut text by {' then by '.join(map(repr, splits))}; "
            f"name the nearest with --pre NAME, or export to ONNX"
        )
    ignore = bool(tokenizer["model"].get("ignore_merges"))
    same = [row for row in rows if row.ignore_merges == ignore]
    if not same:
        stray = _unmergeable(tokenizer)
        if stray is not None:
            raise UnsupportedExport(
                f"the tokenizer has ignore_merges={str(ignore).lower()}, llama.cpp's {rows[0].names[0]!r} has not, and "
                f"they differ: no merges make {stray!r}; name a pre-tokenizer with --pre NAME, or export to ONNX"
            )
        same = rows
    clean = (files.get("tokenizer_config.json") or {}).get("clean_up_tokenization_spaces")
    return next((row for row in same if clean is not None and row.clean_spaces == clean), same[0])


def _unmergeable(tokenizer: Mapping[str, Any]) -> str | None:
    """A token that is in the vocabulary, but that its own text is not merged to; None if there is no such token."""
    from tokenizers import Tokenizer, models

    model = tokenizer["model"]
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
    merges = [(left, right) for left, right in pairs]
    plain = Tokenizer(models.BPE(vocab=model["vocab"], merges=merges))
    added = {entry["content"] for entry in tokenizer.get("added_tokens") or ()}
    words = [word for word in model["vocab"] if word not in added]
    for word, encoded in zip(words, plain.encode_batch_fast(words, add_special_tokens=False), strict=True):
        if len(encoded.ids) != 1:
            return word
    return None


def _normalizers(tokenizer: Mapping[str, Any]) -> list[str]:
    """The types of the normalizer's steps, in order."""
    return [str(step.get("type")) for step in _flat(tokenizer.get("normalizer"), "normalizers")]


def _flat(step: Mapping[str, Any] | None, children: str) -> list[Mapping[str, Any]]:
    if not step:
        return []
    if step.get("type") == "Sequence":
        return [inner for part in step.get(children, ()) for inner in _flat(part, children)]
    return [step]


def _lowercase(tokenizer: Mapping[str, Any]) -> dict[str, bool]:
    """The two switches of llama.cpp's normalizer."""
    found: dict[str, bool] = {}
    for step in _flat(tokenizer.get("normalizer"), "normalizers"):
        if step.get("type") == "Lowercase":
            found[f"{KEY}normalizer.lowercase"] = True
        elif step.get("type") == "StripAccents":
            found[f"{KEY}normalizer.strip_accents"] = True
        elif step.get("type") == WORDPIECE_NORMALIZER:
            for switch in ("lowercase", "strip_accents"):
                if step.get(switch) is not None:
                    found[f"{KEY}normalizer.{switch}"] = bool(step[switch])
    return found


# ------------------------------------------------------------------------------------------ SentencePiece's BPE


def _sentencepiece(files: Mapping[str, Any]) -> sentencepiece_model.SentencePieceModel | None:
    for name in SENTENCEPIECE_FILES:
        if files.get(name) is not None:
            return sentencepiece_model.parse(files[name])
    return None


def _is_sentencepiece_bpe(tokenizer: Mapping[str, Any]) -> bool:
    """Whether spaces become "▁" and letters stay letters, instead of 256 byte letters."""
    steps = _flat(tokenizer.get("pre_tokenizer"), "pretokenizers")
    if any(step.get("type") == "ByteLevel" for step in steps):
        return False
    return any(step.get("type") == "Metaspace" for step in steps) or any(
        step.get("type") == "Replace" and step.get("content") == SPACE
        for step in _flat(tokenizer.get("normalizer"), "normalizers")
    )


def _space_prefix(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a text gets a space in front; refuses what llama.cpp's SentencePiece tokenizer cannot do."""
    prefix = False
    for step in _flat(tokenizer.get("normalizer"), "normalizers"):
        if step.get("type") == "Prepend" and step.get("prepend") == SPACE:
            prefix = True
        elif not (
            step.get("type") == "Replace" and step.get("pattern") == {"String": " "} and step.get("content") == SPACE
        ):
            raise UnsupportedExport(
                f"llama.cpp normalizes no text for a SentencePiece BPE, but this tokenizer has the step "
                f"{dict(step)!r}; export to ONNX instead"
            )
    for step in _flat(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "Metaspace":
            prefix = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never") != "never"
            inner = next((t for t in tokenizer["model"]["vocab"] if SPACE in t[1:]), None)
            if step.get("split", True) and inner is not None:
                raise UnsupportedExport(
                    f"the tokenizer splits at every space and so never makes its token {inner!r}, but llama.cpp would; "
                    f"export to ONNX instead"
                )
        elif not (step.get("type") == "Split" and step.get("pattern") == {"String": " "}):  # no " " is left by then
            raise UnsupportedExport(
                f"llama.cpp splits no text for a SentencePiece BPE, but this tokenizer has the step {dict(step)!r}; "
                f"export to ONNX instead"
            )
    return prefix


def _sentencepiece_bpe(
    files: Mapping[str, Any],
    tokenizer: Mapping[str, Any] | None,
    model: sentencepiece_model.SentencePieceModel | None,
    vocab_size: int,
) -> dict[str, Any]:
    if tokenizer is None and model is not None:
        vocab = {piece: index for index, piece in enumerate(model.pieces)}
        prefix, merges, unknown = model.add_dummy_prefix, [], None
    else:
        assert tokenizer is not None
        vocab, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
        unknown = tokenizer["model"].get("unk_token")
        prefix = _space_prefix(tokenizer)
    tokens, types, added = _listed(files, {t: i for t, i in vocab.items() if i < vocab_size}, vocab_size)
    if model is not None and all(vocab.get(piece, -1) == i for i, piece in enumerate(model.pieces) if i not in added):
        scores = [*model.scores, *[PADDING_SCORE] * vocab_size][:vocab_size]
        for index, kind in enumerate(model.types[:vocab_size]):
            if index not in added:
                types[index] = NORMAL if kind == USER_DEFINED else kind
    else:
        scores = _scores(vocab, merges, vocab_size)
        for token, index in vocab.items():
            if index < vocab_size and index not in added:
                types[index] = UNKNOWN if token == unknown else BYTE if _is_byte(token) else NORMAL
    for index in added:
        scores[index] = ADDED_SCORE
    asked = (files.get("tokenizer_config.json") or {}).get("add_prefix_space")
    return {
        f"{KEY}model": GGUF_SENTENCEPIECE_BPE,
        f"{KEY}pre": "default",
        f"{KEY}tokens": tokens,
        f"{KEY}scores": scores,
        f"{KEY}token_type": types,
        **({} if prefix and asked is None else {f"{KEY}add_space_prefix": prefix}),
        **_special(files, tokens, bos=True),
    }


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _scores(vocab: Mapping[str, int], merges: Iterable[Any], vocab_size: int) -> list[float]:
    """Scores that make llama.cpp merge in the order of `merges`: 0, -1, -2 … by the first merge that makes a token.

    Letters, which nothing makes, follow in the order of their ids, as SentencePiece numbers them; bytes have 0.
    """
    scores = [PADDING_SCORE] * vocab_size
    made: dict[str, int] = {}
    for merge in merges:
        token = merge.replace(" ", "", 1) if isinstance(merge, str) else "".join(merge)
        made.setdefault(token, len(made))
    letters = len(made)
    for token, index in sorted(vocab.items(), key=lambda item: item[1]):
        if index >= vocab_size:
            continue
        if token in made:
            scores[index] = float(-made[token])
        elif _is_byte(token):
            scores[index] = 0.0
        else:
            scores[index] = float(-letters)
            letters += 1
    return scores


# --------------------------------------------------------------------------------------------------- WordPiece


def _wordpiece(files: Mapping[str, Any], tokenizer: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    model = tokenizer["model"]
    prefix = model.get("continuing_subword_prefix", "##")
    steps = _flat(tokenizer.get("normalizer"), "normalizers")
    cuts = [step.get("type") for step in _flat(tokenizer.get("pre_tokenizer"), "pretokenizers")]
    if prefix != "##" or cuts != [WORDPIECE_CUT]:
        raise UnsupportedExport(
            f"llama.cpp's WordPiece continues words with '##' and cuts at white space and punctuation, but here the "
            f"prefix is {prefix!r} and the pre_tokenizer {tokenizer.get('pre_tokenizer')!r}; export to ONNX instead"
        )
    kinds = [step.get("type") for step in steps]
    if kinds != [WORDPIECE_NORMALIZER] or not all(
        steps[0].get(on, True) for on in ("clean_text", "handle_chinese_chars")
    ):
        raise UnsupportedExport(
            f"llama.cpp's WordPiece cleans text and sets Chinese characters apart, but this tokenizer's normalizer is "
            f"{tokenizer.get('normalizer')!r}; export to ONNX instead"
        )
    tokens, types, _ = _listed(files, model["vocab"], vocab_size)
    special = _special(files, tokens)
    for name in ("bos", "sep", "unk"):
        if f"{KEY}{ID_KEYS[name]}" not in special:
            raise CheckpointError(
                f"no file says which token of the WordPiece vocabulary is {name}; name it in tokenizer_config.json"
            )
    for index, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind in (NORMAL, UNUSED):  # a word's beginning is marked, not its continuation
            tokens[index] = token[2:] if token.startswith("##") else SPACE + token
    return {
        f"{KEY}model": GGUF_WORDPIECE,
        f"{KEY}pre": WORDPIECE_PRE,
        f"{KEY}tokens": tokens,
        f"{KEY}token_type": types,
        **special,
        **_lowercase(tokenizer),
    }


# ----------------------------------------------------------------------------------------------------- Unigram


def _unigram(
    files: Mapping[str, Any],
    tokenizer: Mapping[str, Any] | None,
    model: sentencepiece_model.SentencePieceModel | None,
    vocab_size: int,
) -> dict[str, Any]:
    if tokenizer is not None:
        vocab = [(str(piece), float(score)) for piece, score in tokenizer["model"]["vocab"]]
        unknown = tokenizer["model"].get("unk_id")
        prefix, squeeze, charsmap = _unigram_normalizer(tokenizer)
    else:
        assert model is not None
        vocab = list(zip(model.pieces, model.scores, strict=True))
        unknown = model.types.index(UNKNOWN) if UNKNOWN in model.types else None
        prefix, squeeze, charsmap = model.add_dummy_prefix, model.remove_extra_whitespaces, model.charsmap
    listed = {piece: index for index, (piece, _) in enumerate(vocab)}
    tokens, types, added = _listed(files, listed, vocab_size)
    scores = [PADDING_SCORE] * vocab_size
    for index, (_, score) in enumerate(vocab[:vocab_size]):
        scores[index] = score
    if tokenizer is None and model is not None:
        for index, kind in enumerate(model.types[:vocab_size]):
            if index not in added:
                types[index] = NORMAL if kind == USER_DEFINED else kind
    for index in added:
        if index >= len(vocab):
            scores[index] = ADDED_SCORE
    if unknown is not None:
        types[unknown] = UNKNOWN
    special = _special(files, tokens, eos=True)
    if unknown is not None:
        special.setdefault(f"{KEY}{ID_KEYS['unk']}", unknown)
    return {
        f"{KEY}model": GGUF_UNIGRAM,
        f"{KEY}pre": "default",
        f"{KEY}tokens": tokens,
        f"{KEY}scores": scores,
        f"{KEY}token_type": types,
        f"{KEY}add_space_prefix": prefix,
        f"{KEY}remove_extra_whitespaces": squeeze,
        **({f"{KEY}precompiled_charsmap": charsmap} if charsmap else {}),
        **special,
    }


def _unigram_normalizer(tokenizer: Mapping[str, Any]) -> tuple[bool, bool, bytes]:
    """(space in front, runs of spaces become one, character map) of a Unigram tokenizer."""
    prefix = squeeze = drops_white_space = False
    charsmap = b""
    for step in _flat(tokenizer.get("normalizer"), "normalizers"):
        if step.get("type") == "Precompiled":
            charsmap = b64decode(step.get("precompiled_charsmap") or "")
        elif step.get("type") == "Replace" and step.get("pattern") == {"Regex": " {2,}"}:
            squeeze = True
        elif step.get("type") not in ("Strip", "Nmt"):
            raise UnsupportedExport(
                f"llama.cpp's Unigram tokenizer normalizes with no step like {dict(step)!r}; export to ONNX instead"
            )
    for step in _flat(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "WhitespaceSplit":
            squeeze = drops_white_space = True
        elif step.get("type") == "Metaspace":
            prefix = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never") != "never"
        else:
            raise UnsupportedExport(
                f"llama.cpp's Unigram tokenizer splits with no step like {dict(step)!r}; export to ONNX instead"
            )
    if drops_white_space and not charsmap:
        charsmap = sentencepiece_model.white_space_map()
    return prefix, squeeze, charsmap
