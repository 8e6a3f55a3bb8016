"""`pipe.tokenizer` of a CTC model: its characters with transformers' methods."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from isoform.errors import InputError
from isoform.runtimes.preprocess.text.ctc_vocabulary import CtcVocabulary
from isoform.runtimes.preprocess.text.facade.tokenized import Tokenized
from isoform.runtimes.preprocess.text.facade.tokens import NO_LIMIT, named

_FILES = ("vocab.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


class CharactersFacade:
    """The characters of a CTC model, to read. Decoding joins repeated frames and leaves the blank out."""

    is_fast = False
    padding_side = "right"
    model_max_length = NO_LIMIT
    model_input_names = ("input_ids", "attention_mask")
    changed = False

    def __init__(self, vocabulary: CtcVocabulary, folder: Path, name_or_path: str) -> None:
        self._vocabulary, self._folder, self.name_or_path = vocabulary, folder, name_or_path

    def __getattr__(self, name: str) -> Any:
        token = "word_delimiter_token" if name.startswith("word_delimiter_token") else named(name)
        if token is None or name not in (token, f"{token}_id"):
            raise AttributeError(f"the tokenizer of a CTC model has no {name!r} here")
        text = self.special_tokens_map.get(token)
        return text if name == token else self.convert_tokens_to_ids(text)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The named special tokens that are set."""
        return dict(self._vocabulary.special)

    @property
    def all_special_tokens(self) -> list[str]:
        return list(dict.fromkeys(self._vocabulary.special.values()))

    @property
    def all_special_ids(self) -> list[int]:
        return [self.convert_tokens_to_ids(token) for token in self.all_special_tokens]

    def get_vocab(self) -> dict[str, int]:
        """Every token with its id."""
        return dict(self._vocabulary.ids)

    @property
    def vocab_size(self) -> int:
        """How many ids vocab.json has, those of added tokens left out."""
        return self._vocabulary.listed

    def __len__(self) -> int:
        return len(self._vocabulary.ids)

    def __bool__(self) -> bool:
        return True

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """The id of a token, or a list of them for a list; that of the unknown token for what is none."""
        if tokens is None:
            return None
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        ids = self._vocabulary.ids
        return ids.get(tokens, ids.get(self._vocabulary.special.get("unk_token", "")))

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or a list of them for a list; the unknown token for an id without one."""
        if isinstance(ids, int):
            return self._vocabulary.token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else ()
        return [self._vocabulary.token(index) for index in map(int, ids) if index not in skipped]

    def decode(
        self, token_ids: Any, skip_special_tokens: bool = False, group_tokens: bool = True, **ignored: Any
    ) -> Any:
        """The text of frames' ids, or the texts of several rows of them."""
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        ids = [ids] if isinstance(ids, int) else list(ids)
        if ids and not isinstance(ids[0], int):
            return [self.decode(row, skip_special_tokens, group_tokens) for row in ids]
        delimiter = self._vocabulary.special.get("word_delimiter_token")
        skipped = {*self.all_special_tokens} - {delimiter} if skip_special_tokens else set()
        tokens = [token for index in ids if (token := self._vocabulary.token(index)) not in skipped]
        return self._vocabulary.joined(tokens, grouped=group_tokens)

    def batch_decode(self, sequences: Any, **options: Any) -> list[str]:
        """The texts of several rows of frames' ids."""
        texts = self.decode(sequences, **options)
        return [texts] if isinstance(texts, str) else texts

    def tokenize(self, text: str) -> list[str]:
        """The characters of a text as the vocabulary spells them."""
        if not isinstance(text, str):
            raise InputError(f"a text was expected, not a {type(text).__name__}: {text!r:.80}")
        return self._vocabulary.spelled(text)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.convert_tokens_to_ids(self.tokenize(text))
        return ids

    def __call__(
        self, text: str | Sequence[str], padding: bool = False, return_tensors: str | None = None, **ignored: Any
    ) -> Tokenized:
        """The ids of the characters of a text, or of several, which `padding` makes equally long."""
        several = not isinstance(text, str)
        rows = [self.encode(one) for one in text] if several else [self.encode(str(text))]
        masks = [[1] * len(row) for row in rows]
        if padding:
            longest = max(map(len, rows), default=0)
            rows = [row + [self.pad_token_id] * (longest - len(row)) for row in rows]
            masks = [mask + [0] * (longest - len(mask)) for mask in masks]
        data: Mapping[str, Any] = {"input_ids": rows, "attention_mask": masks}
        if return_tensors is None and not several:
            return Tokenized({name: value[0] for name, value in data.items()})
        return Tokenized(data).convert_to_tensors(return_tensors)

    def save_pretrained(self, save_directory: str | PathLike[str], **ignored: Any) -> tuple[str, ...]:
        """Write the tokenizer's files; returns their paths."""
        folder = Path(save_directory).expanduser()
        if folder.is_file():
            raise InputError(f"{folder} is a file; give a folder to save into")
        folder.mkdir(parents=True, exist_ok=True)
        found = [name for name in _FILES if (self._folder / name).is_file()]
        return tuple(str(shutil.copyfile(self._folder / name, folder / name)) for name in found)
