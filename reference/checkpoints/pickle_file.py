"""Reads `.bin` files, pickles of torch tensors, through torch's restricted unpickler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import CheckpointError
from isoform.reference.checkpoints.checkpoint import Checkpoint, TensorInfo, first_line

if TYPE_CHECKING:
    from torch import Tensor


class PickleCheckpoint(Checkpoint):
    """A folder whose weights are `.bin` files, read by torch's restricted unpickler, which runs no code."""

    def __init__(self, folder: Path, name: str, config: dict[str, Any], shards: Mapping[str, str] | None) -> None:
        import torch

        from isoform.reference.checkpoints.dtypes import DTYPE_NAMES

        self.folder, self.name, self.config = folder, name, config
        self._paths = [folder / p for p in sorted(set(shards.values()))] if shards else [folder / "pytorch_model.bin"]
        self._tensors: dict[str, tuple[Tensor, Path]] = {}
        for path in self._paths:
            for key, value in _unpickle(path).items():
                if not isinstance(key, str) or not key.isprintable() or not isinstance(value, torch.Tensor):
                    raise CheckpointError(f"{path}: {key!r} is a {type(value).__name__}, not a tensor with a name")
                if value.layout != torch.strided or value.device.type != "cpu":
                    raise CheckpointError(f"{path}: {key} is no plain tensor ({value.layout}, {value.device})")
                if value.dtype not in DTYPE_NAMES:
                    raise CheckpointError(f"{path}: {key} has dtype {value.dtype}, which isoform does not read")
                self._tensors[key] = (value.detach(), path)
        for key in shards or {}:
            if key not in self._tensors:
                raise CheckpointError(f"{folder}: the index names {key!r}, which no file holds; fetch it again")

    def __getitem__(self, key: str) -> Tensor:
        return self._tensors[key][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def info(self, key: str) -> TensorInfo:
        from isoform.reference.checkpoints.dtypes import DTYPE_NAMES

        tensor, path = self._tensors[key]
        return TensorInfo(DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), path, -1, tensor.nbytes)

    def files(self) -> list[Path]:
        return self._paths


def _unpickle(path: Path) -> Mapping[Any, Any]:
    import pickle
    import warnings
    import zipfile

    import torch

    if not path.is_file():
        raise CheckpointError(f"{path} is missing; fetch the checkpoint again")
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickle protocols: what matters is raised
            data = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds a pickle that is more than tensors, which isoform never runs ({first_line(error)}); "
            "ask its author for safetensors"
        ) from None
    except Exception as error:  # a broken pickle can raise anything
        raise CheckpointError(f"{path} cannot be read ({first_line(error)}); fetch it again") from error
    if not isinstance(data, Mapping):
        raise CheckpointError(f"{path} holds a {type(data).__name__}, not named tensors")
    if not any(isinstance(value, torch.Tensor) for value in data.values()):  # a training loop's own file
        for name in WRAPPED:
            if isinstance(inner := data.get(name), Mapping):
                return inner
    return data


WRAPPED = ("state_dict", "model_state_dict", "model", "module")
"""Where training loops keep a model's tensors beside their own state."""
