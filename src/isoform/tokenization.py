"""The settings of a tokenizer beside its tokenizer.json, and a tokenizer put together as its class does it.

A class of transformers may not use the normalizer, pre-tokenizer, decoder and post-processor of tokenizer.json but its
own. Which ones is a fact of the model (`reference.tokenizers`), in the JSON of the `tokenizers` library, with the names
of special tokens ("cls_token") where their texts belong. `assemble` puts them in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import CheckpointError, InputError, IsoformError
from isoform.json_files import JsonObject

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The named special tokens, in transformers' order."""

EXTRA = ("extra_special_tokens", "additional_special_tokens")
"""Where other special tokens are listed: transformers 5's name, and the one before."""

OWN = "model_specific_special_tokens"
"""Where special tokens under names of the model's own are listed, unless another key lists some."""

PARTS = ("normalizer", "pre_tokenizer", "decoder")
FACTS = frozenset(
    (
        *(*PARTS, "boxes", "end_of_word", "extra", "frame", "known", "languages", "model", "padding_side", "segments"),
        *("strips", "tokens", "unmapped", "words"),
    )
)
"""The facts of a tokenizer's class that `assemble` and its callers know."""

MOST_ID = 2**24
"""Above every id of a vocabulary; the libraries allocate up to the largest."""


@dataclass(frozen=True, slots=True)
class TokenizerSettings:
    """`values` of tokenizer_config.json, with those of special_tokens_map.json where they count, and `added` tokens by
    id. Every token is a text, or an object with `content` and flags."""

    values: JsonObject
    added: Mapping[int, AddedToken]

    def named(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """The special tokens by name, as they are spelled; the class's where the files are silent, None for none."""
        return {name: self.values.get(name, defaults.get(name)) for name in SPECIAL}

    def own(self) -> dict[str, Any]:
        """The special tokens that only this model has, by name ("image_token"), in transformers' order."""
        listed = self.values.get(EXTRA[0]) or self.values.get(EXTRA[1])
        others = {name: token for name, token in self.values.items() if _is_other(name)}
        plain = {name: token for name, token in others.items() if isinstance(token, str)}
        named = plain | dict(listed if isinstance(listed, Mapping) else {})
        objects = {name: token for name, token in others.items() if _is_object(token)}
        return objects | (named or dict(self.values.object(OWN)))

    def extra(self, default: Sequence[Any] = ()) -> list[Any]:
        """The special tokens without a name."""
        listed = self.values.get(EXTRA[0]) or self.values.get(EXTRA[1])
        return list(default if not listed or isinstance(listed, Mapping) else listed)


def read_settings(folder: Path) -> TokenizerSettings:
    """The settings of a folder. Files that are too old to list added tokens in tokenizer_config.json do so in
    special_tokens_map.json and added_tokens.json."""
    values = JsonObject.read(folder / "tokenizer_config.json")
    _check_tokens(values)
    added: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in values:
        listed = values.object("added_tokens_decoder")
        for key in listed:
            added[_index(listed, key)] = _added_token(listed.object(key))
    else:
        older = JsonObject.read(folder / "special_tokens_map.json")
        _check_tokens(older)
        # As in transformers, a token that only the older file lists under the older name is not special here.
        extra = older.get(EXTRA[0]) or values.get(EXTRA[0]) or values.get(EXTRA[1])
        objects = {k: {**v, _TYPE: _OBJECT} for k, v in older.items() if _is_other(k) and isinstance(v, Mapping)}
        values = JsonObject(values.path, {**values, **older, **objects})
        names = {text_of(values[name]) for name in SPECIAL if values.get(name)}
        names |= {text_of(token) for token in extra} if isinstance(extra, list) else set()
        found = JsonObject.read(folder / "added_tokens.json")
        for token in found:
            special = token in names
            index = found.integer(token, -1, least=0, most=MOST_ID)
            added[index] = _added_token({"content": token, "normalized": not special, "special": special})
    return TokenizerSettings(values, added)


def _index(listed: JsonObject, key: str) -> int:
    if not key.isascii() or not key.isdigit() or int(key[:20]) > MOST_ID:
        raise listed.wrong(key, f"at an id from 0 to {MOST_ID}")
    return int(key)


_TYPE, _OBJECT = "__type", "AddedToken"


def _is_other(name: str) -> bool:
    return name.endswith("_token") and name not in SPECIAL


def _is_object(token: Any) -> bool:
    """Whether a token is an object that transformers reads as one where none is expected."""
    return isinstance(token, Mapping) and token.get(_TYPE) == _OBJECT


def _check_tokens(values: JsonObject) -> None:
    """Every token is a text or an object with `content`."""
    for name, token in values.items():
        if name in SPECIAL or (_is_other(name) and _is_object(token)):
            _check_token(values, name, token)
    for name, token in (own := values.object(OWN)).items():
        if name in SPECIAL or token is None:
            raise values.wrong(OWN, "an object of tokens under other names")
        _check_token(own, name, token)
    for name in EXTRA:
        listed = values.get(name)
        if listed is not None and not isinstance(listed, list | dict):
            raise values.wrong(name, "a list of tokens")
        for token in listed.values() if isinstance(listed, dict) else listed or ():
            if token is None:
                raise values.wrong(name, "a list of tokens")
            _check_token(values, name, token)


def _check_token(values: JsonObject, name: str, token: Any) -> None:
    if token is None or isinstance(token, str):
        return
    if not isinstance(token, dict):
        raise values.wrong(name, "a text, or an object with content")
    inner = JsonObject(values.path, token, f"{values.inside}{name}.")
    if inner.text("content") is None:
        raise inner.wrong("content", "a text")
    for flag in _FLAGS:
        inner.flag(flag)


_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def text_of(token: Any) -> str:
    """The text of a token as tokenizer_config.json spells it: plain, or an object with its `content`."""
    return token["content"] if isinstance(token, Mapping) else str(token)


def _added_token(token: Any, special: bool = False) -> AddedToken:
    from tokenizers import AddedToken

    if not isinstance(token, Mapping):
        return AddedToken(str(token), special=special)
    if isinstance(token, JsonObject):
        _check_token(JsonObject(token.path, {"": token.data}, token.inside.removesuffix(".")), "", dict(token))
    flags = {name: bool(token[name]) for name in _FLAGS if token.get(name) is not None}
    return AddedToken(token["content"], **({"special": special} | flags))


# ------------------------------------------------------------------ a class put in
@contextmanager
def checked(message: str) -> Iterator[None]:
    """Turns what the `tokenizers` library raises, bare Exceptions and panics, into a CheckpointError: `message` with
    the reason for its {}."""
    try:
        yield
    except IsoformError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(message.replace("{}", reason[:200])) from None


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json."""
    from tokenizers import Tokenizer

    with checked(f"{path} is not a readable tokenizer ({{}}); fetch it again"):
        return Tokenizer.from_file(str(path))


def assemble(tokenizer: Tokenizer, facts: Mapping[str, Any], settings: TokenizerSettings) -> dict[str, Any]:
    """Make `tokenizer` what its class makes of it: the class's parts, the tokens of the settings, the frame.

    `facts` of the class, JSON. A class for another kind of model (WordPiece over a Unigram vocabulary) is left out: the
    file stands as it is. Returns the named special tokens as they are spelled, None for none.
    """
    if unknown := sorted(set(facts) - FACTS):
        raise InputError(
            f"this isoform does not know a tokenizer's {unknown[0]!r}; install a newer one, or export again"
        )
    model = facts.get("model")
    fits = model is None or model["type"] == type(tokenizer.model).__name__
    facts = facts if fits else {}
    named = settings.named(facts.get("tokens", {}))
    if named["pad_token"] is None and "pad_token" in (padding := tokenizer.padding or {}):
        named["pad_token"] = padding["pad_token"]
    special = {name: text_of(token) for name, token in named.items() if token}
    if model is not None and fits:
        for name in _needed(facts):
            if name in SPECIAL and name not in special:
                raise settings.values.wrong(name, "a token, which the tokenizer's class needs")
        _put_parts(tokenizer, facts)
        _put_model(tokenizer, model, special)
    strips = facts.get("strips", ())
    spelled = {n: {"content": t, "lstrip": True} if n in strips and isinstance(t, str) else t for n, t in named.items()}
    _add_tokens(tokenizer, spelled, settings, facts.get("extra", ()))
    if "frame" in facts:
        _put_frame(tokenizer, facts["frame"], special)
    return named


def _needed(facts: Mapping[str, Any]) -> Iterable[str]:
    """The names of the special tokens that the class cannot do without."""
    frame, model = facts.get("frame") or {}, facts["model"]
    yield from (frame[key] for key in ("sep", "cls") if key in frame)
    yield from (name for key in ("single", "pair") for name, _ in frame.get(key, ()))
    if isinstance(model.get("unk_token"), str):
        yield model["unk_token"]


def _put_parts(tokenizer: Tokenizer, facts: Mapping[str, Any]) -> None:
    from tokenizers import Tokenizer

    parts = {name: facts[name] for name in PARTS if name in facts}
    if "normalizer" in parts:
        stored = _json(tokenizer.normalizer)
        if "unmapped" in facts and not _charsmaps(stored):
            parts["normalizer"] = facts["unmapped"]
        parts["normalizer"] = _with_charsmap(parts["normalizer"], stored)
    empty = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    made = Tokenizer.from_str(json.dumps({**empty, **parts}))
    for name in parts:
        setattr(tokenizer, name, getattr(made, name))


def state(component: Any) -> str:
    """The JSON of a component of a tokenizer, without spaces."""
    return json.dumps(_json(component), separators=(",", ":"))


def _json(component: Any) -> Any:
    return None if component is None else json.loads(component.__getstate__())


def _with_charsmap(normalizer: Any, stored: Any) -> Any:
    """The class's normalizer with the character map of the file's own in the place of its `Precompiled` step; without
    that step where the file has no map."""
    steps = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer]
    maps = _charsmaps(stored)
    if not any(step and step["type"] == "Precompiled" for step in steps):
        return normalizer
    steps = [found for step in steps for found in (maps[:1] if step["type"] == "Precompiled" else [step])]
    if len(steps) == 1:
        return steps[0]
    return {"type": "Sequence", "normalizers": steps} if steps else None


def _charsmaps(stored: Any) -> list[Any]:
    """The steps of a normalizer that are SentencePiece's map of characters."""
    own = stored["normalizers"] if stored and stored["type"] == "Sequence" else [stored]
    return [step for step in own if step and step["type"] == "Precompiled"]


def _put_model(tokenizer: Tokenizer, wanted: Mapping[str, Any], special: Mapping[str, str]) -> None:
    from tokenizers import models

    if wanted["type"] == "Unigram":
        stored = _json(tokenizer.model)
        unknown, fallback = wanted["unk_id"], wanted["byte_fallback"]
        if not isinstance(unknown, int):
            score, name = unknown["score"], special.get("unk_token")
            places = (n for n, (t, s) in enumerate(stored["vocab"]) if t == name and score in (None, s))
            unknown = next(places, unknown["default"])
        if (stored["unk_id"], bool(stored.get("byte_fallback"))) != (unknown, fallback):
            if unknown >= len(stored["vocab"]):
                raise CheckpointError(
                    f"the tokenizer's class needs an unknown token at {unknown} of {len(stored['vocab'])} pieces; "
                    "fetch tokenizer.json again"
                )
            pieces = [(piece, score) for piece, score in stored["vocab"]]
            tokenizer.model = models.Unigram(pieces, unk_id=unknown, byte_fallback=fallback)
        return
    for name, value in wanted.items():
        if name != "type":
            setattr(tokenizer.model, name, special[value] if name == "unk_token" and value else value)


def _put_frame(tokenizer: Tokenizer, frame: Mapping[str, Any], special: Mapping[str, str]) -> None:
    """Set the post-processor that puts special tokens around a text; the file's own where a token is not there."""
    from tokenizers import processors

    if frame["type"] == "RobertaProcessing":
        sep, cls = special[frame["sep"]], special[frame["cls"]]
        last, first = tokenizer.token_to_id(sep), tokenizer.token_to_id(cls)
        if last is None or first is None:
            return
        tokenizer.post_processor = processors.RobertaProcessing(
            (sep, last),
            (cls, first),
            trim_offsets=frame["trim_offsets"],
            add_prefix_space=frame["add_prefix_space"],
        )
        return
    texts: dict[str, str] = {name: special.get(name, name) for key in ("single", "pair") for name, _ in frame[key]}
    ids = {text: tokenizer.token_to_id(text) for name, text in texts.items() if name not in ("A", "B")}
    if None in ids.values():
        return

    def spelled(parts: Iterable[Sequence[Any]]) -> list[str]:
        return [f"${name}:{segment}" if name in ("A", "B") else f"{texts[name]}:{segment}" for name, segment in parts]

    tokenizer.post_processor = processors.TemplateProcessing(
        single=spelled(frame["single"]), pair=spelled(frame["pair"]), special_tokens=list(ids.items())
    )


def _add_tokens(
    tokenizer: Tokenizer, named: Mapping[str, Any], settings: TokenizerSettings, extra: Sequence[Any]
) -> None:
    """Add what the settings list and tokenizer.json lacks, in transformers' order."""
    present = {repr(token) for token in tokenizer.get_added_tokens_decoder().values()}
    wanted: list[AddedToken] = []
    for _, token in sorted(settings.added.items()):
        if repr(token) not in present:
            wanted.append(token)
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    known |= {token.content for token in wanted}
    plain: set[str] = set()  # an object of the same text comes after a plain text, and its flags count
    listed = {repr(token) for token in wanted}
    own = settings.own()
    for entry in (*named.values(), *own.values(), *settings.extra(extra)):
        if not entry or text_of(entry) in known or (isinstance(entry, str) and entry in plain):
            continue
        token = _added_token(entry, special=True)
        if isinstance(entry, str):
            plain.add(entry)
        if repr(token) not in listed:
            listed.add(repr(token))
            wanted.append(token)
    names = {text_of(token) for token in (*named.values(), *own.values()) if token}
    tokenizer.add_tokens(
        [_added_token({**_fields(t), "special": True}) if t.content in names and not t.special else t for t in wanted]
    )  # with an empty list too: it also applies a new normalizer to the tokens that are there


def _fields(token: AddedToken) -> dict[str, Any]:
    return {name: getattr(token, name) for name in ("content", *_FLAGS)}
