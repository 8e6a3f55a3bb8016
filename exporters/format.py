"""What a format is to an export: its options, what it refuses and why, how large it is, and how it is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from isoform.manifest import WHOLE, Artifact
from isoform.progress import Progress

if TYPE_CHECKING:
    from isoform.reference.card import Family, Task
    from isoform.reference.model import Model

Options = TypeVar("Options")


class Format(Protocol[Options]):
    """One format of a bundle. Its options are a frozen dataclass, whose defaults write float32."""

    @property
    def name(self) -> str: ...

    @property
    def options(self) -> type[Options]: ...

    def of_types(self, types: Sequence[str]) -> Options:
        """The options that write these types, all else by default."""
        ...

    def check_request(self, options: Options) -> None:
        """Raise InputError for a type or an option that makes no sense, before a model is opened."""
        ...

    def refusal(self, family: Family, task: Task, part: str = WHOLE, config: Any = None) -> str:
        """Why the format cannot hold this part of a task, or "". Without a config: for all models of the family."""
        ...

    def bytes_needed(self, model: Model, options: Options) -> float:
        """About how many bytes the weights take."""
        ...

    def write(self, model: Model, folder: Path, options: Options, progress: Progress) -> list[Artifact]:
        """Write the files into the bundle's folder. Raises UnsupportedExport where the format cannot hold the model."""
        ...


def elements(model: Model) -> int:
    """How many values the weights of a model have."""
    from math import prod

    return sum(prod(weight.shape) for weight in model.weights.values())
