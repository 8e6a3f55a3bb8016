"""The tokenizer inside a GGUF file, as llama.cpp runs it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

from isoform.errors import InputError
from isoform.runtimes.backends.llamacpp.process import Process


class Vocabulary:
    """Tokenize and detokenize with a GGUF file's vocabulary; its weights are not loaded.

    `process` shares the worker of a session that is open already.
    """

    def __init__(self, path: Path, *, process: Process | None = None) -> None:
        self._process = process or Process(path, vocab_only=True)

    def __len__(self) -> int:
        return self._process.facts["vocab"]

    def tokenize(self, texts: Sequence[str], add_special: bool = True, parse_special: bool = True) -> list[list[int]]:
        """Token ids of each text. `add_special`: begin and end as the file says; `parse_special`: "<s>" is a token."""
        import numpy as np

        try:
            encoded = [text.encode() for text in texts]
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text {error.object!r} has half a surrogate pair at {error.start}; remove it"
            ) from error
        sizes = [len(text) for text in encoded]
        reply, (ids,) = self._process.request(
            "tokenize", [b"".join(encoded)], sizes=sizes, add_special=add_special, parse_special=parse_special
        )
        flat = np.frombuffer(ids, np.int32).tolist()
        return [flat[start:end] for start, end in _spans(reply["sizes"])]

    def detokenize(
        self, rows: Iterable[Sequence[int]], remove_special: bool = False, unparse_special: bool = True
    ) -> list[str]:
        """The text of each row of ids; `unparse_special` writes special tokens out. Broken UTF-8 shows as U+FFFD."""
        import numpy as np

        listed = [list(row) for row in rows]
        ids = np.array([token for row in listed for token in row], np.int64)
        wrong = ids[(ids < 0) | (ids >= len(self))]
        if wrong.size:
            raise InputError(f"token id {wrong[0]} is outside the vocabulary of {len(self)} tokens")
        reply, (text,) = self._process.request(
            "detokenize",
            [ids.astype(np.int32).tobytes()],
            sizes=[len(row) for row in listed],
            remove_special=remove_special,
            unparse_special=unparse_special,
        )
        return [text[start:end].decode(errors="replace") for start, end in _spans(reply["sizes"])]

    def close(self) -> None:
        self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _spans(sizes: list[int]) -> Iterable[tuple[int, int]]:
    return pairwise(accumulate(sizes, initial=0))
