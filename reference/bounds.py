"""Bounds of the sizes in a config by what its checkpoint holds, before anything of such a size is made."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from math import prod
from typing import Any

from isoform.errors import CheckpointError
from isoform.reference.checkpoints.checkpoint import Checkpoint

SMALL = 4096
"""A size that is no danger, whatever the checkpoint holds: of pictures, kernels, strides."""

COUNTS = re.compile(r".*(_layers|_depth)|n_layers?|num_multimask_outputs")
"""Fields that count modules, each of which has a tensor."""

FREE = re.compile(r".*(position|token|_id$|_index$|sliding_window|max_window_layers).*")
"""Fields that are no size of a tensor: how long a text may be, ids."""


def check_sizes(name: str, config: Any, checkpoint: Checkpoint) -> None:
    """Raise CheckpointError for a count beyond the checkpoint's tensors, or a size beyond its values."""
    tensors = len(checkpoint)
    total = sum(prod(checkpoint.info(key).shape) for key in checkpoint)
    for field, value in _numbers(config):
        if FREE.fullmatch(field):
            continue
        if COUNTS.fullmatch(field):
            if value > tensors:
                raise CheckpointError(
                    f"{name}: config.json asks for {value} layers ({field}), the checkpoint holds {tensors} tensors"
                )
        elif value > max(total, SMALL):
            raise CheckpointError(
                f"{name}: config.json: {field} is {value}, and the checkpoint holds {total} values in all"
            )


def _numbers(config: Any) -> Iterator[tuple[str, int]]:
    """Every whole number among the fields of a config and of those inside it, with the field's name."""
    for spec in fields(config):
        value = getattr(config, spec.name)
        inner = getattr(value, "config", value)  # of a tower
        if is_dataclass(inner) and not isinstance(inner, type):
            yield from _numbers(inner)
        for one in value if isinstance(value, tuple) else (value,):
            if type(one) is int:
                yield spec.name, one
