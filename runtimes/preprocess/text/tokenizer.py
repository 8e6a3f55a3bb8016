"""The tokenizer of a checkpoint folder, giving the ids that transformers' AutoTokenizer gives.

The vocabulary, merges and added tokens come from tokenizer.json. Some tokenizer classes of transformers 5 do not use
the normalizer, pre-tokenizer and decoder of that file but their own, set by tokenizer_config.json: the model's facts
say which of `_REBUILD` they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.errors import CheckpointError, InputError
from isoform.json_files import read_object

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import AddedToken, Encoding, Tokenizer

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The named special tokens, in transformers' order."""

_NO_LIMIT = 10**20  # transformers' "no limit" is about 1e30; anything past this counts as none


@dataclass(frozen=True, slots=True)
class Batch:
    """A padded batch; every array is int64 of shape (B, T), and the mask is 1 for a token and 0 for padding."""

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    token_type_ids: NDArray[np.int64]


class TextTokenizer:
    """Texts to ids and back. Safe to share between threads.

    `special` holds the named special tokens that are set (`{"bos_token": "<s>", …}`), `max_length` is the longest
    input in tokens or None, `padding_side` the side that `pad` fills.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """`facts` of the model, of which "tokenizer" says how the file is read.

        Raises CheckpointError when the folder holds no readable tokenizer.json.
        """
        from tokenizers import Tokenizer

        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            known = ("tokenizer.model", "vocab.txt", "vocab.json", "tekken.json")
            others = [name for name in known if (folder / name).is_file()]
            raise CheckpointError(
                f"{folder} has no tokenizer.json" + (f", only {', '.join(others)}" if others else "") + "; put the "
                "tokenizer.json of the model's repository there (transformers writes one: "
                f"AutoTokenizer.from_pretrained(…).save_pretrained({str(folder)!r}))"
            )
        try:
            self._tokenizer: Tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # noqa: BLE001  tokenizers raises bare Exception for every kind of bad file
            raise CheckpointError(f"{path} is not a readable tokenizer ({error}); fetch it again") from None
        settings, added = read_settings(folder)
        kind: Mapping[str, Any] = facts["tokenizer"]
        rebuild, defaults = kind["rebuild"], kind["tokens"]
        if rebuild not in _REBUILD:
            raise InputError(f"this isoform has no tokenizer {rebuild!r}; install a newer one, or export again")
        padding = self._tokenizer.padding or {}
        named = {name: settings.get(name, defaults.get(name)) for name in SPECIAL}
        if named["pad_token"] is None and "pad_token" in padding:
            named["pad_token"] = padding["pad_token"]
        self.special: dict[str, str] = {name: text_of(token) for name, token in named.items() if token}
        _REBUILD[rebuild](self._tokenizer, settings, self.special)
        self._add_tokens(named, settings, added)
        if rebuild == "word_pieces":
            _frame(self._tokenizer, self.special)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

        limit = settings.get("model_max_length", settings.get("max_len"))
        self.max_length: int | None = int(limit) if isinstance(limit, int | float) and limit < _NO_LIMIT else None
        side = settings.get("padding_side") or padding.get("direction") or kind["padding_side"]
        self.padding_side: str = str(side).lower()
        self.truncation_side: str = settings.get("truncation_side") or "right"
        if self.padding_side not in ("left", "right") or self.truncation_side not in ("left", "right"):
            raise CheckpointError(
                f"{folder}/tokenizer_config.json: padding_side is {self.padding_side!r} and truncation_side "
                f"{self.truncation_side!r}; each must be 'left' or 'right'"
            )
        self.cleans_up: bool = bool(settings.get("clean_up_tokenization_spaces", False))
        self._forces_clean_up = bool(
            settings.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
        )
        self.chat_templates: Any = settings.get("chat_template")
        self._tokenizer.encode_special_tokens = bool(settings.get("split_special_tokens", False))
        self._lock = Lock()  # truncation is a state of the shared tokenizer

    def _add_tokens(self, named: dict[str, Any], settings: dict[str, Any], added: dict[int, Any]) -> None:
        """Add what tokenizer_config.json lists and tokenizer.json lacks, in transformers' order."""
        present = {repr(token) for token in self._tokenizer.get_added_tokens_decoder().values()}
        wanted: list[AddedToken] = []
        for _, token in sorted(added.items()):
            if repr(token) not in present:
                wanted.append(token)
        known = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        known |= {token.content for token in wanted}
        extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
        extra = list(extra.values()) if isinstance(extra, dict) else list(extra)
        extra += [v for k, v in settings.items() if k.endswith("_token") and k not in SPECIAL and isinstance(v, str)]
        for entry in (*named.values(), *extra):
            if entry and text_of(entry) not in known:
                known.add(text_of(entry))
                wanted.append(_added_token(entry, special=True))
        names = set(self.special.values())
        self._tokenizer.add_tokens(
            [
                _added_token({**_fields(t), "special": True}) if t.content in names and not t.special else t
                for t in wanted
            ]
        )  # with an empty list too: it also applies a new normalizer to the tokens that are there

    # ------------------------------------------------------------------ tokens
    def token_id(self, name: str) -> int | None:
        """The id of a named special token ("pad_token"), or None when it is not set or not in the vocabulary."""
        token = self.special.get(name)
        return None if token is None else self._tokenizer.token_to_id(token)

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids of the tokens that are no text."""
        added = self._tokenizer.get_added_tokens_decoder().items()
        return frozenset(index for index, token in added if token.special)

    def vocabulary(self) -> dict[str, int]:
        """Every token with its id, added ones included."""
        return self._tokenizer.get_vocab(True)

    def token(self, index: int) -> str | None:
        """The token of an id as the vocabulary spells it, or None."""
        return self._tokenizer.id_to_token(int(index))

    def joined(self, tokens: Sequence[str]) -> str:
        """Vocabulary tokens as text."""
        decoder = self._tokenizer.decoder
        return decoder.decode(list(tokens)) if decoder is not None else " ".join(tokens)

    @property
    def marks_subwords(self) -> bool:
        """Whether the vocabulary marks the pieces that continue a word (as WordPiece's "##")."""
        return bool(getattr(self._tokenizer.model, "continuing_subword_prefix", None))

    def special_count(self, pair: bool = False) -> int:
        """How many special tokens are put around one text, or around two."""
        return self._tokenizer.num_special_tokens_to_add(pair)

    def lowercase(self) -> None:
        """Lowercase every text first, as sentence-transformers' `do_lower_case` does; twice is once."""
        from tokenizers import normalizers

        current = self._tokenizer.normalizer
        if current is None or not any(mark in _state(current) for mark in ('"lowercase":true', '"Lowercase"')):
            first = normalizers.Lowercase()
            self._tokenizer.normalizer = normalizers.Sequence([first, current] if current else [first])

    # ------------------------------------------------------------------ texts to ids
    def encode(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        add_special_tokens: bool = True,
        truncation: bool | str = False,
        max_length: int | None = None,
        stride: int = 0,
        words: bool = False,
    ) -> list[Encoding]:
        """One `tokenizers.Encoding` (ids, type_ids, offsets, word_ids, overflowing, …) per text or pair of texts.

        `truncation` is True or "longest_first", "only_first" or "only_second", and cuts at `max_length` or else at the
        tokenizer's own limit; with neither it does nothing. `words`: each text is a list of words.
        """
        kinds = {True: "longest_first", "longest_first": "longest_first"}
        kinds |= {"only_first": "only_first", "only_second": "only_second", False: "", "do_not_truncate": ""}
        if truncation not in kinds:
            raise InputError(f"truncation={truncation!r} is not one of True, False, {', '.join(map(repr, kinds))[7:]}")
        if pairs is not None and len(pairs) != len(texts):
            raise InputError(f"{len(texts)} texts came with {len(pairs)} second texts; give one for each")
        batch: Any = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        for text in batch:
            _check(text, words)
        limit = max_length if max_length is not None else self.max_length
        with self._truncated(kinds[truncation], limit, stride):
            return self._tokenizer.encode_batch(batch, is_pretokenized=words, add_special_tokens=add_special_tokens)

    @contextmanager
    def _truncated(self, strategy: str, limit: int | None, stride: int) -> Iterator[None]:
        with self._lock:
            if not strategy or limit is None:
                yield
                return
            try:
                self._tokenizer.enable_truncation(
                    limit, stride=stride, strategy=strategy, direction=self.truncation_side
                )
            except (ValueError, OverflowError) as error:
                raise InputError(
                    f"texts cannot be truncated to max_length={limit} with stride={stride}: {error}"
                ) from None
            try:
                yield
            except Exception as error:  # noqa: BLE001  tokenizers raises bare Exception
                raise InputError(f"truncation to {limit} tokens failed: {error}") from None
            finally:
                self._tokenizer.no_truncation()

    def pad(self, rows: Sequence[Encoding], side: str | None = None) -> Batch:
        """Stack encodings of different lengths; `side` defaults to `padding_side`.

        Padding is the pad token or, where the model has none, id 0: what lies under a 0 of the mask is never looked at.
        """
        return pad([row.ids for row in rows], [row.type_ids for row in rows], self.pad_id, side or self.padding_side)

    @property
    def pad_id(self) -> int:
        return self.token_id("pad_token") or 0

    # ------------------------------------------------------------------ ids to texts
    def decode(
        self,
        ids: Sequence[int] | NDArray[np.int64],
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """Text of token ids. Spaces before punctuation are closed up as transformers 5 does it: where the tokenizer (or
        the argument) asks for it and its model is not byte-pair encoding, whose text has the spaces it should have."""
        text = self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)
        cleans = self.cleans_up if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        if cleans and (self._forces_clean_up or type(self._tokenizer.model).__name__ != "BPE"):
            return clean_up(text)
        return text


_CLEAN_UP = (
    *((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"), (" 's", "'s")),
    *((" 've", "'ve"), (" 're", "'re")),
)


def clean_up(text: str) -> str:
    """Close up the spaces that tokenizing put before punctuation and contractions, as transformers does."""
    for written, meant in _CLEAN_UP:
        text = text.replace(written, meant)
    return text


def pad(ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None, pad_id: int, side: str) -> Batch:
    """Stack rows of ids (and token types) of different lengths."""
    if side not in ("left", "right"):
        raise InputError(f"padding side {side!r} is not 'left' or 'right'")
    shape = len(ids), max((len(row) for row in ids), default=0)
    out = np.full(shape, pad_id, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for n, row in enumerate(ids):
        start = shape[1] - len(row) if side == "left" else 0
        span = slice(start, start + len(row))
        out[0][n, span] = row
        out[1][n, span] = 1
        if types is not None:
            out[2][n, span] = types[n]
    return Batch(*out)


def _check(text: Any, words: bool) -> None:
    parts = text if isinstance(text, tuple) else (text,)
    for part in parts:
        if words and not isinstance(part, list):
            raise InputError(f"a list of words was expected, not {part!r:.80}")
        for piece in part if words else (part,):
            if not isinstance(piece, str):
                raise InputError(f"a text was expected, not a {type(piece).__name__}: {piece!r:.80}")
            try:
                piece.encode()
            except UnicodeEncodeError as error:
                raise InputError(
                    f"the text {piece[:40]!r} holds a lone surrogate at position {error.start}, which is not Unicode "
                    "text; decode its source with errors='replace'"
                ) from None


# ------------------------------------------------------------------ settings
def read_settings(folder: Path) -> tuple[dict[str, Any], dict[int, AddedToken]]:
    """tokenizer_config.json, with special_tokens_map.json and added_tokens.json where it is too old to hold theirs."""
    settings = read_object(folder / "tokenizer_config.json")
    settings = {name: value for name, value in settings.items() if name not in ("add_bos_token", "add_eos_token")}
    added: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in settings:
        for index, token in settings.pop("added_tokens_decoder").items():
            added[int(index)] = _added_token(token)
    else:
        for name, value in read_object(folder / "special_tokens_map.json").items():
            settings[name] = value
        names = {text_of(settings[name]) for name in SPECIAL if settings.get(name)}
        for token, index in read_object(folder / "added_tokens.json").items():
            special = token in names
            added[int(index)] = _added_token({"content": token, "normalized": not special, "special": special})
    return settings, added


def text_of(token: Any) -> str:
    """The text of a token as tokenizer_config.json spells it: plain, or an object with its `content`."""
    return token["content"] if isinstance(token, dict) else str(token)


def _added_token(token: Any, special: bool = False) -> AddedToken:
    from tokenizers import AddedToken

    if not isinstance(token, dict):
        return AddedToken(str(token), special=special)
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    flags = {name: bool(token[name]) for name in names if name in token}
    return AddedToken(token["content"], **({"special": special} | flags))


def _fields(token: AddedToken) -> dict[str, Any]:
    names = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return {name: getattr(token, name) for name in names}


# ------------------------------------------------------------------ what replaces parts of tokenizer.json
def _word_pieces(tokenizer: Tokenizer, settings: dict[str, Any], special: dict[str, str]) -> None:
    from tokenizers import decoders, normalizers, pre_tokenizers

    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.model.unk_token = special["unk_token"]


def _frame(tokenizer: Tokenizer, special: dict[str, str]) -> None:
    """[CLS] text [SEP] and [CLS] text [SEP] text [SEP], whatever the file says."""
    from tokenizers import processors

    cls, sep = special["cls_token"], special["sep_token"]
    ids = {token: tokenizer.token_to_id(token) for token in (cls, sep)}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(token, index) for token, index in ids.items() if index is not None],
    )


def _spaces_as_marks(tokenizer: Tokenizer, settings: dict[str, Any], special: dict[str, str]) -> None:
    from tokenizers import decoders, normalizers, pre_tokenizers

    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    _merging(tokenizer, fuse_unk=True, byte_fallback=True, unk_token=special["unk_token"])


def _metaspace(tokenizer: Tokenizer, settings: dict[str, Any], special: dict[str, str]) -> None:
    from tokenizers import decoders, pre_tokenizers

    prefix = settings.get("add_prefix_space")
    prefix = True if prefix is None else bool(prefix)
    scheme = ("always" if settings.get("legacy", False) else "first") if prefix else "never"
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(content=" ", left=1)] if prefix else steps)
    _merging(tokenizer, fuse_unk=True, byte_fallback=True, unk_token=None)


_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(tokenizer: Tokenizer, settings: dict[str, Any], special: dict[str, str]) -> None:
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    prefix = bool(settings.get("add_prefix_space") or False)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    _merging(tokenizer, fuse_unk=False, byte_fallback=False, unk_token=None)


def _merging(tokenizer: Tokenizer, *, fuse_unk: bool, byte_fallback: bool, unk_token: str | None) -> None:
    model = tokenizer.model
    model.fuse_unk, model.byte_fallback, model.unk_token = fuse_unk, byte_fallback, unk_token
    model.ignore_merges, model.dropout = False, None


def _state(component: Any) -> str:
    """The JSON of a component of a tokenizer."""
    state = component.__getstate__()
    return (state.decode() if isinstance(state, bytes) else str(state)).replace(" ", "")


_REBUILD: dict[str, Callable[[Tokenizer, dict[str, Any], dict[str, str]], None]] = {
    "": lambda tokenizer, settings, special: None,  # the file as it stands
    "byte_level": _byte_level,
    "metaspace": _metaspace,
    "spaces_as_marks": _spaces_as_marks,
    "word_pieces": _word_pieces,
}
