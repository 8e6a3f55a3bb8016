"""A checkpoint: a lazy mapping from tensor name to tensor, with the configuration and tokenizer files beside it.

Nothing is read before it is needed, tensors are views of a memory map, and no code of a checkpoint ever runs. torch is
imported where a tensor is made. The readers of each file format implement `Checkpoint`; `opening` chooses the reader.
"""

from __future__ import annotations

import json
import shutil
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "F8_E4M3", "F8_E5M2", "I8", "U8"), 1),
    **dict.fromkeys(("BF16", "F16", "I16", "U16"), 2),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F64", "I64", "U64"), 8),
}
"""The bytes of one value, by safetensors' names."""

SIDECARS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
    "source.spm",
    "target.spm",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "normalizer.json",
    "chat_template.jinja",
    "chat_template.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)
"""The small files that travel with a model."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies: `nbytes` bytes at `offset` of `path`; `dtype` is safetensors' name (or ggml's, in a GGUF);
    an offset of -1 means that the bytes in the file are not the tensor's."""

    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int


class Checkpoint(Mapping[str, "Tensor"]):
    """Names and tensors, `config` (the parsed config.json) and the `folder` of the files beside the weights.

    `canonical`: the names are isoform's already (a GGUF's are translated as it is opened), not the Hub's. `opened`: the
    folder that was opened, where `folder` is one that links to it and adds a rebuilt tokenizer.json.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    canonical: bool = False
    opened: Path | None = None

    @abstractmethod
    def info(self, key: str) -> TensorInfo:
        """Where the tensor lies, without reading it."""

    @abstractmethod
    def files(self) -> list[Path]:
        """The files that hold the weights."""

    def rows(self, key: str, start: int, stop: int) -> Tensor:
        """A part of a tensor along its first axis, without reading the rest; all of a scalar."""
        tensor = self[key]
        return tensor[start:stop] if tensor.dim() else tensor

    def release(self, key: str) -> None:
        """Let the kernel drop the mapped pages of a tensor that has been read; it can be read again."""

    def read_json(self, name: str) -> Any:
        """A parsed JSON file beside the weights, or None when there is none."""
        return read_json(self.folder / name)

    def read_text(self, name: str) -> str | None:
        """A text file beside the weights, or None when there is none."""
        path = self.folder / name
        try:
            return path.read_text(encoding="utf-8") if path.is_file() else None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} is not readable text ({first_line(error)}); fetch it again") from None

    @property
    def root(self) -> Path:
        """The folder of the whole repository, which opens the checkpoint again."""
        return self.files()[0].parent

    def folder_of(self, key: str) -> str:
        """The folder, below the repository's, whose file holds a tensor; "" where the model's own file does."""
        return ""

    def copy_sidecars(self, target: Path) -> None:
        """Copy the configuration and tokenizer files into a folder."""
        for path in self.sidecars():
            copy = target / path.relative_to(self.folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)

    def sidecars(self) -> list[Path]:
        """The configuration and tokenizer files that are there, in the order of `SIDECARS`."""
        return [path for name in SIDECARS if (path := self.folder / name).is_file()]


def read_json(path: Path) -> Any:
    """Parse a JSON file; None when it is missing, CheckpointError when it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except PermissionError:
        raise CheckpointError(f"{path} may not be read by this user; change its permissions") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = first_line(error)
        raise CheckpointError(f"{path} is not readable JSON ({reason}); fetch the checkpoint again") from None


def first_line(error: BaseException) -> str:
    """What an error of another library says, short enough for a message of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
