"""Host steps: pure NumPy functions that run between the graphs of a model.

A card lists the steps of a task by name with their settings, the manifest stores both, and runtimes and validators run
them. A module of this package is one step: `INPUTS` and `OUTPUTS` name its ports, `run(inputs, **settings)` takes and
gives arrays by these names. In wires a step is a node like a part ("decoder.inputs_embeds":
"place_features.embeddings"); one that no wire names is run by the pipeline of the task.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from isoform.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

STEPS: tuple[str, ...] = (
    "begin_text",
    "centre_keypoints",
    "match_keypoints",
    "place_features",
    "select_keypoints",
    "split_positions",
)
"""The names, which are those of the modules."""


class Step(Protocol):
    """A module of this package."""

    INPUTS: tuple[str, ...]
    OUTPUTS: tuple[str, ...]

    @staticmethod
    def run(inputs: Mapping[str, NDArray[Any]], **settings: Any) -> dict[str, NDArray[Any]]: ...


def load_step(name: str) -> Step:
    """Raises InputError for a name that this isoform does not know."""
    if name not in STEPS:
        raise InputError(f"this isoform has no host step {name!r}; install a newer one, or export the model again")
    return cast("Step", import_module(f"{__name__}.{name}"))
