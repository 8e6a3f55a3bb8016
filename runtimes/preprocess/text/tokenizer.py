"""The tokenizer of a checkpoint folder, giving the ids that transformers' AutoTokenizer gives.

The vocabulary, merges and added tokens come from tokenizer.json. Most tokenizer classes of transformers 5 do not use
the normalizer, pre-tokenizer and decoder of that file but their own, set by tokenizer_config.json: the model's facts
hold them (`isoform.tokenization`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.errors import CheckpointError, InputError, UnsupportedModel
from isoform.runtimes.preprocess.text.known_pieces import KnownPieces
from isoform.runtimes.preprocess.text.languages import Languages, read_languages
from isoform.runtimes.preprocess.text.words import Words
from isoform.tokenization import assemble, checked, read_settings, read_tokenizer, state, text_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Encoding, Tokenizer

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
    input in tokens or None, `padding_side` the side that `pad` fills. `segments`: a model that reads token types gets
    those of the encodings, and zeros otherwise. `languages`: those whose tokens stand around a text, or None.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """`facts` of the model, of which "tokenizer" says how the file is read.

        Raises CheckpointError when the folder holds no readable tokenizer.json.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        kind: Mapping[str, Any] = facts.get("tokenizer") or {}
        if "refused" in kind:
            raise UnsupportedModel(f"{folder}: {kind['refused']}")
        if not path.is_file():
            known = ("tokenizer.model", "vocab.txt", "vocab.json", "tekken.json")
            others = [name for name in known if (folder / name).is_file()]
            raise CheckpointError(
                f"{folder} has no tokenizer.json" + (f", only {', '.join(others)}" if others else "") + "; put the "
                "tokenizer.json of the model's repository there (transformers writes one: "
                f"AutoTokenizer.from_pretrained(…).save_pretrained({str(folder)!r}))"
            )
        self._path, self._tokenizer = path, read_tokenizer(path)
        settings = read_settings(folder)
        padding = self._tokenizer.padding or {}
        with checked(f"{path} does not fit tokenizer_config.json ({{}}); fetch both again"):
            named = assemble(self._tokenizer, kind, settings)
        self.special: dict[str, str] = {name: text_of(token) for name, token in named.items() if token}
        self._end_of_word: str = kind.get("end_of_word", "")
        self._known: int | None = kind.get("known")
        self._words: Words | None = None
        if "words" in kind:
            own = [text_of(token) for token in (*settings.extra(kind.get("extra", ())), *settings.own().values())]
            listed = [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]
            spelled = self._tokenizer.get_vocab(False)
            added = [token for token in listed if token not in spelled]
            self._words = Words(kind["words"], [*self.special.values(), *own], added)
        self.languages: Languages | None = None
        if "languages" in kind:
            self.languages = read_languages(kind["languages"], self._tokenizer, self.special.get("eos_token"))
            if self.languages is not None:
                try:
                    self._tokenizer.post_processor = self.languages.frame()
                except InputError as error:
                    raise CheckpointError(f"{folder / 'tokenizer_config.json'}: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

        values = settings.values
        limit = values.integer("model_max_length", values.integer("max_len"))
        self.max_length: int | None = limit if limit is not None and limit < _NO_LIMIT else None
        sides = ("left", "right")
        stored = str(padding.get("direction") or kind.get("padding_side", "right")).lower()
        self.padding_side: str = values.choice("padding_side", sides, stored)
        self.truncation_side: str = values.choice("truncation_side", sides, "right")
        names = values.texts("model_input_names")
        self.segments: bool = "token_type_ids" in names if names else kind.get("segments", False)
        self.cleans_up: bool = values.flag("clean_up_tokenization_spaces", False)
        self._forces_clean_up = values.flag(
            "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False
        )
        self.chat_templates: Any = values.get("chat_template")
        self._tokenizer.encode_special_tokens = values.flag("split_special_tokens", False)
        self._lock = Lock()  # truncation is a state of the shared tokenizer

    # ------------------------------------------------------------------ tokens
    @property
    def backend(self) -> Tokenizer:
        """The tokenizers library's own object."""
        return self._tokenizer

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
        if current is None or not any(mark in state(current) for mark in ('"lowercase":true', '"Lowercase"')):
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
        language: str | None = None,
    ) -> list[Encoding]:
        """One `tokenizers.Encoding` (ids, type_ids, offsets, word_ids, overflowing, …) per text or pair of texts.

        `truncation` is True or "longest_first", "only_first" or "only_second", and cuts at `max_length` or else at the
        tokenizer's own limit; with neither it does nothing. `words`: each text is a list of words. `language`: the code
        of the texts' language, where the tokenizer has some (`languages`); it defaults to the tokenizer's own.
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
        if self._words is not None and not words:
            batch = [self._words.spelled(text) if isinstance(text, str) else text for text in batch]
        limit = max_length if max_length is not None else self.max_length
        what = f"{self._path}: the tokenizer cannot cut the text ({{}}); fetch it again"
        with checked(what), self._truncated(kinds[truncation], limit, stride, language):
            rows = self._tokenizer.encode_batch(batch, is_pretokenized=words, add_special_tokens=add_special_tokens)
        if self._known is None:
            return rows
        known: list[Any] = [KnownPieces(row, self._known, self.token_id("unk_token") or 0) for row in rows]
        return known

    @contextmanager
    def _truncated(self, strategy: str, limit: int | None, stride: int, language: str | None) -> Iterator[None]:
        with self._lock, self._spoken(language):
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

    @contextmanager
    def _spoken(self, language: str | None) -> Iterator[None]:
        """Texts of this language, until the end of the block."""
        if language is None:
            yield
            return
        if self.languages is None:
            raise InputError(
                f"{self._path.parent}: the tokenizer has no languages; leave language={language!r:.40} out"
            )
        own = self._tokenizer.post_processor
        self._tokenizer.post_processor = self.languages.frame(language)
        try:
            yield
        finally:
            self._tokenizer.post_processor = own

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
        with checked(f"{self._path}: the tokenizer cannot make a text of the tokens ({{}}); fetch it again"):
            text = self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)
        if self._end_of_word:
            text = text.replace(self._end_of_word, " ").strip()
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
