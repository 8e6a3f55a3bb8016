"""What a tokenizer answers: a dict of ids and masks whose entries are attributes too, as lists, arrays or tensors."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from isoform.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Encoding

TENSORS = (None, "np", "pt")


class Tokenized(UserDict[str, Any]):
    """`tokens["input_ids"]` or `tokens.input_ids`; a number gives the tokenizers library's own encoding of a row."""

    def __init__(self, data: Mapping[str, Any], encodings: Sequence[Encoding] = ()) -> None:
        super().__init__(data)
        self._encodings = list(encodings)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, int):
            return self._row(key)
        if isinstance(key, slice):
            return {name: value[key] for name, value in self.data.items()}
        return self.data[key]

    def __getattr__(self, name: str) -> Any:
        data = self.__dict__.get("data", {})
        if name not in data:
            raise AttributeError(f"the tokens have no {name!r}; they have {', '.join(data)}")
        return data[name]

    @property
    def is_fast(self) -> bool:
        return bool(self._encodings)

    @property
    def encodings(self) -> list[Encoding] | None:
        return self._encodings or None

    @property
    def n_sequences(self) -> int | None:
        """Whether the rows are texts (1) or pairs of texts (2)."""
        return self._encodings[0].n_sequences if self._encodings else None

    def _row(self, index: int) -> Encoding:
        try:
            return self._encodings[index]
        except IndexError:
            raise InputError(f"there is no row {index}; there are {len(self._encodings)} rows with tokens") from None

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The tokens of a row as the vocabulary spells them."""
        return self._row(batch_index).tokens

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of a row the number of its word, None for special tokens."""
        return self._row(batch_index).word_ids

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of a row 0 or 1, the text it is from, None for special tokens."""
        return self._row(batch_index).sequence_ids

    def char_to_token(self, batch_or_char: int, char: int | None = None, sequence_index: int = 0) -> int | None:
        """The token in which a character lies: (row, character), or (character) of the only row."""
        row, place = (0, batch_or_char) if char is None else (batch_or_char, char)
        found: int | None = self._row(row).char_to_token(place, sequence_index)
        return found

    def token_to_chars(self, batch_or_token: int, token: int | None = None) -> tuple[int, int] | None:
        """The span of characters of a token: (row, token), or (token) of the only row."""
        row, place = (0, batch_or_token) if token is None else (batch_or_token, token)
        found = self._row(row).token_to_chars(place)
        return None if found is None else found[1] if isinstance(found[1], tuple) else found

    def to(self, device: Any, *, non_blocking: bool = False) -> Self:
        """Move the tensors to a torch device, in place."""
        for name, value in self.data.items():
            if callable(getattr(value, "to", None)):
                self.data[name] = value.to(device, non_blocking=non_blocking)
        return self

    def convert_to_tensors(self, tensor_type: str | None = None, prepend_batch_axis: bool = False) -> Self:
        """Turn the lists into arrays ("np") or tensors ("pt"), in place. InputError for rows of unlike length."""
        if tensor_type not in TENSORS:
            raise InputError(f"return_tensors={tensor_type!r} is not 'pt' or 'np'")
        if tensor_type is None:
            return self
        for name, value in self.data.items():
            rows = [value] if prepend_batch_axis else value
            if not isinstance(rows, list):
                continue
            try:
                array = np.array(rows, np.int64)
            except ValueError:
                raise InputError(
                    f"the rows of {name} differ in length, so they make no tensor; pass padding=True and "
                    "truncation=True"
                ) from None
            self.data[name] = array if tensor_type == "np" else _tensor(array)
        return self


def _tensor(array: Any) -> Any:
    import torch

    return torch.from_numpy(array)
