"""Tokens, ids and special tokens of a tokenizer, under transformers' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import InputError
from isoform.runtimes.preprocess.text.tokenizer import TextTokenizer
from isoform.tokenization import SPECIAL, read_settings, text_of

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

NO_LIMIT = int(1e30)
"""`model_max_length` of a tokenizer without one."""


def named(name: str) -> str | None:
    """The special token that an attribute is about: "pad_token" for "pad_token" and "pad_token_id", None for others."""
    base = name.removesuffix("_id")
    return base if base in SPECIAL else None


class TokenNames:
    """The part of a tokenizer that knows tokens. Setting `pad_token`, `eos_token_id`, … changes its special tokens."""

    _text: TextTokenizer
    _extra: list[str]
    changed: bool

    def __init__(self, text: TextTokenizer, folder: Path) -> None:
        settings = read_settings(folder)
        extra = [text_of(token) for token in (*settings.own().values(), *settings.extra())]
        self.__dict__.update(_text=text, _extra=extra, changed=False)

    # ------------------------------------------------------------------ special tokens
    def __getattr__(self, name: str) -> Any:
        if (token := named(name)) is None or "_text" not in self.__dict__:
            raise AttributeError(f"isoform's tokenizer has no {name!r}")
        text = self._text.special.get(token)
        return text if name == token else None if text is None else self.convert_tokens_to_ids(text)

    def __setattr__(self, name: str, value: Any) -> None:
        if (token := named(name)) is None:
            if name not in type(self).__dict__ and not any(name in base.__dict__ for base in type(self).__mro__):
                raise InputError(f"isoform's tokenizer has no {name!r} to set")
            object.__setattr__(self, name, value)
            self.__dict__["changed"] = True
            return
        if value is not None and name != token:
            if isinstance(value, bool) or not isinstance(value, int):
                raise InputError(f"{name}={value!r:.40} is not the id of a token")
            value = self.convert_ids_to_tokens(value)
            if value is None:
                raise InputError(f"{name}: no token has that id; the vocabulary holds {len(self)}")
        content = getattr(value, "content", value)
        if content is not None and not isinstance(content, str):
            raise InputError(f"{token}={value!r:.40} is not a token; give its text")
        if content is None:
            self._text.special.pop(token, None)
        else:
            self._text.special[token] = content
        self.__dict__["changed"] = True

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The named special tokens that are set."""
        return {name: self._text.special[name] for name in SPECIAL if name in self._text.special}

    @property
    def extra_special_tokens(self) -> list[str]:
        """The special tokens without a name of their own."""
        return list(self._extra)

    @property
    def all_special_tokens(self) -> list[str]:
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self._extra]))

    @property
    def all_special_ids(self) -> list[int]:
        ids: list[int] = self.convert_tokens_to_ids(self.all_special_tokens)
        return ids

    @property
    def pad_token_type_id(self) -> int:
        return 0

    def add_special_tokens(
        self, special_tokens_dict: Mapping[str, Any], replace_extra_special_tokens: bool = True
    ) -> int:
        """Name special tokens, and add those that the vocabulary lacks; returns how many it lacked."""
        tokens: list[Any] = []
        for name, value in special_tokens_dict.items():
            if name in SPECIAL:
                tokens.append(value)
                setattr(self, name, value)
            elif name in ("additional_special_tokens", "extra_special_tokens"):
                if isinstance(value, str) or not isinstance(value, Sequence):
                    raise InputError(f"{name}={value!r:.40} is not a list of tokens")
                tokens += value
                kept = [] if replace_extra_special_tokens else self._extra
                self.__dict__["_extra"] = list(dict.fromkeys([*kept, *map(str, value)]))
            else:
                raise InputError(f"there is no special token {name!r}; there are {', '.join(SPECIAL)}")
        return self.add_tokens(tokens, special_tokens=True)

    def add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        """Add tokens that the vocabulary lacks; returns how many. A model knows only those that it was trained with."""
        tokens = list(new_tokens) if isinstance(new_tokens, list | tuple) else [new_tokens]
        for token in tokens:
            if not isinstance(getattr(token, "content", token), str):
                raise InputError(f"{token!r:.40} is not a token; give its text")
        self.__dict__["changed"] = True
        backend = self.backend_tokenizer
        return backend.add_special_tokens(tokens) if special_tokens else backend.add_tokens(tokens)

    # ------------------------------------------------------------------ the vocabulary
    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The tokenizers library's own object."""
        return self._text.backend

    @property
    def vocab_size(self) -> int:
        """How many tokens there are without the added ones."""
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    def __bool__(self) -> bool:
        return True

    def get_vocab(self) -> dict[str, int]:
        """Every token with its id, added ones included."""
        return self._text.vocabulary()

    @property
    def vocab(self) -> dict[str, int]:
        return self.get_vocab()

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The added tokens by id."""
        return dict(sorted(self.backend_tokenizer.get_added_tokens_decoder().items()))

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        return {token.content: index for index, token in self.added_tokens_decoder.items()}

    def get_added_vocab(self) -> dict[str, int]:
        """The added tokens with their ids."""
        return self.added_tokens_encoder

    # ------------------------------------------------------------------ tokens and ids
    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """The id of a token, or a list of them for a list; that of the unknown token (or None) for what is none."""
        if tokens is None:
            return None
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        index = self.backend_tokenizer.token_to_id(tokens)
        unknown = self._text.special.get("unk_token")
        return index if index is not None or unknown is None else self.backend_tokenizer.token_to_id(unknown)

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or a list of them for a list; None for an id without one."""
        if isinstance(ids, int):
            return self._text.token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else ()
        return [self._text.token(index) for index in map(int, ids) if index not in skipped]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        return self._text.joined(tokens)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens are put around one text, or around two."""
        return self._text.special_count(pair)

    def get_special_tokens_mask(
        self, token_ids_0: Sequence[int], token_ids_1: None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 for each id of a special token; only for ids with their special tokens."""
        if token_ids_1 is not None or not already_has_special_tokens:
            raise InputError("the mask is for one row with its special tokens: pass already_has_special_tokens=True")
        special = set(self.all_special_ids)
        return [int(int(index) in special) for index in token_ids_0]
