"""Logits to scores, and classes to the labels of config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.errors import CheckpointError, InputError
from isoform.runtimes.generation.processors import softmax

if TYPE_CHECKING:
    from numpy.typing import NDArray

FUNCTIONS = ("sigmoid", "softmax", "none")


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / (1 + exp(-x)) of every value."""
    out: NDArray[np.float32] = np.float32(1) / (np.float32(1) + np.exp(-logits))
    return out


def scored(logits: NDArray[np.float32], function: str) -> NDArray[np.float32]:
    """The scores that one of `FUNCTIONS` makes of logits, over the last axis."""
    if function == "none":
        return logits
    return softmax(logits) if function == "softmax" else sigmoid(logits)


def asked_function(value: str | None) -> str | None:
    """`function_to_apply` of a call in lower case. Raises InputError for what is none of `FUNCTIONS`."""
    function = None if value is None else str(value).lower()
    if function is not None and function not in FUNCTIONS:
        raise InputError(f"function_to_apply={value!r} is not one of {', '.join(FUNCTIONS)}")
    return function


def trained_function(config: Mapping[str, Any], classes: int, *, single: str = "sigmoid") -> str:
    """The function that a classifier was trained for, by `problem_type` of its config.json.

    None for regression, the sigmoid for several labels at once, `single` where there is one class, else the softmax.
    """
    kinds = {"regression": "none", "multi_label_classification": "sigmoid"}
    return kinds.get(str(config.get("problem_type")), single if classes == 1 else "softmax")


def best_first(scores: NDArray[np.float32], count: int | None = None) -> list[int]:
    """The classes of the `count` highest scores (N,), None for all; of equal ones the earlier first."""
    return sorted(range(len(scores)), key=lambda n: scores[n], reverse=True)[:count]


def whole(name: str, value: Any, least: int = 1, none: str = "") -> None:
    """InputError for a parameter that is no whole number of at least `least`; with `none`, None is allowed."""
    if value is None and none:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        end = f"; None gives {none}" if none else ""
        raise InputError(f"{name}={value!r} must be a whole number of at least {least}{end}")


class Labels:
    """The names of a model's classes: `id2label` of config.json, "LABEL_n" where it names none."""

    def __init__(self, config: Mapping[str, Any], folder: Path) -> None:
        """Raises CheckpointError when `id2label` is not an object."""
        names = config.get("id2label")
        if names is not None and not isinstance(names, Mapping):
            raise CheckpointError(f"{folder}/config.json: id2label is {names!r:.60}, not an object")
        self._names: Mapping[str, Any] = names or {}

    def __getitem__(self, index: int) -> str:
        return str(self._names.get(str(index), f"LABEL_{index}"))
